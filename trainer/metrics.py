"""Scores from one confusion matrix summed over a whole set of images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Per class, in the order of the classes; for a binary problem background, foreground."""

    dice: tuple[float, ...]
    """2 |A and B| / (|A| + |B|), 0..1; 1 for a class that is nowhere in labels or predictions."""
    iou: tuple[float, ...]
    """|A and B| / |A or B|, 0..1."""
    pixel_error: float
    """Share of pixels with the wrong class."""

    @property
    def score(self) -> float:
        """What "best" means: the mean Dice of all classes, so that a rare class counts as much as a common one."""
        return sum(self.dice) / len(self.dice)


def confusion(predicted: npt.NDArray[np.integer], label: npt.NDArray[np.integer], n_classes: int) -> Counts:
    """Two arrays of class indices of equal shape -> (n_classes, n_classes) counts: row label, column prediction."""
    pairs = label.astype(np.int64).ravel() * n_classes + predicted.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def scores(matrix: Counts) -> Scores:
    hit = np.diag(matrix).astype(float)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)  # |A| + |B|
    absent = total == 0
    dice = np.where(absent, 1.0, 2 * hit / np.where(absent, 1, total))
    iou = np.where(absent, 1.0, hit / np.where(absent, 1, total - hit))
    return Scores(tuple(map(float, dice)), tuple(map(float, iou)), float(1 - hit.sum() / matrix.sum()))
