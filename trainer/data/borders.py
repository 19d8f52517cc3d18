"""Borders of objects: the classes that a network learns to tell objects apart that touch.

0 background, 1 inside of an object, 2 border of an object. Border pixels belong to their object, so that its area is
that of both classes.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from trainer.data.labels import consecutive

INSIDE, BORDER = 1, 2


def border_classes(objects: npt.NDArray[np.integer[Any]], width: int = 2) -> npt.NDArray[np.uint8]:
    """Classes (H, W) of object ids (H, W), 0 background. `width`: of the border, in pixels.

    An outline is border where another object is near, within 2 width + 2; the sides of the image are no outlines. An
    object that is too small for its border gets a thinner one: its deepest pixels are always inside.
    """
    if not objects.any():
        return np.zeros(objects.shape, np.uint8)
    if objects.max() > objects.size:  # a table with a row for every id would be large
        objects = consecutive(objects)
    outline = np.zeros(objects.shape, np.uint8)  # pixels of objects with a neighbour that is not of the same object
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = objects[a] != objects[b]
        outline[a] |= differs
        outline[b] |= differs
    outline[objects == 0] = 0
    if not outline.any():  # one object that fills the image
        return np.full(objects.shape, INSIDE, np.uint8)
    # the way from inside an object to another one's outline crosses its own
    depth = cv2.distanceTransform(1 - outline, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    deepest = np.zeros(int(objects.max()) + 1, np.float32)
    np.maximum.at(deepest, objects, depth)
    border = (depth < np.minimum(deepest, np.float32(width))[objects]) & _near_another(objects, 2 * width + 2)
    return np.where(objects == 0, 0, np.where(border, BORDER, INSIDE)).astype(np.uint8)


def _near_another(objects: npt.NDArray[np.integer[Any]], distance: int) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) of objects from which another object is at most `distance` away, along rows and columns."""
    highest = objects.astype(np.float32)  # as cv2.dilate wants it; exact up to 2**24 objects
    lowest = np.where(highest > 0, highest.max() + 1 - highest, 0)  # its maximum is that of the lowest id
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    differs = (cv2.dilate(highest, square) != highest) | (cv2.dilate(lowest, square) != lowest)
    return np.asarray(differs & (highest > 0))
