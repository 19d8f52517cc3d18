"""Batches of augmented crops, cut on the training device; the same ones for the same seed and epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer import world
from trainer.data.augment import RandomValues, adjust_grey, draw, sample_image, sampling_grid, to_image
from trainer.data.borders import border_classes
from trainer.data.dataset import Sample
from trainer.losses import IGNORED, border_weights
from trainer.recipes import Recipe
from unet.errors import UserError
from unet.network import STRIDE, UNet
from unet.pixels import Preprocessing


class Batch(NamedTuple):
    """B crops of S x S pixels; images show the network's margin around them as well."""

    images: Tensor  # (B, C, S + 2 margin, S + 2 margin) float32, preprocessed as for prediction
    labels: Tensor  # (B, S, S) int64 class indices
    weights: Tensor | None  # (B, S, S) float32 weights of pixels in the loss, if the recipe has border weights
    plain: Tensor  # as `images`, moved in the same way, but as bright, sharp and free of noise as in prediction


PLACES = 100
"""Pixels kept of each class in each image, to centre crops on."""


class Batches:
    """`for batch in batches.epoch(3)`. On a GPU all work is queued without waiting for it, so that a batch is ready
    when the step before is done."""

    def __init__(
        self, samples: list[Sample], network: UNet, preprocessing: Preprocessing, recipe: Recipe, seed: int
    ) -> None:
        if recipe.batch_size % world.size():
            raise UserError(f"--batch-size {recipe.batch_size}: expected a multiple of the {world.size()} processes")
        if recipe.variant != "paper" and recipe.image_size == STRIDE and recipe.batch_size == world.size():
            raise UserError(
                f"--image-size {STRIDE} leaves one pixel at the bottom of the network, and batch norm needs more than "
                "one value; expected a larger --image-size, or a --batch-size of 2 per process"
            )
        self.recipe, self.seed, self.margin = recipe, seed, network.margin
        self.device = device = next(network.parameters()).device
        n_channels, n_classes = network.config.n_channels, max(2, network.config.n_classes)
        # whole images are preprocessed once, exactly as in prediction, and stay on the device
        self.images = [preprocessing(s.image, n_channels).tensor().contiguous().to(device) for s in samples]
        self.labels = [torch.from_numpy(target(s)).float()[None].to(device) for s in samples]  # (1, H, W)
        known = [np.where(s.label == IGNORED, 0, s.label) for s in samples] if recipe.border_weights else []
        weights = [border_weights(label, n_classes) for label in known]
        self.weights = [torch.from_numpy(each)[None].to(device) for each in weights]  # (1, H, W)
        crops = [max(1, round(s.label.size / recipe.image_size**2)) for s in samples]
        self.order = np.repeat(np.arange(len(samples)), crops)  # in proportion to area
        self.rare = places_of_rare_classes(samples, n_classes, seed) if recipe.balance else []

    def __len__(self) -> int:
        """Number of batches in an epoch, all of the same size."""
        return max(self.recipe.min_steps, -(-len(self.order) // self.recipe.batch_size))

    def epoch(self, epoch: int, n_batches: int | None = None) -> Iterator[Batch]:
        """This process's share of each batch, of which there are `n_batches`, by default len(self): all processes draw
        the same values, each takes every n-th crop."""
        shuffle = np.random.default_rng((self.seed, epoch))
        size = self.recipe.batch_size
        n_crops = (n_batches or len(self)) * size
        passes = -(-n_crops // len(self.order))
        order = np.concatenate([shuffle.permutation(self.order) for _ in range(passes)])
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        share = slice(world.rank(), None, world.size())
        for start in range(0, n_crops, size):
            values = draw(size, self.recipe.image_size + 2 * self.margin, self.recipe.augmentation, rng)
            chosen = order[start : start + size].copy()
            for i in np.flatnonzero(shuffle.random(size) < self.recipe.balance) if self.rare else ():
                images = self.rare[shuffle.integers(len(self.rare))]
                chosen[i], pixels = images[shuffle.integers(len(images))]
                values.place[i] = self._place(chosen[i], pixels[shuffle.integers(len(pixels))])
            yield self._batch(chosen[share], values.select(share, self.device))

    def _place(self, image: int, pixel: npt.NDArray[np.intp]) -> Tensor:
        """`place` (2,) x, y in 0..1 of the crop with this pixel (y, x) in its middle, or as near as it can be."""
        side = self.recipe.image_size
        size = torch.tensor(self.images[image].shape[:0:-1])
        first = torch.from_numpy(pixel[::-1] - (side - 1) // 2)
        return ((first + 0.5) / (size - side + 1).clamp(min=1)).clamp(0, 1 - 1e-6)

    def _batch(self, chosen: npt.NDArray[np.intp], values: RandomValues) -> Batch:
        def cut(sources: list[Tensor], grids: Tensor, mode: str) -> Tensor:
            return torch.stack([sample_image(sources[i], grid, mode) for i, grid in zip(chosen, grids, strict=True)])

        augmentation, side, margin = self.recipe.augmentation, self.recipe.image_size, self.margin
        seen = side + 2 * margin
        size = torch.tensor([self.images[i].shape[:0:-1] for i in chosen], dtype=torch.float32)  # (B, 2) x, y
        # a crop lies within its image if that is large enough, and begins at a whole pixel
        centre = torch.floor(values.place * ((size - side).clamp(min=0) + 1)) + (side - 1) / 2  # (B, 2) x, y
        centre, size = (each.to(self.device, non_blocking=True) for each in (centre, size))
        grids = to_image(sampling_grid(values, seen, augmentation), centre, size)  # (B, seen, seen, 2)
        plain = cut(self.images, grids, "bilinear")
        grids = grids[:, margin : margin + side, margin : margin + side]
        labels = cut(self.labels, grids, "nearest")[:, 0].round().long()
        weights = cut(self.weights, grids, "nearest")[:, 0] if self.weights else None
        return Batch(adjust_grey(plain, values, augmentation), labels, weights, plain)


def target(sample: Sample) -> npt.NDArray[np.uint8]:
    """Class indices (H, W) to learn: those of the label, or of objects and their borders (see `borders`)."""
    if sample.objects is None:
        return sample.label
    return np.where(sample.label == IGNORED, sample.label, border_classes(sample.objects, where="touching"))


def places_of_rare_classes(
    samples: list[Sample], n_classes: int, seed: int
) -> list[list[tuple[int, npt.NDArray[np.intp]]]]:
    """For each class that an image has, but the most common one: pixels to centre crops on. They are a list over the
    images with that class: number of the image, and (n, 2) y, x drawn at random, n <= PLACES."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(n_classes, np.int64)
    found: list[list[tuple[int, npt.NDArray[np.intp]]]] = [[] for _ in range(n_classes)]
    for i, sample in enumerate(samples):
        flat = sample.label.ravel()
        counts += np.bincount(flat, minlength=IGNORED + 1)[:n_classes]
        for value in range(n_classes):
            if len(pixels := np.flatnonzero(flat == value)):
                chosen = rng.choice(pixels, min(PLACES, len(pixels)), replace=False)
                found[value].append((i, np.stack(np.unravel_index(chosen, sample.label.shape), axis=1)))
    return [places for value, places in enumerate(found) if places and value != counts.argmax()]
