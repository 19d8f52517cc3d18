"""`training.png` and `samples.png`: a run at a glance."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trainer.data import Sample
from trainer.metrics import confusion, scores
from unet.predictor import Predictor

Array = npt.NDArray[Any]
Colours = npt.NDArray[np.float32]
"""(n, 3) RGB in 0..1."""

LEGEND_ROWS = 24


def curves(history: list[dict[str, float]], class_values: tuple[int, ...]) -> bytes:
    """PNG: loss and learning rate, and the Dice of each class on the validation images, over the epochs."""
    epochs, last = [row["epoch"] for row in history], history[-1]
    best = max(history, key=lambda row: row["score"])
    dice = {value: last[f"dice_{value}"] for value in class_values if f"dice_{value}" in last}  # at the end
    columns = math.ceil((1 + len(dice)) / LEGEND_ROWS)
    marker = "." if len(epochs) < 50 else ""

    figure = Figure(figsize=(11 + 1.5 * columns, 5), layout="constrained")
    figure.suptitle(f"best score {best['score']:.4f} in epoch {best['epoch']:.0f} of {len(epochs)}")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["loss"] for row in history], marker=marker, label="loss")
    left.set(title="Training", xlabel="epoch", ylabel="loss", ylim=(0, None))
    rate = left.twinx()
    rate.plot(epochs, [row["lr"] for row in history], color="0.6", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    left.legend(handles=[*left.lines, *rate.lines], loc="upper right")

    mean = {"linewidth": 3, "linestyle": "--", "label": f"mean  {last['score']:.3f}"}
    right.plot(epochs, [row["score"] for row in history], color="0.5", **mean)
    colours = dict(zip(class_values, class_colours(len(class_values)), strict=True))
    for value in sorted(dice, key=lambda value: -dice[value]):  # the legend is in the order in which the lines end
        label = f"class {value}  {dice[value]:.3f}"
        right.plot(epochs, [row[f"dice_{value}"] for row in history], marker=marker, color=colours[value], label=label)
    right.axvline(best["epoch"], color="0.6", linestyle=":")
    right.set(title="Validation", xlabel="epoch", ylabel="Dice", ylim=(None, 1.01))
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(
        handles=right.lines[:-1], title="last epoch", loc="outside right upper", ncols=columns, fontsize="small"
    )
    return _png(figure)


def samples(predictor: Predictor, validation: list[Sample], most: int = 4) -> bytes:
    """PNG: a row each for the first images of the validation set: image, label, prediction."""
    values, shown = predictor.class_values, validation[:most]
    colours = class_colours(len(values))
    side = 3.5  # inches
    heights = [side * min(max(s.label.shape[0] / s.label.shape[1], 0.2), 2) for s in shown]
    columns = math.ceil(len(values) / LEGEND_ROWS)

    size = 3 * side + 1.2 * columns, max(sum(heights) + 0.4 * len(shown), 0.19 * min(len(values), LEGEND_ROWS) + 0.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, sample in zip(axes, shown, strict=True):
        predicted = predictor.to_classes(predictor(sample.image))
        score = scores(confusion(predicted, sample.label, len(values))).score
        height, width = sample.label.shape
        row[0].set_title(f"{sample.name}, {width} x {height}", fontsize="medium")
        row[1].set_title("label", fontsize="medium")
        row[2].set_title(f"prediction, score {score:.3f}", fontsize="medium")
        row[0].imshow(_rgb(sample.image))
        for axis, classes in ((row[1], sample.label), (row[2], predicted)):
            axis.imshow(colours[classes], interpolation="nearest")
        for axis in row:
            axis.set_axis_off()
    patches = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="0.5") for colour in colours]
    names = [f"class {value}" for value in values]
    figure.legend(patches, names, loc="outside right upper", ncols=columns, fontsize="small")
    return _png(figure)


def class_colours(n: int) -> Colours:
    """(n, 3) RGB in 0..1: black for the first class, then a wheel of hues from orange on, light and dark by turns."""
    wheel = colormaps["hsv"]((0.09 + np.arange(n - 1) / (n - 1)) % 1)[:, :3]
    wheel[1::2] *= 0.6
    return np.concatenate([np.zeros((1, 3)), wheel]).astype(np.float32)


def _rgb(image: Array) -> Colours:
    """Any image -> (H, W, 3) in 0..1, stretched from its darkest to its brightest finite pixel."""
    channels = image[..., np.newaxis] if image.ndim == 2 else image
    channels = channels[..., :3] if channels.shape[2] >= 3 else channels[..., [0, 0, 0]]
    finite = channels[np.isfinite(channels)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    stretched = (np.nan_to_num(channels.astype(np.float64), nan=low) - low) / max(high - low, 1e-9)
    return stretched.clip(0, 1).astype(np.float32)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
