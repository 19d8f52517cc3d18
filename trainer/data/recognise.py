"""Recognition of what the values in labels are: classes, object ids, or soft edges between classes.

A value is *one piece* in a page if most of its pixels are connected and some lie inside it, and *thin* if none do.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected_components

Array = npt.NDArray[Any]

MAX_CLASSES = 64
WINDOW = 4096  # pixels: of larger pages only the middle is looked at
FEW = 8  # as many values may be classes even where each is one piece
SOFT_GAP = 16  # classes with soft edges are at least as far apart: of 0, 1, 2 the 1 is a class


class Look(NamedTuple):
    """What the values of one page look like: arrays with an element, or a row, for each."""

    values: Array
    pixels: Array
    inside: Array  # pixels whose four neighbours have the same value
    one_piece: npt.NDArray[np.bool_]
    features: Array  # (n, 4): brightness in the image, log of the size, x and y of the centre


class Verdict(NamedTuple):
    """What the values are, and why, in words."""

    kind: Literal["classes", "ids", "soft", "unclear"]
    seen: str = ""
    values: tuple[int, ...] = ()  # those of soft edges


def look(values: Array, image: Array, background: int = 0, known: list[int] | None = None) -> Look:
    """Look of the values (H, W) of a label and its image, (H, W) or (H, W, C); of those not `known`, background."""
    top, left = (max(0, (side - WINDOW) // 2) for side in values.shape)
    window = slice(top, top + WINDOW), slice(left, left + WINDOW)
    values = values[window]
    if known is not None:
        values = np.where(np.isin(values, known), values, background)
    distinct, index = np.unique(values, return_inverse=True)
    height, width = values.shape
    index = index.reshape(height, width)
    same = index[1:] == index[:-1], index[:, 1:] == index[:, :-1]
    inside = np.zeros(index.shape, bool)
    inside[1:-1, 1:-1] = (same[0][1:] & same[0][:-1])[:, 1:-1] & (same[1][:, 1:] & same[1][:, :-1])[1:-1]

    n, flat = len(distinct), index.ravel()
    pixels = np.bincount(flat)
    pieces = connected_components(index + 1, connectivity=2, background=0).ravel()
    sizes, owner = np.bincount(pieces), np.zeros(pieces.max() + 1, np.intp)
    owner[pieces] = flat
    largest = np.zeros(n)
    np.maximum.at(largest, owner[1:], sizes[1:])
    n_inside = np.bincount(index[inside], minlength=n)

    grey: Array = np.nan_to_num(np.atleast_3d(image[window]).mean(axis=2, dtype=np.float32))
    grey = (grey - grey.mean()) / max(float(grey.std()), 1e-9)
    y, x = np.indices((height, width), np.float32)
    means = [np.bincount(flat, each.ravel()) / pixels for each in (grey, x / width, y / height)]
    one_piece = (largest >= 0.9 * pixels) & (n_inside > 0)
    return Look(distinct, pixels, n_inside, one_piece, np.stack([means[0], np.log(pixels), *means[1:]], axis=1))


def recognise(looks: Sequence[Look], background: int, *, wide: bool, coloured: bool) -> Verdict:
    """Verdict on the values of a data set. `wide`: they are stored in 16 bits or more, as programs that number objects
    do, though few values would fit in 8; `coloured`: they stand for colours.

    Object ids are each one piece and differ from image to image, and unlike a class an id has no look of its own: how
    bright, how large and where an object is does not depend on its number.
    """
    found = [each.values != background for each in looks]
    values = np.concatenate([each.values[kept] for each, kept in zip(looks, found, strict=True)])
    pieces = np.concatenate([each.one_piece[kept] for each, kept in zip(looks, found, strict=True)])
    features = np.concatenate([each.features[kept] for each, kept in zip(looks, found, strict=True)])
    distinct = np.unique(values)
    if len(distinct) < 2:
        return Verdict("classes")
    if len(distinct) > MAX_CLASSES:
        if pieces.mean() >= 0.8:
            return Verdict("ids", "each value is one connected piece, and they are more than classes can be")
    else:
        sets = {tuple(each.values[kept]) for each, kept in zip(looks, found, strict=True) if kept.any()}
        own_look = _own_look(features, values)
        differ = len(sets) > 1 or len(looks) == 1
        # whether there is enough to go by; a few values that are in all images are rather classes
        told = len(distinct) > FEW or (len(distinct) > 2 and own_look is not None and (differ or wide))
        if pieces.mean() >= 0.95 and (len(distinct) > 2 or wide):
            seen = "each value is one connected piece"
            if told and not own_look:
                places = ", and they differ from image to image" if len(sets) > 1 else ", and not at its own place"
                return Verdict("ids", seen + places * (len(looks) > 1))
            if len(distinct) > FEW:
                return Verdict("unclear", f"{len(distinct)} values, {seen} with a place or brightness of its own")
            return Verdict("classes", f"{seen}: if they are object ids, --labels instances")
        if wide and pieces.mean() >= 0.5 and len(sets) > 1 and own_look is False and len(distinct) > 2:
            return Verdict("ids", "most values are one connected piece, they differ from image to image, 16 bits")
    return _soft_edges(looks, coloured) or Verdict("classes")


def _own_look(features: Array, values: Array) -> bool | None:
    """Whether values that are in several images look alike in them: in brightness, or two of size, x and y. None if
    there are too few to know."""
    distinct, index, count = np.unique(values, return_inverse=True, return_counts=True)
    repeated = count[index] > 1
    distinct, index = np.unique(values[repeated], return_inverse=True)
    n, groups = len(index), len(distinct)
    if not n:
        return False if len(values) > FEW else None  # each value is in one image only
    if n - groups < 4:
        return None
    within = np.stack([_variation(features[repeated][index == i]) for i in range(groups)]).sum(axis=0)
    total = _variation(features[repeated])
    # adjusted R^2 of each feature
    explained = np.where(total > 1e-9, 1 - (within / (n - groups)) / (np.maximum(total, 1e-9) / (n - 1)), 0)
    return bool(explained[0] > 0.5 or (explained[1:] > 0.5).sum() >= 2)


def _variation(features: Array) -> Array:
    """Sum of squares around the mean, of each feature."""
    squares: Array = ((features - features.mean(axis=0)) ** 2).sum(axis=0)
    return squares


def _soft_edges(looks: Sequence[Look], coloured: bool) -> Verdict | None:
    """Verdict for a few main values with thin, rare ones between them (for colours: beside them)."""
    distinct, index = np.unique(np.concatenate([each.values for each in looks]), return_inverse=True)
    pixels = np.bincount(index, np.concatenate([each.pixels for each in looks]))
    inside = np.bincount(index, np.concatenate([each.inside for each in looks]))
    thin = (inside < 0.1 * pixels) & (pixels < 0.02 * pixels.sum())
    main = distinct[~thin]
    if len(main) < 2:
        return None
    between = thin & (coloured | ((distinct > main[0]) & (distinct < main[-1])))
    n, share = int(between.sum()), pixels[between].sum() / pixels.sum()
    enough = n >= max(3, len(distinct) / 2) or (n and len(main) == 2 and not coloured)
    if not enough or (main[-1] - main[0] < SOFT_GAP and not coloured):
        return None
    where = "are thin" if coloured else f"lie between {main[0]} and {main[-1]}"
    seen = f"{n} of {len(distinct)} {'colours' if coloured else 'values'} cover {share:.1%} of the pixels and {where}"
    return Verdict("soft", f"{seen}: soft edges", tuple(distinct[between].tolist()))
