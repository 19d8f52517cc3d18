"""Batches of crops, cut and augmented on the training device: the same ones for the same seed and epoch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.augment import Draw, adjust_grey, draw, placed, sample, sampling_grid
from trainer.data.dataset import Sample
from trainer.losses import border_weights
from trainer.world import ALONE, World
from unet.network import STRIDE
from unet.pixels import Preprocessing

if TYPE_CHECKING:  # recipes are made of augmentations, which are here
    from trainer.recipes import Recipe


class Batch(NamedTuple):
    """The B crops of this process, with labels of side S; images have the network's margin around that."""

    images: Tensor
    """(B, C, S + 2 margin, S + 2 margin) float32, prepared as for prediction."""
    labels: Tensor
    """(B, S, S) int64 class indices."""
    weights: Tensor | None
    """(B, S, S) float32 for the loss, if the recipe weighs borders."""


class Batches:
    """`for images, labels, weights in batches.epoch(3)`. A GPU is told what to do without being waited for, so that a
    batch is ready when it has done with the one before."""

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
        world: World = ALONE,
    ) -> None:
        world.check(recipe.batch_size)
        if recipe.variant != "paper" and recipe.image_size == STRIDE and recipe.batch_size == world.size:
            raise ValueError(
                f"--image-size {STRIDE} leaves a single pixel at the bottom of the network, of which batch norm makes "
                "nothing: expected more, or two crops for each process by --batch-size"
            )
        self.world = world
        self.device = device
        self.recipe = recipe
        self.margin = margin
        self.seed = seed
        # whole images are prepared once, exactly as at prediction, and stay on the device
        self.images = [preprocessing(s.image, n_channels).tensor().contiguous().to(device) for s in samples]
        self.targets = [_target(s, n_classes, recipe).to(device) for s in samples]  # (1 or 2, H, W)
        crops = [max(1, round(s.label.size / recipe.image_size**2)) for s in samples]
        self.order = np.repeat(np.arange(len(samples)), crops)  # large images are seen more often
        self.steps = max(recipe.min_steps, -(-len(self.order) // recipe.batch_size))

    def __len__(self) -> int:
        """Batches in an epoch, all of the same size."""
        return self.steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each batch. What is in a batch does not depend on how many processes share it."""
        shuffle = np.random.default_rng((self.seed, epoch))
        size = self.recipe.batch_size
        passes = -(-self.steps * size // len(self.order))
        order = np.concatenate([shuffle.permutation(self.order) for _ in range(passes)])
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        share = slice(self.world.rank, None, self.world.size)
        for start in range(0, self.steps * size, size):
            drawn = draw(size, self.recipe.image_size + 2 * self.margin, self.recipe.augmentation, rng)
            yield self._batch(order[start : start + size][share], drawn.of(share, self.device))

    def _batch(self, chosen: npt.NDArray[np.intp], drawn: Draw) -> Batch:
        how, margin = self.recipe.augmentation, self.margin
        seen = self.recipe.image_size + 2 * margin
        inner = slice(margin, seen - margin)
        size = torch.tensor([self.images[i].shape[:0:-1] for i in chosen], dtype=torch.float32)  # (B, 2): x, y
        centre, size = (each.to(self.device, non_blocking=True) for each in (self._centre(size, drawn.place), size))
        places = placed(sampling_grid(drawn, seen, how), centre, size)
        images = [sample(self.images[i], at, "bilinear") for i, at in zip(chosen, places, strict=True)]
        targets = [sample(self.targets[i], at[inner, inner], "nearest") for i, at in zip(chosen, places, strict=True)]
        target = torch.stack(targets)  # (B, 1 or 2, S, S)
        return Batch(
            adjust_grey(torch.stack(images), drawn, how),
            target[:, 0].round().long(),
            target[:, 1] if self.recipe.border_weights else None,
        )

    def _centre(self, size: Tensor, place: Tensor) -> Tensor:
        """(B, 2) pixels: such that a label's crop lies in an image of (B, 2) pixels, if that is large enough, at (B, 2)
        of the room there. Whole pixels stay whole."""
        room = (size - self.recipe.image_size).clamp(min=0)
        return torch.floor(place * (room + 1)) + (self.recipe.image_size - 1) / 2


def _target(sample: Sample, n_classes: int, recipe: "Recipe") -> Tensor:
    """(1 or 2, H, W) float32: class indices, and the loss's weights if the recipe wants them."""
    planes = [sample.label.astype(np.float32)]
    if recipe.border_weights:
        planes.append(border_weights(sample.label, n_classes))
    return torch.from_numpy(np.stack(planes))
