"""Outlines of objects, colours of lines, and the place of a page in its stack: for kinds that draw or list shapes."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from unet.outputs.kind import Legend, Results
from unet.outputs.labels import Ids

Ring = npt.NDArray[np.float64]
"""(n, 2), x and y in pixels from the image's corner, multiples of 0.5; the last point is the first."""

DARK, WHITE = 64, (255, 255, 255)


def outlines(ids: Ids) -> Iterator[list[Ring]]:
    """Rings of each object 1, 2, ...: around it, counter-clockwise if y pointed up, then around its holes, clockwise.

    They go through the middles of the sides between pixels and cut corners, so that no ring touches itself or another
    ring of its object, and objects that touch have lines in common but do not overlap. A ring encloses half a pixel
    less than the object, or the hole, has.
    """
    from scipy.ndimage import find_objects  # here, as both take long to import
    from skimage.measure import find_contours

    padded = np.pad(ids, 1)
    for i, (rows, columns) in enumerate(find_objects(ids), 1):
        mask = padded[rows.start : rows.stop + 2, columns.start : columns.stop + 2] == i
        corner = columns.start - 0.5, rows.start - 0.5  # of the first pixel's centre, before the padding
        # in the order of their uppermost points: the one around the object first
        yield [ring[:, ::-1] + corner for ring in find_contours(mask, 0.5)]


def vertices(ring: Ring) -> Ring:
    """The ring without the points that lie on a straight line."""
    steps = np.diff(ring, axis=0)
    points = ring[:-1][(steps != steps[np.arange(len(steps)) - 1]).any(axis=1)]
    return np.concatenate([points, points[:1]])


def pixel_corners(ring: Ring) -> npt.NDArray[np.int32]:
    """The ring along the sides of pixels instead, (n, 2), not closed. It encloses exactly the object's, or the hole's,
    pixels, and may touch itself at a corner."""
    before, after = ring[:-1], ring[1:]
    cut = (before != after).all(axis=1)
    return np.asarray(np.where(before % 1 == 0, before, after)[cut], np.int32)


def line_colours(legend: Legend) -> list[tuple[int, ...]]:
    """RGB of each class: its own, or white where that is so dark that a line would not show."""
    return [colour if max(colour) >= DARK else WHITE for colour in legend.class_colours]


def place(results: Results, page: int) -> dict[str, int]:
    """Indices, from 0, of a page, from 1, by axis, t, z or both. Pages that nothing describes are times, as for
    Bio-Formats."""
    stack = results.picture.metadata.stack
    if not stack.keys() <= {"T", "Z"} or math.prod(stack.values()) != results.n_in_file:
        stack = {"T": results.n_in_file}
    indices = np.unravel_index(page - 1, tuple(stack.values()))
    return {axis.lower(): int(index) for axis, index in zip(stack, indices, strict=True)}
