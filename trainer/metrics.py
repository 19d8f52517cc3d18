"""Scores over a whole set of images, from sums of counts: Dice, IoU, pixel error, AUC, and scores of objects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected_components
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import watershed

from trainer.losses import IGNORED

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
        """Mean Dice of all classes: a rare class counts as much as a common one. NaN without any labelled pixel."""
        known = [dice for dice in self.dice if not math.isnan(dice)]
        return sum(known) / len(known) if known else math.nan


def confusion(predicted: Labels, label: Labels, n_classes: int) -> Counts:
    """Two arrays of class indices of one shape -> (n_classes, n_classes) counts: row label, column prediction. Pixels
    whose label is IGNORED do not count."""
    known = label != IGNORED
    pairs = label[known].astype(np.int64) * n_classes + predicted[known].astype(np.int64)
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def scores(matrix: Counts) -> Scores:
    """Scores from a confusion matrix."""
    hit, total = _overlap(matrix)
    wrong = 1 - float(matrix.trace()) / float(matrix.sum()) if matrix.any() else math.nan
    return Scores(tuple((2 * hit / total).tolist()), tuple((hit / (total - hit)).tolist()), wrong)


def _overlap(matrix: Counts) -> tuple[Counts, npt.NDArray[np.float64]]:
    """Terms of Dice and IoU: |A and B| and |A| + |B|, (n, ...) each, of (n, n, ...); NaN for a class without label."""
    labelled = matrix.sum(axis=1)
    total = matrix.sum(axis=0) + np.where(labelled == 0, np.nan, labelled)
    return np.einsum("ii...->i...", matrix), total


class ThresholdCurve:
    """Confusion matrices of a binary problem at every threshold 0.001, 0.002, ... 0.999, for each image."""

    BINS = 1000
    EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)
    """Bin k holds EDGES[k] < p <= EDGES[k + 1], so that p > k / 1000 means "bin k or above"; float32, as the predictor
    compares."""
    EDGES[0], EDGES[-1] = -np.inf, np.inf

    def __init__(self) -> None:
        self.images: list[Counts] = []  # (2, BINS) each: row label, column probability

    def add(self, probabilities: FloatArray, label: Labels) -> None:
        """Counts an image: probabilities of the foreground and class indices, of one shape. Pixels with IGNORED do not
        count, nor does an image of nothing else."""
        known = label != IGNORED
        if not known.any():
            return
        probabilities, label = probabilities[known], label[known]
        bins = (probabilities.astype(np.float64) * self.BINS).astype(np.int32)  # one too high for p on an edge
        bins -= probabilities <= self.EDGES[bins]
        counts = np.bincount(label.astype(np.int64) * self.BINS + bins, minlength=2 * self.BINS)
        self.images.append(counts.reshape(2, self.BINS))

    def threshold(self) -> float:
        """The threshold nearest to 0.5 whose mean score over the images is within one standard error of the best: a few
        images are no reason to leave 0.5 (the one-standard-error rule of Breiman et al. 1984, for cross-validation)."""
        gain = np.stack([_score_by_threshold(counts) for counts in self.images])
        gain -= gain[:, [self.BINS // 2 - 1]]  # over 0.5, image by image: some are easier than others
        if len(gain) < 2:
            return 0.5
        mean, error = gain.mean(axis=0), gain.std(axis=0, ddof=1) / np.sqrt(len(gain))
        best = int(mean.argmax())
        good = 1 + np.flatnonzero(mean >= mean[best] - error[best])
        return float(good[np.abs(good / self.BINS - 0.5).argmin()]) / self.BINS

    def confusions(self, threshold: float) -> list[Counts]:
        """Confusion matrix of each image at a threshold that is a multiple of 0.001."""
        k = round(threshold * self.BINS)
        return [np.stack([each[:, :k].sum(axis=1), each[:, k:].sum(axis=1)], axis=1) for each in self.images]

    def auc(self) -> float:
        """Area under the ROC curve: probability that a foreground pixel ranks above a background one, ties a half.
        NaN if there are pixels of one class only."""
        background, foreground = np.stack(self.images).sum(axis=0)
        pairs = int(background.sum()) * int(foreground.sum())
        lower = np.cumsum(background) - background / 2
        return float((foreground * lower).sum() / pairs) if pairs else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of the values that are not NaN; NaN for fewer than two of them."""
    known = np.array(values)[np.isfinite(values)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else math.nan


def _score_by_threshold(counts: Counts) -> npt.NDArray[np.float64]:
    """Score (mean Dice of the classes) at each threshold, (BINS - 1,), from counts (2, BINS)."""
    below = np.cumsum(counts, axis=1)[:, :-1]  # row label, column k - 1
    above = counts.sum(axis=1, keepdims=True) - below
    hit, total = _overlap(np.stack([below, above], axis=1))  # label, prediction, k - 1
    return np.asarray(np.nanmean(2 * hit / total, axis=0))


def object_scores(probabilities: FloatArray, label: Labels, threshold: float) -> dict[str, float] | None:
    """Quality of the separation of objects, restricted to the foreground as in ISBI 2012 (Arganda-Carreras et al.
    2015): `rand`, V_rand in 0..1, 1 is perfect; `information`, variation of information in bits, 0 is perfect.

    (H, W) probabilities of the foreground are compared with (H, W) class indices. Components above the threshold grow
    over the probability until they meet (watershed), so that the thickness of a border does not count. None for a label
    without two objects, or with single pixels only.
    """
    truth = connected_components((label > 0) & (label != IGNORED), connectivity=1)
    sizes = np.bincount(truth.ravel())[1:]
    if len(sizes) < 2 or sizes.max() < 2:
        return None
    grown = watershed(-probabilities, connected_components(probabilities > threshold, connectivity=1))
    error, _, _ = adapted_rand_error(truth, grown, ignore_labels=(0,))
    splits, mergers = variation_of_information(truth, grown, ignore_labels=(0,))
    return {"rand": float(1 - error), "information": float(splits + mergers)}
