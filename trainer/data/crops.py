"""Batches of augmented crops, cut on the training device; the same ones for the same seed and epoch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer import world
from trainer.data.augment import RandomValues, adjust_grey, draw, sample_image, sampling_grid, to_image
from trainer.data.dataset import Sample
from trainer.losses import border_weights
from unet.errors import UserError
from unet.network import STRIDE
from unet.pixels import Preprocessing

if TYPE_CHECKING:  # a recipe contains an Augmentation, which this package defines
    from trainer.recipes import Recipe


class Batch(NamedTuple):
    """B crops of S x S pixels; images show the network's margin around them as well."""

    images: Tensor  # (B, C, S + 2 margin, S + 2 margin) float32, preprocessed as for prediction
    labels: Tensor  # (B, S, S) int64 class indices
    weights: Tensor | None  # (B, S, S) float32 weights of pixels in the loss, if the recipe has border weights


class Batches:
    """`for images, labels, weights in batches.epoch(3)`. On a GPU all work is queued without waiting for it, so that a
    batch is ready when the step before is done."""

    def __init__(
        self,
        samples: list[Sample],
        preprocessing: Preprocessing,
        n_channels: int,
        n_classes: int,
        recipe: "Recipe",
        *,
        margin: int,
        seed: int,
        device: torch.device,
    ) -> None:
        world.check_batch_size(recipe.batch_size)
        if recipe.variant != "paper" and recipe.image_size == STRIDE and recipe.batch_size == world.size():
            raise UserError(
                f"--image-size {STRIDE} leaves one pixel at the bottom of the network, and batch norm needs more than "
                "one value; expected a larger --image-size, or a --batch-size of 2 per process"
            )
        self.device = device
        self.recipe = recipe
        self.margin = margin
        self.seed = seed
        # whole images are preprocessed once, exactly as in prediction, and stay on the device
        self.images = [preprocessing(s.image, n_channels).tensor().contiguous().to(device) for s in samples]
        self.targets = [_target(s, n_classes, recipe).to(device) for s in samples]  # (1 or 2, H, W)
        crops = [max(1, round(s.label.size / recipe.image_size**2)) for s in samples]
        self.order = np.repeat(np.arange(len(samples)), crops)  # in proportion to area
        self.steps = max(recipe.min_steps, -(-len(self.order) // recipe.batch_size))

    def __len__(self) -> int:
        """Batches in an epoch, all of the same size."""
        return self.steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each batch: all processes draw the same values, each takes every n-th crop."""
        shuffle = np.random.default_rng((self.seed, epoch))
        size = self.recipe.batch_size
        passes = -(-self.steps * size // len(self.order))
        order = np.concatenate([shuffle.permutation(self.order) for _ in range(passes)])
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        share = slice(world.rank(), None, world.size())
        for start in range(0, self.steps * size, size):
            values = draw(size, self.recipe.image_size + 2 * self.margin, self.recipe.augmentation, rng)
            yield self._batch(order[start : start + size][share], values.select(share, self.device))

    def _batch(self, chosen: npt.NDArray[np.intp], values: RandomValues) -> Batch:
        augmentation, margin = self.recipe.augmentation, self.margin
        seen = self.recipe.image_size + 2 * margin
        inner = slice(margin, seen - margin)
        size = torch.tensor([self.images[i].shape[:0:-1] for i in chosen], dtype=torch.float32)  # (B, 2) x, y
        centre = self._centre(size, values.place)  # (B, 2) x, y
        centre, size = (each.to(self.device, non_blocking=True) for each in (centre, size))
        grids = to_image(sampling_grid(values, seen, augmentation), centre, size)  # (B, seen, seen, 2)
        images = [sample_image(self.images[i], grid, "bilinear") for i, grid in zip(chosen, grids, strict=True)]
        grids = grids[:, inner, inner]
        target = torch.stack(  # (B, 1 or 2, S, S)
            [sample_image(self.targets[i], grid, "nearest") for i, grid in zip(chosen, grids, strict=True)]
        )
        return Batch(
            adjust_grey(torch.stack(images), values, augmentation),
            target[:, 0].round().long(),
            target[:, 1] if self.recipe.border_weights else None,
        )

    def _centre(self, size: Tensor, place: Tensor) -> Tensor:
        """Centres of crops, (B, 2) pixels, for image sizes (B, 2) and positions (B, 2) in 0..1. A crop lies within its
        image if that is large enough, and begins at a whole pixel."""
        room = (size - self.recipe.image_size).clamp(min=0)
        return torch.floor(place * (room + 1)) + (self.recipe.image_size - 1) / 2


def _target(sample: Sample, n_classes: int, recipe: "Recipe") -> Tensor:
    """(1 or 2, H, W) float32: class indices, and the weights of the loss if the recipe has them."""
    planes = [sample.label.astype(np.float32)]
    if recipe.border_weights:
        planes.append(border_weights(sample.label, n_classes))
    return torch.from_numpy(np.stack(planes))
