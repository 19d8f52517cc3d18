"""Crops: where they come from, and that they repeat."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from trainer.data import Augmentation, Batches, Sample
from trainer.fit import Average
from trainer.recipes import RECIPES, Recipe
from unet.pixels import Preprocessing

RECIPE = RECIPES["quick"].override(image_size=32, batch_size=4)
PREPROCESSING = Preprocessing(input_range="0-255")


def coded(height: int, width: int) -> Sample:
    """Every pixel tells its place: the image holds the row and column, the label their parity."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([y, x, 0 * x], axis=2).astype(np.uint8)
    return Sample("coded", image, ((y + x) % 2).astype(np.uint8))


def batches(samples: list[Sample], recipe: Recipe = RECIPE, seed: int = 0, margin: int = 0) -> Batches:
    return Batches(samples, PREPROCESSING, 3, 2, recipe, margin=margin, seed=seed, device=torch.device("cpu"))


def test_image_and_label_stay_together_through_every_turn() -> None:
    corners = set()
    for images, labels, _ in batches([coded(64, 96)]).epoch(1):
        assert images.shape[1:] == (3, 32, 32)
        assert labels.dtype == torch.int64
        assert torch.equal((images[:, 0] + images[:, 1]).round().long() % 2, labels)
        for image in images:  # up or down, left or right, rows or columns first: eight ways to turn a square
            (y0, x0), (y1, x1) = image[:2, 0, 0].round().tolist(), image[:2, 0, -1].round().tolist()
            y2, x2 = image[:2, -1, 0].round().tolist()
            corners.add((y1 - y0, x1 - x0, y2 - y0, x2 - x0))
    assert len(corners) == 8


def test_crops_come_from_everywhere() -> None:
    places = set()
    for images, _, _ in batches([coded(34, 35)]).epoch(1):
        places |= {tuple(image.round().int().tolist()) for image in images[:, :2].amin((2, 3))}
    assert places == set(product(range(3), range(4)))


def test_no_class_appears_between_two_others() -> None:
    """Labels are read at the nearest pixel, however the crop is turned and deformed."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 200
    halves = Sample("halves", image, np.repeat([[0, 2]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    strong = replace(RECIPE, augmentation=RECIPES["default"].augmentation)
    for _, labels, _ in batches([halves], strong).epoch(1):
        assert set(labels.unique().tolist()) <= {0, 2}


def test_without_rotation_only_flips() -> None:
    recipe = RECIPES["tutorial"].override(image_size=32)
    steps = set()
    for epoch in range(20):
        for images, _, _ in batches([coded(64, 96)], recipe).epoch(epoch):
            steps |= {tuple((image[:2, 0, -1] - image[:2, 0, 0]).round().tolist()) for image in images}
    assert steps == {(0, 31), (0, -31)}


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(batches([coded(64, 96)], seed=seed).epoch(epoch))[0]

    assert torch.equal(first(1, 1), first(1, 1))
    assert not torch.equal(first(1, 1), first(1, 2))
    assert not torch.equal(first(1, 1), first(2, 1))


def test_the_order_of_the_images_is_another_one_for_each_seed_and_epoch() -> None:
    shades = [replace(coded(32, 32), image=np.full((32, 32, 3), shade, np.uint8)) for shade in range(8)]

    def order(seed: int, epoch: int) -> list[int]:
        shown = torch.cat([images[:, 0, 0, 0] for images, _, _ in batches(shades, seed=seed).epoch(epoch)])
        return shown.round().int().tolist()

    assert sorted(order(1, 1)[:8]) == list(range(8))  # each is seen before one is seen again
    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_an_epoch_covers_the_area_and_has_a_least_number_of_steps() -> None:
    exact = RECIPES["tutorial"].override(image_size=32, batch_size=4)
    assert len(batches([coded(64, 64), coded(32, 32)], exact)) == 2  # 4 + 1 crops, 4 a batch
    assert len(batches([coded(32, 32)], RECIPE)) == RECIPE.min_steps


def test_small_images_are_mirrored_to_a_crop() -> None:
    images, labels, _ = next(batches([coded(20, 7)]).epoch(1))
    assert images.shape[-2:] == labels.shape[-2:] == (32, 32)
    assert set(images[:, 1].round().unique().tolist()) == set(range(7))


def test_the_paper_network_sees_a_margin_around_what_it_learns() -> None:
    recipe = replace(RECIPES["paper"].override(image_size=36), augmentation=Augmentation())
    images, labels, weights = next(batches([coded(300, 300)], recipe, margin=92).epoch(1))
    assert images.shape[-2:] == (36 + 184, 36 + 184)
    assert torch.equal(images[:, :2, 92:-92, 92:-92].sum(1).round().long() % 2, labels)
    assert weights is not None
    assert weights.shape == labels.shape


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_gpu_is_told_what_to_do_without_being_waited_for() -> None:
    gpu = torch.device("cuda")
    recipe = RECIPES["default"].override(image_size=32, batch_size=4)
    crops = Batches([coded(64, 96)], PREPROCESSING, 3, 2, recipe, margin=0, seed=0, device=gpu).epoch(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3), torch.nn.BatchNorm2d(1)).to(gpu)
    average = Average(network, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            next(crops)
            average.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
