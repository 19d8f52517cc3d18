"""Batches of augmented crops, cut on the training device; the same ones for the same seed and epoch."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer import world
from trainer.data.augment import RandomValues, adjust_grey, draw, sample_image, sampling_grid, to_image
from trainer.data.borders import border_classes
from trainer.data.classes import count
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
RAREST = 1e-3
"""Share of the labelled pixels: a class with a smaller one, such as a slip of the brush, is drawn as if it had this."""


class Batches:
    """`for batch in batches.epoch(3)`. On a GPU all work is queued without waiting for it, so that a batch is ready
    when the step before is done."""

    def __init__(
        self, samples: list[Sample], network: UNet, preprocessing: Preprocessing, recipe: Recipe, seed: int
    ) -> None:
        check_size(recipe)
        self.recipe, self.seed, self.margin = recipe, seed, network.margin
        self.device = device = next(network.parameters()).device
        n_channels, n_classes = network.config.n_channels, max(2, network.config.n_classes)
        # prepared once, exactly as in prediction, and kept on the device; crops are normalised once they are cut
        prepared = [preprocessing(s.image, n_channels) for s in samples]
        targets = [target(s, *each.pixels.shape[:2]) for s, each in zip(samples, prepared, strict=True)]
        n_bytes = sum(each.pixels.nbytes + label.nbytes for each, label in zip(prepared, targets, strict=True))
        fits = device.type != "cuda" or n_bytes < torch.cuda.mem_get_info()[0] // 4
        place = device if fits else torch.device("cpu")
        self.images = [torch.from_numpy(each.pixels).to(place) for each in prepared]  # (H, W, C), mostly uint8
        self.normal = [torch.from_numpy(np.stack([each.offset, each.scale])).to(device) for each in prepared]  # (2, C)
        self.labels = [torch.from_numpy(each)[..., None].to(place) for each in targets]  # (H, W, 1) uint8
        known = [np.where(each == IGNORED, 0, each) for each in targets] if recipe.border_weights else []
        self.weights = [torch.from_numpy(border_weights(each, n_classes))[..., None].to(place) for each in known]
        # how far from its centre a crop may look, in pixels
        how, half = recipe.augmentation, recipe.image_size / 2 + self.margin
        self.reach = math.ceil(half * math.sqrt(2) * (1 + how.scale) + 4 * how.elastic) + 2
        crops = [max(1, round(each.size / recipe.image_size**2)) for each in targets]
        self.order = np.repeat(np.arange(len(samples)), crops)  # in proportion to area
        self.rare, chances = places_of_rare_classes(targets, n_classes, seed) if recipe.balance else ([], [])
        self.chances = chances if all(s.objects is None for s in samples) else None  # objects as often as their borders

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
                images = self.rare[shuffle.choice(len(self.rare), p=self.chances)]
                chosen[i], pixels = images[shuffle.integers(len(images))]
                values.place[i] = self._place(chosen[i], pixels[shuffle.integers(len(pixels))])
            yield self._batch(chosen[share], values.select(share, self.device))

    def _place(self, image: int, pixel: npt.NDArray[np.intp]) -> Tensor:
        """`place` (2,) x, y in 0..1 of the crop with this pixel (y, x) in its middle, or as near as it can be."""
        side = self.recipe.image_size
        size = torch.tensor(self.images[image].shape[1::-1])
        first = torch.from_numpy(pixel[::-1] - (side - 1) // 2)
        return ((first + 0.5) / (size - side + 1).clamp(min=1)).clamp(0, 1 - 1e-6)

    def _batch(self, chosen: npt.NDArray[np.intp], values: RandomValues) -> Batch:
        augmentation, side, margin = self.recipe.augmentation, self.recipe.image_size, self.margin
        seen = side + 2 * margin
        size = torch.tensor([self.images[i].shape[1::-1] for i in chosen])  # (B, 2) x, y
        # a crop lies within its image if that is large enough, and begins at a whole pixel
        centre = torch.floor(values.place * ((size - side).clamp(min=0) + 1)) + (side - 1) / 2  # (B, 2) x, y
        # only a window around the crop is converted to float: an image may be a thousand times as large
        first = (centre.floor().long() - self.reach).clamp(min=0)
        last = torch.minimum(centre.ceil().long() + self.reach, size)
        windows = [(slice(y, v), slice(x, w)) for (x, y), (w, v) in zip(first.tolist(), last.tolist(), strict=True)]
        inside, extent = (each.float().to(self.device, non_blocking=True) for each in (centre - first, last - first))
        grids = to_image(sampling_grid(values, seen, augmentation), inside, extent)  # (B, seen, seen, 2)

        def cut(sources: list[Tensor], grids: Tensor, mode: str) -> Tensor:
            parts = (sources[i][window].to(self.device) for i, window in zip(chosen, windows, strict=True))
            parts = (part.permute(2, 0, 1).float() for part in parts)  # (C, h, w)
            return torch.stack([sample_image(part, grid, mode) for part, grid in zip(parts, grids, strict=True)])

        offset, scale = torch.stack([self.normal[i] for i in chosen], dim=1)[..., None, None]  # (B, C, 1, 1) each
        plain = (cut(self.images, grids, "bilinear") - offset) * scale  # (B, C, seen, seen)
        grids = grids[:, margin : margin + side, margin : margin + side]
        labels = cut(self.labels, grids, "nearest")[:, 0].round().long()
        weights = cut(self.weights, grids, "nearest")[:, 0] if self.weights else None
        return Batch(adjust_grey(plain, values, augmentation), labels, weights, plain)


def check_size(recipe: Recipe) -> None:
    """Raises UserError for batches that cannot be divided, or that batch norm cannot learn from."""
    if recipe.batch_size % world.size():
        raise UserError(f"--batch-size {recipe.batch_size}: expected a multiple of the {world.size()} processes")
    if recipe.variant != "paper" and recipe.image_size == STRIDE and recipe.batch_size == world.size():
        raise UserError(
            f"--image-size {STRIDE} leaves one pixel at the bottom of the network, and batch norm needs more than one "
            "value; expected a larger --image-size, or a --batch-size of 2 per process"
        )


def target(sample: Sample, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Class indices (height, width) to learn, of the label, or of objects and their borders (see `borders`): at the
    size of an image that was resized (see `Preprocessing.scale`)."""
    label = sample.label
    if sample.objects is not None:
        label = np.where(label == IGNORED, label, border_classes(sample.objects))
    if label.shape == (height, width):
        return label
    return np.asarray(cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def places_of_rare_classes(
    targets: list[npt.NDArray[np.uint8]], n_classes: int, seed: int
) -> tuple[list[list[tuple[int, npt.NDArray[np.intp]]]], list[float]]:
    """For each class that an image has, but the most common one: pixels to centre crops on, as a list over the
    images with that class: number of the image, and (n, 2) y, x drawn at random, n <= PLACES. Also the probability of
    each class, inverse to its number of pixels: of four images, in two minutes, synapses (0.3 % of the pixels) reach
    Dice 0.57; drawn evenly, 0."""
    rng = np.random.default_rng(seed)
    counts = [count(label) for label in targets]
    total = sum(counts, Counter[int]())
    del total[IGNORED]  # not a class
    found, chances = [], []
    for value in sorted(range(n_classes), key=total.__getitem__)[:-1]:
        places = []
        for i, label in enumerate(targets):
            if n := counts[i][value]:
                pixels = pixels_of(label.ravel(), value, n, rng)
                chosen = rng.choice(pixels, min(PLACES, len(pixels)), replace=False)
                places.append((i, np.stack(np.unravel_index(chosen, label.shape), axis=1)))
        if places:
            found.append(places)
            chances.append(1 / max(total[value], RAREST * total.total()))
    return found, [chance / sum(chances) for chance in chances]


def pixels_of(label: npt.NDArray[np.uint8], value: int, n: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Places of the `n` pixels of this value in a flat label; in a large one random places of a common value, as all
    would take eight times the memory of the label."""
    if n < len(label) // 1000 or len(label) < 2**20:
        return np.flatnonzero(label == value)
    random = rng.integers(len(label), size=2 * PLACES * len(label) // n)
    return np.asarray(random[label[random] == value])
