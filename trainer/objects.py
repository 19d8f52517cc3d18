"""Scores of objects over a whole set of images: how many are found, at how good an overlap, split or merged."""

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.labels import consecutive

Ids = npt.NDArray[np.integer[Any]]


class ObjectCounts:
    """Detection scores of objects over a set of images, as in Data Science Bowl 2018 (Caicedo et al. 2019) and StarDist
    (Schmidt et al. 2018). Objects are matched by intersection over union (IoU) above a threshold of at least 0.5, so
    that none has two partners."""

    TENTHS = np.arange(5, 10)
    """Thresholds of the IoU, in tenths."""

    def __init__(self) -> None:
        self.matched, self.spurious, self.missed = np.zeros((3, len(self.TENTHS)), np.int64)  # TP, FP, FN
        self.iou = 0.0  # sum over the pairs that match at 0.5
        self.splits = self.merges = self.true = 0

    def add(self, predicted: Ids, true: Ids, ignored: npt.NDArray[np.bool_] | None = None) -> None:
        """Counts an image: object ids (H, W), 0 background. `ignored` pixels belong to no object; a predicted object
        that mostly lies there is never spurious."""
        predicted, true = consecutive(predicted).ravel(), consecutive(true).ravel()
        drawn = np.bincount(predicted)
        if ignored is not None:
            seen = ~ignored.ravel()
            predicted, true = predicted[seen], true[seen]
        pairs, common = np.unique(true * len(drawn) + predicted, return_counts=True)
        row, column = np.divmod(pairs, len(drawn))  # of the overlap matrix, which is sparse
        area = np.bincount(column, common, len(drawn)).astype(np.int64)
        true_area = np.bincount(row, common).astype(np.int64)
        real = (row > 0) & (column > 0)
        row, column, common = row[real], column[real], common[real]
        union = area[column] + true_area[row] - common

        n_true = int((true_area[1:] > 0).sum())
        countable = 1 + np.flatnonzero(2 * area[1:] >= drawn[1:])
        for k, tenths in enumerate(self.TENTHS):
            hit = 10 * common > tenths * union
            self.matched[k] += hit.sum()
            self.spurious[k] += len(np.setdiff1d(countable, column[hit]))
            self.missed[k] += n_true - hit.sum()
        hit = 2 * common > union
        self.iou += float((common[hit] / union[hit]).sum())
        self.true += n_true
        self.splits += int((np.bincount(row[2 * common > area[column]]) > 1).sum())
        self.merges += int((np.bincount(column[2 * common > true_area[row]]) > 1).sum())

    def scores(self) -> dict[str, float]:
        """Scores of all objects of the set together; NaN where there are none.

        ap_50 to ap_90: TP / (TP + FP + FN) at an IoU above 0.5 ... 0.9. pq: panoptic quality (Kirillov et al. 2019),
        the mean IoU of the pairs at 0.5 times the Dice of their number. splits: true objects that hold two or more
        predicted ones, each by more than half of it; merges: predicted objects that hold two or more true ones.
        objects, predicted: how many there are.
        """
        total = self.matched + self.spurious + self.missed
        ap = np.divide(self.matched, total, out=np.full(len(total), np.nan), where=total > 0)
        hits, pairs = int(self.matched[0]), int(self.matched[0] + total[0])
        return {f"ap_{10 * t}": float(value) for t, value in zip(self.TENTHS, ap, strict=True)} | {
            "pq": 2 * self.iou / pairs if pairs else float("nan"),
            "splits": self.splits,
            "merges": self.merges,
            "objects": self.true,
            "predicted": hits + int(self.spurious[0]),
        }
