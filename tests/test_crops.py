"""Batches of crops: their places, their labels, and that they repeat."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from trainer import world
from trainer.data import Batches, Sample
from trainer.data.borders import BORDER, INSIDE
from trainer.data.crops import PLACES, places_of_rare_classes
from trainer.learner import Average
from trainer.losses import IGNORED
from trainer.recipes import RECIPES, Augmentation, Recipe
from unet import NetworkConfig
from unet.errors import UserError
from unet.pixels import Preprocessing

RECIPE = RECIPES["quick"].override(image_size=32, batch_size=4)
PREPROCESSING = Preprocessing(input_range="0-255")


def coded(height: int, width: int) -> Sample:
    """Sample in which every pixel encodes its place: the image has row and column, the label their parity."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([y, x, 0 * x], axis=2).astype(np.uint8)
    return Sample("coded", image, ((y + x) % 2).astype(np.uint8))


def batches(
    samples: list[Sample], recipe: Recipe = RECIPE, seed: int = 0, device: str = "cpu", n_classes: int = 1
) -> Batches:
    network = NetworkConfig(n_channels=3, n_classes=n_classes, base_channels=1, variant=recipe.variant, bilinear=False)
    return Batches(samples, network.build().to(device), PREPROCESSING, recipe, seed)


def test_image_and_label_are_turned_together() -> None:
    corners = set()
    for images, labels, *_ in batches([coded(64, 96)]).epoch(1):
        assert images.shape[1:] == (3, 32, 32)
        assert labels.dtype == torch.int64
        assert torch.equal((images[:, 0] + images[:, 1]).round().long() % 2, labels)
        for image in images:  # up or down, left or right, rows or columns first: eight ways to turn a square
            (y0, x0), (y1, x1) = image[:2, 0, 0].round().tolist(), image[:2, 0, -1].round().tolist()
            y2, x2 = image[:2, -1, 0].round().tolist()
            corners.add((y1 - y0, x1 - x0, y2 - y0, x2 - x0))
    assert len(corners) == 8


def test_crops_are_cut_at_all_places() -> None:
    places = set()
    for images, *_ in batches([coded(34, 35)]).epoch(1):
        places |= {tuple(image.round().int().tolist()) for image in images[:, :2].amin((2, 3))}
    assert places == set(product(range(3), range(4)))


def test_labels_are_not_interpolated() -> None:
    """No class 1 appears between the classes 0 and 2, however the crop is turned and deformed."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 200
    halves = Sample("halves", image, np.repeat([[0, 2]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    strong = replace(RECIPE, augmentation=RECIPES["default"].augmentation)
    for _, labels, *_ in batches([halves], strong).epoch(1):
        assert set(labels.unique().tolist()) <= {0, 2}


def test_the_tutorial_recipe_only_flips() -> None:
    recipe = RECIPES["tutorial"].override(image_size=32)
    steps = set()
    for epoch in range(20):
        for images, *_ in batches([coded(64, 96)], recipe).epoch(epoch):
            steps |= {tuple((image[:2, 0, -1] - image[:2, 0, 0]).round().tolist()) for image in images}
    assert steps == {(0, 31), (0, -31)}


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(batches([coded(64, 96)], seed=seed).epoch(epoch))[0]

    assert torch.equal(first(1, 1), first(1, 1))
    assert not torch.equal(first(1, 1), first(1, 2))
    assert not torch.equal(first(1, 1), first(2, 1))


def test_each_seed_and_epoch_has_its_own_order_of_images() -> None:
    shades = [replace(coded(32, 32), image=np.full((32, 32, 3), shade, np.uint8)) for shade in range(8)]

    def order(seed: int, epoch: int) -> list[int]:
        shown = torch.cat([images[:, 0, 0, 0] for images, *_ in batches(shades, seed=seed).epoch(epoch)])
        return shown.round().int().tolist()

    assert sorted(order(1, 1)[:8]) == list(range(8))  # all images are seen once before one is repeated
    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_an_epoch_covers_the_area_of_all_images_in_at_least_min_steps() -> None:
    exact = RECIPES["tutorial"].override(image_size=32, batch_size=4)
    assert len(batches([coded(64, 64), coded(32, 32)], exact)) == 2  # 4 + 1 crops, 4 a batch
    assert len(batches([coded(32, 32)], RECIPE)) == RECIPE.min_steps


def test_images_smaller_than_a_crop_are_mirrored() -> None:
    images, labels, *_ = next(batches([coded(20, 7)]).epoch(1))
    assert images.shape[-2:] == labels.shape[-2:] == (32, 32)
    assert set(images[:, 1].round().unique().tolist()) == set(range(7))


def test_images_for_the_paper_network_have_a_margin_around_the_label() -> None:
    recipe = replace(RECIPES["paper"].override(image_size=36), augmentation=Augmentation())
    images, labels, weights, _ = next(batches([coded(300, 300)], recipe).epoch(1))
    assert images.shape[-2:] == (36 + 184, 36 + 184)
    assert torch.equal(images[:, :2, 92:-92, 92:-92].sum(1).round().long() % 2, labels)
    assert weights is not None
    assert weights.shape == labels.shape


def test_processes_share_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, two processes cut the crops that one alone would."""
    recipe = replace(RECIPE, augmentation=RECIPES["default"].augmentation)
    alone = next(batches([coded(64, 96)], recipe).epoch(1)).images
    monkeypatch.setattr(world, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        torch.testing.assert_close(next(batches([coded(64, 96)], recipe).epoch(1)).images, alone[rank::2])


def test_crops_stay_the_same_from_version_to_version() -> None:
    """An interrupted run is resumed by a newer version with the crops that the older one would have cut."""
    recipe = replace(RECIPE, augmentation=RECIPES["default"].augmentation, border_weights=True)
    images, labels, weights, _ = next(batches([coded(64, 96), coded(40, 30)], recipe, seed=3).epoch(2))
    assert weights is not None
    assert images.mean((1, 2, 3)).tolist() == pytest.approx([25.1288, 19.0443, 30.5341, 18.5158], abs=1e-2)
    assert labels.sum((1, 2)).tolist() == pytest.approx([492, 525, 513, 490], abs=3)
    assert weights.mean((1, 2)).tolist() == pytest.approx([10.4122, 10.4243, 10.4199, 10.4114], abs=1e-2)


def flat(*rare: tuple[int, int, int]) -> Sample:
    """Background, with pixels (y, x) of a class."""
    label = np.zeros((80, 96), np.uint8)
    for y, x, value in rare:
        label[y, x] = value
    return Sample("flat", np.stack(3 * [label], axis=2), label)


def test_places_of_all_classes_but_the_most_common_one() -> None:
    one = flat((30, 40, 1), (3, 5, 2), (7, 9, 2), (0, 0, IGNORED))
    many = flat()
    many.label[:20, :20] = 2
    (first, second), chances = places_of_rare_classes([one.label, many.label], 4, seed=0)
    assert [(i, pixels.tolist()) for i, pixels in first] == [(0, [[30, 40]])]
    (i, few), (j, drawn) = second
    assert (i, sorted(few.tolist())) == (0, [[3, 5], [7, 9]])
    assert (j, drawn.shape, drawn.max()) == (1, (PLACES, 2), 19)
    assert len({tuple(pixel) for pixel in drawn.tolist()}) == PLACES
    # the first class has 1 of 15,359 pixels, less than a thousandth, and counts as if it had that; the other has 402
    assert sum(chances) == pytest.approx(1)
    assert chances[0] / chances[1] == pytest.approx(402 / 15.359)


def test_a_share_of_the_crops_is_centred_on_rare_classes() -> None:
    """A third: a quarter of it is of the class that has three times the pixels of the other one."""
    rare = flat()
    rare.label[35:43, 45:50] = 1
    rare.label[25:37, 60:70] = 2
    recipe = replace(RECIPE, augmentation=Augmentation(flip=False), balance=1 / 3)
    crops = batches([rare, flat()], recipe, n_classes=3)
    labels = torch.cat([batch.labels for epoch in range(10) for batch in crops.epoch(epoch)])
    middle = labels[:, 15, 15]
    assert ((middle == 1).float().mean()) == pytest.approx(1 / 4, abs=0.04)
    assert ((middle == 2).float().mean()) == pytest.approx(1 / 12, abs=0.04)
    unbalanced = batches([rare, flat()], replace(recipe, balance=0.0), n_classes=3)
    assert (torch.cat([batch.labels for batch in unbalanced.epoch(1)])[:, 15, 15] != 0).float().mean() < 0.1


def test_objects_are_drawn_as_often_as_their_borders() -> None:
    objects = np.zeros((80, 96), np.int32)
    objects[20:50, 20:50], objects[20:50, 50:80] = 1, 2
    touching = replace(flat(), label=(objects > 0).astype(np.uint8), objects=objects)
    recipe = replace(RECIPE, augmentation=Augmentation(flip=False), balance=1.0)
    crops = batches([touching], recipe, n_classes=3)
    middle = torch.cat([batch.labels for epoch in range(10) for batch in crops.epoch(epoch)])[:, 15, 15]
    assert (middle == BORDER).float().mean() == pytest.approx(1 / 2, abs=0.06)
    assert (middle == INSIDE).float().mean() == pytest.approx(1 / 2, abs=0.06)


def test_a_crop_on_a_rare_pixel_stays_in_the_image() -> None:
    """At a corner the pixel is as near to the middle as it can be; a smaller image is shown as a whole."""
    recipe = replace(RECIPE, augmentation=Augmentation(flip=False), balance=1.0)
    for y, x in ((0, 0), (79, 95), (0, 50)):
        for batch in batches([flat((y, x, 1))], recipe).epoch(1):
            assert (batch.labels.sum((1, 2)) == 1).all()
    small = Sample("small", np.zeros((20, 20, 3), np.uint8), np.eye(20, dtype=np.uint8))
    assert next(batches([small], recipe).epoch(1)).labels.any()


def test_a_single_small_crop_per_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"--image-size 16 leaves one pixel .* expected a larger --image-size, or"):
        batches([coded(64, 64)], RECIPES["quick"].override(image_size=16, batch_size=1))


def test_a_batch_that_cannot_be_shared_equally_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "size", lambda: 2)
    with pytest.raises(UserError, match="--batch-size 5: expected a multiple of the 2 processes"):
        batches([coded(64, 64)], RECIPE.override(batch_size=5))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_cutting_crops_never_waits_for_the_gpu() -> None:
    gpu = torch.device("cuda")
    recipe = RECIPES["default"].override(image_size=32, batch_size=4)
    crops = batches([coded(64, 96)], recipe, device="cuda").epoch(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3), torch.nn.BatchNorm2d(1)).to(gpu)
    average = Average(network, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            next(crops)
            average.update(network)
    finally:
        torch.cuda.set_sync_debug_mode("default")
