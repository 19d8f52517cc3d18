"""The scale of images that their labels ask for: how wide the things are that are to be found.

A network of four levels sees about 180 pixels around a pixel. Where everything is wider, images are shrunk, so that it
sees a thing as a whole; the answer is enlarged again (see `Preprocessing.scale`). Small things are found at their own
size: nuclei of 15 pixels came out no better in images twice as large.
"""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from trainer.data.dataset import Sample
from trainer.losses import IGNORED

LARGE, WANTED = 256.0, 128.0
"""Width in pixels of the narrowest class from which images are shrunk, and about the width that it has then."""
MEASURED, LONGEST = 64, 2048
"""Samples that are measured, and the pixels of a side: of a larger image every second, every third, ..."""


def scale_for(samples: Sequence[Sample]) -> float:
    """Factor to resize images by: 1, or 1/2, 1/3, ... 1/32 for large structures."""
    width = narrowest(samples[:: max(1, len(samples) // MEASURED)])
    return 1 / min(32, round(width / WANTED)) if width > LARGE else 1.0


def narrowest(samples: Sequence[Sample]) -> float:
    """Width in pixels of the class with the thinnest parts: four times the mean distance of a class's pixels to its
    outline, which is the width of a stripe and two thirds of the diameter of a disc. Objects that touch count apart."""
    sums: dict[int, float] = defaultdict(float)
    counts: dict[int, int] = defaultdict(int)
    for sample in samples:
        step = -(-max(sample.label.shape) // LONGEST)
        label = sample.label[::step, ::step]
        apart = np.zeros(label.shape, bool)  # whether a pixel has another object, or none, above or on its left
        if sample.objects is not None:
            ids = sample.objects[::step, ::step]
            apart[1:] = ids[1:] != ids[:-1]
            apart[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        for value in set(sample.counts) - {IGNORED}:
            inside = cv2.copyMakeBorder(((label == value) & ~apart).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
            sums[value] += step * float(cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_5).sum())
            counts[value] += int(inside.sum())
    return min(4 * sums[value] / counts[value] for value in sums if counts[value])
