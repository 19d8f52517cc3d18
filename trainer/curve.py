"""`--curve`: runs with a quarter, half and all of the images to train on, and whether more images would help."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer import pictures
from trainer.data import Sample
from trainer.inputs import Division, classes_in
from trainer.metrics import standard_error
from trainer.settings import TrainSettings
from unet.errors import UserError

CSV, PICTURE, FOLDER = "curve.csv", "curve.png", "curve"
EXPONENTS = sorted(np.arange(0.05, 2.01, 0.05), key=lambda c: abs(c - 0.5))
"""Powers of the number of images with which errors may fall, the usual one first."""
WORTH = 0.005  # a smaller gain in score is none
WIDE = 0.02  # a standard error from which on nothing can be said


@dataclass(frozen=True)
class Point:
    """A run of the curve, or a fold."""

    images: int  # that were learned from
    score: float  # of the held-out images together
    each: list[float]  # score of each held-out image, in the same order in all runs; empty for a fold


def parts(settings: TrainSettings, division: Division) -> list[tuple[TrainSettings, Division]]:
    """Settings and images of each run, the one with all images last: it is in --out, the others in OUT/curve/N. The
    images to validate on are the same in all, and never learned from. Raises UserError if there is one image to train
    on."""
    chosen = subsets(division.training)
    if len(chosen) == 1:
        raise UserError("--curve: expected at least 2 images to train on, and 1 to validate on")
    folders = [settings.out / FOLDER / str(len(training)) for training in chosen[:-1]] + [settings.out]
    return [
        (settings.model_copy(update={"out": out}), replace(division, training=training, held_out_until=1.0))
        for out, training in zip(folders, chosen, strict=True)
    ]


def subsets(training: list[Sample]) -> list[list[Sample]]:
    """Every fourth, every second and all of the samples, each part of the next; of the four ways to begin that with
    most classes. Equal ones are merged."""
    start = max(range(4), key=lambda i: len(classes_in(training[i::4])) if training[i::4] else 0)
    found = {len(part): part for part in (training[start::4], training[start % 2 :: 2], training)}
    return [found[n] for n in sorted(found)]


def fit(points: Sequence[Point]) -> tuple[float, float, float]:
    """a, b and c of the power law score = a - b n^-c (Hestness et al. 2017, https://arxiv.org/abs/1712.00409) with the
    least squares, a <= 1 and b >= 0; where several c fit as well, as with two points, the one nearest to 0.5."""
    n, y = np.array([(point.images, point.score) for point in points]).T
    best, least = (float(y.mean()), 0.0, 0.5), math.inf
    for c in EXPONENTS:
        x = n**-c
        slope, a = np.polyfit(x, y, 1)
        if a > 1:
            a, slope = 1.0, float(((y - 1) * x).sum() / (x**2).sum())
        residual = float(((a + slope * x - y) ** 2).sum())
        if slope < 0 and residual < least - 1e-9:
            best, least = (float(a), float(-slope), float(c)), residual
    return best


def forecast(points: Sequence[Point]) -> float:
    """Score to expect of twice as many images as the last point has; never below that of the last point."""
    a, b, c = fit(points)
    return max(points[-1].score, float(a - b * (2.0 * points[-1].images) ** -c))


def gain(points: Sequence[Point]) -> tuple[float, float]:
    """Mean gain of the last step over the held-out images, and its standard error, which is NaN for one."""
    steps = [after - before for before, after in zip(points[-2].each, points[-1].each, strict=True)]
    return float(np.nanmean(steps)), standard_error(steps)


def sentence(points: Sequence[Point]) -> str:
    """Whether more images would help, as far as these runs say."""
    scores = "; ".join(f"{point.images}: {point.score:.2f}" for point in points)
    scores = scores.replace(":", " image:" if points[0].images == 1 else " images:", 1)
    (gained, error), last = gain(points), points[-1]
    if math.isnan(error):
        return f"{scores}. That is on a single held-out image: too little to tell whether more images would help"
    if gained < error or forecast(points) - last.score < WORTH:
        said = f"{scores}. The last step gained {gained:.3f} ± {error:.3f} on the held-out images"
        if error > WIDE:
            return f"{said}: they differ too much to tell whether more images would help"
        return f"{said}: more images of the same kind will hardly help"
    return f"{scores}; {2 * last.images} would give about {forecast(points):.2f}"


def summary(points: Sequence[Point]) -> dict[str, Any]:
    """The entry `curve` of report.json."""
    return {"points": [asdict(point) for point in points], "says": sentence(points)}


def table(points: Sequence[Point]) -> bytes:
    """CSV: a row for each run; the standard error is empty for one held-out image."""
    rows = [f"{p.images},{p.score:.6g},{standard_error(p.each):.6g}".replace("nan", "") for p in points]
    return "\n".join(["images,score,score_error", *rows, ""]).encode()


def picture(points: Sequence[Point]) -> bytes:
    """PNG: the scores with their standard errors, and the power law through them up to twice as many images."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    n = [point.images for point in points]
    errors = [standard_error(point.each) for point in points]
    axis.errorbar(n, [point.score for point in points], np.nan_to_num(errors), fmt="o", capsize=4, label="runs")
    a, b, c = fit(points)
    x = np.geomspace(n[0], 2 * n[-1], 100)
    axis.plot(x, a - b * x**-c, ":", color="0.5", label=f"{a:.3f} - {b:.3f} n^-{c:.2f}")
    axis.set_xscale("log", base=2)
    axis.set_xticks([*n, 2 * n[-1]], labels=[*map(str, n), str(2 * n[-1])])
    axis.minorticks_off()
    axis.set(xlabel="images learned from", ylabel="score on the held-out images", ylim=(None, 1.0))
    axis.set_title(sentence(points).replace(". ", ".\n"), fontsize="medium", wrap=True)
    axis.legend(loc="lower right")
    return pictures.png(figure)
