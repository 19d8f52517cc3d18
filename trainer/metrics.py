"""Scores over a whole set of images, from sums of counts: Dice, IoU, pixel error, AUC, and scores of objects."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected_components
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import watershed

Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Scores per class, in the order of the classes; for a binary problem background, foreground. NaN for a class that
    no label has; pixels predicted as such count against the other classes."""

    dice: tuple[float, ...]  # 2 |A and B| / (|A| + |B|), 0..1
    iou: tuple[float, ...]  # |A and B| / |A or B|, 0..1
    pixel_error: float  # share of pixels with the wrong class

    @property
    def score(self) -> float:
        """Mean Dice of all classes, which decides about the best epoch: a rare class counts as much as a common one."""
        return float(np.nanmean(self.dice))


def confusion(predicted: Labels, label: Labels, n_classes: int) -> Counts:
    """Two arrays of class indices of one shape -> (n_classes, n_classes) counts: row label, column prediction."""
    pairs = label.astype(np.int64).ravel() * n_classes + predicted.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def scores(matrix: Counts) -> Scores:
    """Scores from a confusion matrix."""
    hit, total = _overlap(matrix)
    right = matrix.trace() / matrix.sum()
    return Scores(tuple((2 * hit / total).tolist()), tuple((hit / (total - hit)).tolist()), float(1 - right))


def _overlap(matrix: Counts) -> tuple[Counts, npt.NDArray[np.float64]]:
    """Terms of Dice and IoU: |A and B| and |A| + |B|, (n, ...) each, of (n, n, ...); NaN for a class without label."""
    labelled = matrix.sum(axis=1)
    total = matrix.sum(axis=0) + np.where(labelled == 0, np.nan, labelled)
    return np.einsum("ii...->i...", matrix), total


class ThresholdCurve:
    """The confusion matrix of a binary problem at every threshold 0.001, 0.002, ... 0.999, from one pass."""

    BINS = 1000
    EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)
    """Bin k holds EDGES[k] < p <= EDGES[k + 1], so that p > k / 1000 means "bin k or above"; float32, as the predictor
    compares."""
    EDGES[0], EDGES[-1] = -np.inf, np.inf

    def __init__(self) -> None:
        self.counts = np.zeros((2, self.BINS), np.int64)

    def add(self, probabilities: FloatArray, label: Labels) -> None:
        """Counts an image: (H, W) probabilities of the foreground and (H, W) class indices."""
        bins = (probabilities.astype(np.float64) * self.BINS).astype(np.int32)  # one too high for p on an edge
        bins -= probabilities <= self.EDGES[bins]
        self.counts += np.bincount(
            label.astype(np.int64).ravel() * self.BINS + bins.ravel(), minlength=2 * self.BINS
        ).reshape(2, self.BINS)

    def best(self) -> tuple[float, Scores]:
        """The threshold with the highest score, and its scores; of several the one nearest to 0.5."""
        below = np.cumsum(self.counts, axis=1)[:, :-1]  # row label, column k - 1
        above = self.counts.sum(axis=1, keepdims=True) - below
        hit, total = _overlap(np.stack([below, above], axis=1))  # label, prediction, k - 1
        score = np.nanmean(2 * hit / total, axis=0)
        highest = 1 + np.flatnonzero(score == score.max())
        k = int(highest[np.abs(highest / self.BINS - 0.5).argmin()])
        return k / self.BINS, scores(self.confusion(k))

    def confusion(self, k: int) -> Counts:
        """Confusion matrix at the threshold k / 1000."""
        below, above = self.counts[:, :k].sum(axis=1), self.counts[:, k:].sum(axis=1)
        return np.stack([below, above], axis=1)

    def auc(self) -> float:
        """Area under the ROC curve: probability that a foreground pixel ranks above a background one, ties a half.
        There must be pixels of both."""
        background, foreground = self.counts
        lower = np.cumsum(background) - background / 2
        return float((foreground * lower).sum() / (background.sum() * foreground.sum()))


def object_scores(probabilities: FloatArray, label: Labels, threshold: float) -> dict[str, float] | None:
    """Quality of the separation of objects, restricted to the foreground as in ISBI 2012 (Arganda-Carreras et al.
    2015): `rand`, V_rand in 0..1, 1 is perfect; `information`, variation of information in bits, 0 is perfect.

    (H, W) probabilities of the foreground are compared with (H, W) class indices. Components above the threshold grow
    over the probability until they meet (watershed), so that the thickness of a border does not count. None for a label
    without two objects, or with single pixels only.
    """
    truth = connected_components(label > 0, connectivity=1)
    sizes = np.bincount(truth.ravel())[1:]
    if len(sizes) < 2 or sizes.max() < 2:
        return None
    grown = watershed(-probabilities, connected_components(probabilities > threshold, connectivity=1))
    error, _, _ = adapted_rand_error(truth, grown, ignore_labels=(0,))
    splits, mergers = variation_of_information(truth, grown, ignore_labels=(0,))
    return {"rand": float(1 - error), "information": float(splits + mergers)}
