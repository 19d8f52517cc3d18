"""Crops: where they come from, and that they repeat."""

import numpy as np
import torch

from trainer.batches import Batches
from trainer.dataset import Sample
from trainer.recipes import RECIPES, Recipe
from unet.pixels import Preprocessing

RECIPE = RECIPES["quick"].override(image_size=32, batch_size=4)


def coded(height: int, width: int) -> Sample:
    """Every pixel tells its place: the image holds the row and column, the label their parity."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([y, x, 0 * x], axis=2).astype(np.uint8)
    return Sample("coded", image, ((y + x) % 2).astype(np.uint8))


def batches(samples: list[Sample], recipe: Recipe = RECIPE, seed: int = 0) -> Batches:
    return Batches(samples, Preprocessing(input_range="0-255"), 3, recipe, seed)


def test_image_and_label_stay_together_through_every_turn() -> None:
    corners = set()
    for images, labels in batches([coded(64, 96)]).epoch(1):
        assert images.shape[1:] == (3, 32, 32)
        assert labels.dtype == torch.int64
        assert torch.equal((images[:, 0] + images[:, 1]).long() % 2, labels)
        for image in images:  # up or down, left or right, rows or columns first: eight ways to turn a square
            (y0, x0), (y1, x1) = image[:2, 0, 0].tolist(), image[:2, 0, -1].tolist()
            (_, _), (y2, x2) = (0, 0), image[:2, -1, 0].tolist()
            corners.add((y1 - y0, x1 - x0, y2 - y0, x2 - x0))
    assert len(corners) == 8


def test_without_rotation_only_flips() -> None:
    recipe = RECIPES["tutorial"].override(image_size=32)
    steps = set()
    for epoch in range(20):
        for images, _ in batches([coded(64, 96)], recipe).epoch(epoch):
            steps |= {tuple((image[:2, 0, -1] - image[:2, 0, 0]).tolist()) for image in images}
    assert steps == {(0, 31), (0, -31)}


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(batches([coded(64, 96)], seed=seed).epoch(epoch))[0]

    assert torch.equal(first(1, 1), first(1, 1))
    assert not torch.equal(first(1, 1), first(1, 2))
    assert not torch.equal(first(1, 1), first(2, 1))


def test_an_epoch_covers_the_area_and_has_a_least_number_of_steps() -> None:
    exact = RECIPES["tutorial"].override(image_size=32, batch_size=4)
    assert len(batches([coded(64, 64), coded(32, 32)], exact)) == 2  # 4 + 1 crops, 4 a batch
    assert len(batches([coded(32, 32)], RECIPE)) == RECIPE.min_steps


def test_small_images_are_mirrored_to_a_crop() -> None:
    images, labels = next(batches([coded(20, 7)]).epoch(1))
    assert images.shape[-2:] == labels.shape[-2:] == (32, 32)
    assert set(images[:, 1].unique().tolist()) <= set(range(20))
