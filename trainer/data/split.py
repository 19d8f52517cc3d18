"""Splits of a data set into images to train on and images to validate on, as lists of indices."""

import math
from typing import Literal

import numpy as np

from unet.errors import UserError

SplitKind = Literal["contiguous", "random"]
"""`contiguous` validates on neighbours: similar slices of a stack stay on one side. `random` follows the seed."""


def split(n_samples: int, fraction: float, kind: SplitKind, seed: int) -> tuple[list[int], list[int]]:
    """Indices for (training, validation), at least one each; a single sample is on both sides. Validation gets
    `fraction` of the samples, rounded down: with `contiguous` the last ones."""
    if n_samples == 1:
        return [0], [0]
    n_val = min(max(1, math.floor(n_samples * fraction + 1e-9)), n_samples - 1)
    order = _order(n_samples, kind, seed)
    return sorted(order[:-n_val]), sorted(order[-n_val:])


def split_fold(n_samples: int, folds: int, fold: int, kind: SplitKind, seed: int) -> tuple[list[int], list[int]]:
    """Indices for (training, validation) in fold 1 .. `folds` of a cross-validation: each sample is validated on once.
    Raises UserError if there is no such fold, or more folds than samples."""
    if not 1 <= fold <= folds <= n_samples:
        raise UserError(
            f"--fold {fold} --folds {folds}: expected 1 <= fold <= folds <= {n_samples}, the number of images"
        )
    val = np.array_split(_order(n_samples, kind, seed), folds)[fold - 1].tolist()
    return [i for i in range(n_samples) if i not in val], sorted(val)


def _order(n_samples: int, kind: SplitKind, seed: int) -> list[int]:
    order = np.arange(n_samples) if kind == "contiguous" else np.random.default_rng(seed).permutation(n_samples)
    return [int(i) for i in order]
