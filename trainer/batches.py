"""Batches of crops, cut and augmented on the training device: the same ones for the same seed and epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.augment import adjust_grey, sample, sampling_grid
from trainer.dataset import Sample
from trainer.losses import border_weights
from trainer.recipes import Recipe
from unet.pixels import Preprocessing


class Batch(NamedTuple):
    """B crops with labels of side S; the images are larger by the network's margin on each side."""

    images: Tensor
    """(B, C, S + 2 margin, S + 2 margin) float32, prepared as for prediction."""
    labels: Tensor
    """(B, S, S) int64 class indices."""
    weights: Tensor | None
    """(B, S, S) float32 for the loss, if the recipe weighs borders."""


class Batches:
    """`for images, labels, weights in batches.epoch(3)`."""

    def __init__(
        self,
        samples: list[Sample],
        preprocessing: Preprocessing,
        n_channels: int,
        n_classes: int,
        recipe: Recipe,
        *,
        margin: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.margin = margin
        self.seed = seed
        # whole images are prepared once, exactly as at prediction, and stay on the device
        self.images = [torch.from_numpy(preprocessing(s.image, n_channels)).to(device) for s in samples]
        self.targets = [_target(s, n_classes, recipe).to(device) for s in samples]  # (1 or 2, H, W)
        crops = [max(1, round(s.label.size / recipe.image_size**2)) for s in samples]
        self.order = np.repeat(np.arange(len(samples)), crops)  # large images are seen more often
        repeats = -(-recipe.min_steps * recipe.batch_size // len(self.order))
        self.order = np.tile(self.order, max(1, repeats))

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self.order) // self.recipe.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.order)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        for start in range(0, len(order), self.recipe.batch_size):
            yield self._batch([int(i) for i in order[start : start + self.recipe.batch_size]], rng)

    def _batch(self, chosen: list[int], rng: torch.Generator) -> Batch:
        how, size, margin = self.recipe.augmentation, self.recipe.image_size, self.margin
        seen = size + 2 * margin
        device = self.images[0].device
        grids = sampling_grid(len(chosen), seen, how, rng).to(device)  # (B, seen, seen, 2)
        inner = slice(margin, seen - margin)
        images, targets = [], []
        for i, grid in zip(chosen, grids, strict=True):
            centre = self._centre(i, rng).to(device)
            images.append(sample(self.images[i], grid, centre, "bilinear"))
            targets.append(sample(self.targets[i], grid[inner, inner], centre, "nearest"))
        target = torch.stack(targets)  # (B, 1 or 2, S, S)
        return Batch(
            adjust_grey(torch.stack(images), how, rng),
            target[:, 0].round().long(),
            target[:, 1] if self.recipe.border_weights else None,
        )

    def _centre(self, i: int, rng: torch.Generator) -> Tensor:
        """(x, y): such that the label's crop lies in the image, if that is large enough. Whole pixels stay whole."""
        height, width = self.images[i].shape[-2:]
        free = torch.tensor([max(0, width - self.recipe.image_size), max(0, height - self.recipe.image_size)])
        corner = torch.floor(torch.rand(2, generator=rng) * (free + 1))
        return corner + (self.recipe.image_size - 1) / 2


def _target(sample: Sample, n_classes: int, recipe: Recipe) -> Tensor:
    """(1 or 2, H, W) float32: class indices, and the loss's weights if the recipe wants them."""
    planes = [sample.label.astype(np.float32)]
    if recipe.border_weights:
        planes.append(border_weights(sample.label, n_classes))
    return torch.from_numpy(np.stack(planes))
