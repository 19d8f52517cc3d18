"""`training.png` and `samples.png`: a run at a glance."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from trainer.data import Sample
from trainer.losses import IGNORED
from trainer.metrics import confusion, scores
from unet.predictor import Predictor

LEGEND_ROWS = 24
DPI = 100


def curves(history: list[dict[str, float]], predictor: Predictor) -> bytes:
    """PNG: loss and learning rate, and the Dice of each class on the validation images, over the epochs."""
    class_values = predictor.class_values
    epochs, scored = [row["epoch"] for row in history], [row for row in history if "score" in row]
    last, validated = scored[-1], [row["epoch"] for row in scored]
    dice = {value: last[f"dice_{value}"] for value in class_values if f"dice_{value}" in last}  # at the end
    columns = math.ceil((1 + len(dice)) / LEGEND_ROWS)
    marker = "." if len(epochs) < 50 else ""

    figure = Figure(figsize=(11 + 1.5 * columns, 5), layout="constrained")
    figure.suptitle(f"score {last['score']:.4f} in epoch {last['epoch']:.0f} of {len(epochs)}")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["loss"] for row in history], marker=marker, label="loss")
    left.set(title="Training", xlabel="epoch", ylabel="loss", ylim=(0, None))
    rate = left.twinx()
    rate.plot(epochs, [row["lr"] for row in history], color="0.6", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    left.legend(handles=[*left.lines, *rate.lines], loc="upper right")

    mean = f"mean  {last['score']:.3f}"
    right.plot(validated, [row["score"] for row in scored], color="0.5", linewidth=3, linestyle="--", label=mean)
    about = dict(zip(class_values, zip(names(predictor), colours(predictor), strict=True), strict=True))
    for value in sorted(dice, key=lambda value: -dice[value]):  # the legend is in the order in which the lines end
        name, colour = about[value]
        line = [row[f"dice_{value}"] for row in scored]
        right.plot(validated, line, marker=marker, color=colour, label=f"{name}  {dice[value]:.3f}")
    figure.legend(title="last score", loc="outside right upper", ncols=columns, fontsize="small", handles=right.lines)
    right.set(title="Validation", xlabel="epoch", ylabel="Dice", xlim=left.get_xlim(), ylim=(None, 1.01))
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    return png(figure)


def samples(predictor: Predictor, validation: list[Sample], most: int = 4) -> bytes:
    """PNG: a row each for the first images of the validation set: image, label (IGNORED is grey), prediction."""
    values, shown = predictor.class_values, validation[:most]
    by_index = np.full((IGNORED + 1, 3), 0.5, np.float32)
    by_index[: len(values)] = colours(predictor)
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
        titles = f"{sample.name}, {width} x {height}", "label", f"prediction, score {score:.3f}"
        pictures = rgb(sample.image), by_index[sample.label], by_index[predicted]
        for axis, title, picture in zip(row, titles, pictures, strict=True):
            axis.set_title(title, fontsize="medium")
            axis.imshow(picture, interpolation="auto" if axis is row[0] else "nearest")
            axis.set_axis_off()
    classes = zip(names(predictor), colours(predictor), strict=True)
    patches = [Patch(facecolor=colour, edgecolor="0.5", label=name) for name, colour in classes]
    figure.legend(handles=patches, loc="outside right upper", ncols=columns, fontsize="small")
    return png(figure)


def names(predictor: Predictor) -> list[str]:
    """Names of the classes; "class 3" where it has none but its value."""
    classes = zip(predictor.class_values, predictor.class_names, strict=True)
    return [f"class {value}" if name == str(value) else name for value, name in classes]


def colours(predictor: Predictor) -> npt.NDArray[np.float32]:
    """Colours of the classes (K, 3), RGB in 0..1."""
    return np.asarray(predictor.class_colours, np.float32) / np.float32(255)


def rgb(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Any image -> (H, W, 3) uint8, stretched between its darkest and brightest half percent. Of two channels or more
    than three, the first three are shown."""
    pixels = np.atleast_3d(image)[:, :, :3].astype(np.float32)
    if pixels.shape[2] != 3:
        pixels = np.concatenate([pixels, pixels[:, :, -1:]], axis=2) if pixels.shape[2] == 2 else pixels.repeat(3, 2)
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0, 1)
    stretched = np.nan_to_num((pixels - low) / max(high - low, 1e-9), nan=0.0).clip(0, 1)
    return np.asarray(255 * stretched, np.uint8)


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
