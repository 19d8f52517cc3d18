"""Splits of a data set into images to train on and images to validate on, as lists of indices."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Sample
from trainer.data.labels import has_colour
from trainer.losses import IGNORED
from unet.errors import UserError
from unet.pixels import match_channels, to_pixels

SplitKind = Literal["auto", "contiguous", "spread", "random"]
"""`contiguous` validates on the last images by name: the similar slices of a stack stay on one side. `spread` validates
on images of every kind: size, colour, brightness, start of the name. `random` follows the seed. `auto` is `contiguous`
for stacks, else `spread`."""

STACK_CORRELATION = 0.2
"""Neighbours of a stack correlate by so much more than distant slices do. Measured on thumbnails: 0.23 to 0.52 for ISBI
2012 and the VNC stack; at most 0.02 for retinas and nuclei, 0.16 for street scenes of a video."""
THUMBNAIL = 32  # pixels
PART, MOST_VALIDATED = 1024, 2**24
"""Side of a part of a large image, and the pixels that are validated on in all: seconds on one CPU core at base 16."""


def halves(sample: Sample) -> list[Sample]:
    """The first three quarters of an image and the last one, along its longer side."""
    axis = int(sample.label.shape[1] > sample.label.shape[0])
    cut = sample.label.shape[axis] * 3 // 4
    names = {"first three quarters": slice(cut), "last quarter": slice(cut, None)}
    return [part(sample, name, (slice(None),) * axis + (where,)) for name, where in names.items()]


def bounded(samples: Sequence[Sample]) -> list[Sample]:
    """A fixed choice to validate on: of a large image four parts, and no more than MOST_VALIDATED pixels in all, evenly
    from all samples. What has no labels is left out."""
    parts = [part for sample in samples for part in parts_of(sample) if part.is_labelled]
    pixels = sum(part.label.size for part in parts)
    return parts[:: -(-pixels // MOST_VALIDATED)]


def parts_of(sample: Sample) -> list[Sample]:
    """The sample, or four squares around the middles of its quarters if it is large; one around a labelled pixel if
    these have no labels."""
    height, width = sample.label.shape
    if sample.label.size <= 4 * PART**2:
        return [sample]
    places = [(height * i // 4, width * j // 4) for i in (1, 3) for j in (1, 3)]
    squares = [square(sample, y, x) for y, x in places]
    if sample.is_labelled and not any(each.is_labelled for each in squares):
        labelled = np.flatnonzero(sample.label != IGNORED)
        squares = [square(sample, *divmod(int(labelled[len(labelled) // 2]), width))]
    return squares


def square(sample: Sample, y: int, x: int) -> Sample:
    """The window of PART pixels around a place, or less at a side of the image."""
    top, left = max(0, y - PART // 2), max(0, x - PART // 2)
    return part(sample, f"at {left}, {top}", (slice(top, top + PART), slice(left, left + PART)))


def part(sample: Sample, name: str, window: tuple[slice, ...]) -> Sample:
    """A window of a sample."""
    objects = None if sample.objects is None else sample.objects[window]
    name = f"{sample.name} {name}"
    return replace(sample, name=name, image=sample.image[window], label=sample.label[window], objects=objects)


def split(order: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """Indices for (training, validation), at least one each. Validation gets the last `fraction`, rounded down."""
    n = len(order)
    n_val = min(max(1, math.floor(n * fraction + 1e-9)), n - 1)
    return sorted(order[:-n_val]), sorted(order[-n_val:])


def split_fold(order: Sequence[int], folds: int, fold: int) -> tuple[list[int], list[int]]:
    """Indices for (training, validation) in fold 1 .. `folds` of a cross-validation: each sample is validated on once.
    Raises UserError if there is no such fold, or more folds than samples."""
    if not 1 <= fold <= folds <= len(order):
        raise UserError(f"--fold {fold} --folds {folds}: expected 1 <= fold <= folds <= {len(order)} (images)")
    val = np.array_split(np.array(order), folds)[fold - 1].tolist()
    return sorted(set(order) - set(val)), sorted(val)


def arrange(samples: Sequence[Sample], kind: SplitKind, seed: int) -> list[int]:
    """Order of which any contiguous part is a fair one to validate on, by the kind of split."""
    if kind == "random":
        return [int(i) for i in np.random.default_rng(seed).permutation(len(samples))]
    if kind == "contiguous":
        return list(range(len(samples)))
    # images side by side are of one kind: every part of the bit-reversed sequence has them all
    alike = sorted(range(len(samples)), key=kind_of(samples).__getitem__)
    bits = max(1, (len(alike) - 1).bit_length())
    places = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [alike[place] for place in places if place < len(alike)]


def kind_of(samples: Sequence[Sample]) -> list[tuple[Any, ...]]:
    """What tells the kind of each image, to sort by: start of the name (where images share it), grey or colour, size,
    brightness."""
    starts = [re.split(r"\d", sample.name, maxsplit=1)[0] for sample in samples]
    counts = Counter(starts if len(set(starts)) <= len(samples) / 2 else [])
    kinds = []
    for sample, start in zip(samples, starts, strict=True):
        pixels, unit = to_pixels(sample.image)
        height, width, _ = pixels.shape
        start = start if counts[start] > 1 else ""
        kinds.append((start, has_colour(pixels), height * width, float(pixels.mean()) / unit))
    return kinds


def is_stack(samples: Sequence[Sample]) -> bool:
    """Whether images are slices: of one size, and like their neighbours rather than like the others."""
    if len(samples) < 3 or len({sample.label.shape for sample in samples}) > 1:
        return False
    thumbnails = np.stack([_thumbnail(sample.image) for sample in samples])
    correlation = np.asarray(np.corrcoef(thumbnails.reshape(len(samples), -1)))
    distance = np.abs(np.subtract.outer(np.arange(len(samples)), np.arange(len(samples))))
    near, far = correlation[distance == 1].mean(), correlation[distance >= max(2, len(samples) // 3)].mean()
    return bool(near - far > STACK_CORRELATION)


def _thumbnail(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    pixels = to_pixels(image)[0]
    pixels = np.asarray(match_channels(pixels, 1) if pixels.shape[2] == 3 else pixels, np.float32).mean(axis=2)
    small = cv2.resize(pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    # a little noise: a constant image has no correlation
    return np.asarray(small + np.random.default_rng(0).normal(0, 1e-6, small.shape), np.float64)
