"""Batches of crops, each at a random place, flipped and turned at random: the same ones for the same seed and epoch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.dataset import Sample
from trainer.recipes import Recipe
from unet.pixels import FloatArray, Preprocessing

Label = npt.NDArray[np.uint8]


class Batches:
    """`for images, labels in batches.epoch(3)`: (B, C, S, S) float32 and (B, S, S) int64 class indices, on the CPU."""

    def __init__(
        self, samples: list[Sample], preprocessing: Preprocessing, n_channels: int, recipe: Recipe, seed: int
    ) -> None:
        self.size = recipe.image_size
        self.batch_size = recipe.batch_size
        self.rotate = recipe.rotate
        self.seed = seed
        # whole images are prepared once, exactly as at prediction; crops are cut from them
        self.images = [_at_least(preprocessing(sample.image, n_channels), self.size) for sample in samples]
        self.labels = [_at_least(sample.label, self.size) for sample in samples]
        crops = [max(1, round(label.size / self.size**2)) for label in self.labels]
        self.order = np.repeat(np.arange(len(samples)), crops)  # large images are seen more often
        repeats = -(-recipe.min_steps * self.batch_size // len(self.order))
        self.order = np.tile(self.order, max(1, repeats))

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self.order) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.order)
        for start in range(0, len(order), self.batch_size):
            crops = [self._crop(int(i), rng) for i in order[start : start + self.batch_size]]
            images = np.stack([image for image, _ in crops])
            labels = np.stack([label for _, label in crops])
            yield torch.from_numpy(images), torch.from_numpy(labels).long()

    def _crop(self, i: int, rng: np.random.Generator) -> tuple[FloatArray, Label]:
        image, label = self.images[i], self.labels[i]
        height, width = label.shape
        y, x = int(rng.integers(height - self.size + 1)), int(rng.integers(width - self.size + 1))
        window = (slice(y, y + self.size), slice(x, x + self.size))
        image, label = image[:, *window], label[window]
        for axis in (-1, -2):
            if rng.random() < 0.5:
                image, label = np.flip(image, axis), np.flip(label, axis)
        if self.rotate and rng.random() < 0.5:  # with the flips: all eight symmetries of the square
            image, label = np.rot90(image, axes=(-2, -1)), np.rot90(label)
        return image, label


def _at_least(x: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Mirrors (..., H, W) at its right and lower border until both sides are `size`."""
    pad = [(0, 0)] * (x.ndim - 2) + [(0, max(0, size - side)) for side in x.shape[-2:]]
    return np.pad(x, pad, mode="reflect")
