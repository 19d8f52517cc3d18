"""`--fold all`: cross-validation, a run for each part of the images, and the mean of their scores."""

from collections.abc import Sequence

import numpy as np

from trainer.curve import Point
from trainer.data import Sample
from trainer.inputs import Division, divide
from trainer.settings import TrainSettings
from unet.errors import UserError

CSV = "folds.csv"


def parts(settings: TrainSettings, samples: Sequence[Sample]) -> list[tuple[TrainSettings, Division]]:
    """Settings and images of each run: those of --fold N with --out OUT/fold-N. Raises UserError."""
    if settings.folds is None or settings.curve:
        raise UserError("--fold all: expected --folds with it, the number of parts, and no --curve")
    numbers = range(1, settings.folds + 1)
    runs = [settings.model_copy(update={"fold": k, "out": settings.out / f"fold-{k}"}) for k in numbers]
    return [(run, divide(samples, run)) for run in runs]


def sentence(points: Sequence[Point]) -> str:
    """Mean and standard deviation of the scores."""
    scores = [point.score for point in points]
    each = ", ".join(f"{score:.4f}" for score in scores)
    return f"score {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}, mean and standard deviation of {each}"


def table(points: Sequence[Point]) -> bytes:
    """CSV: a row for each fold, then their mean and standard deviation."""
    scores = [point.score for point in points]
    rows = [*enumerate(scores, 1), ("mean", np.mean(scores)), ("deviation", np.std(scores, ddof=1))]
    return "".join(["fold,score\n", *(f"{name},{score:.6g}\n" for name, score in rows)]).encode()
