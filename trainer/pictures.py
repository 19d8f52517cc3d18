"""`training.png` and `samples.png`: a run at a glance."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from trainer.data import Sample
from unet.images import encode_png
from unet.predictor import Predictor

Bytes = npt.NDArray[np.uint8]


def curves(history: list[dict[str, float]]) -> bytes:
    """PNG: loss and learning rate, and the Dice of each class, over the epochs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], label="training loss")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    rate = left.twinx()
    rate.plot(epochs, [row["lr"] for row in history], color="0.7", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    left.legend(handles=[*left.lines, *rate.lines], loc="upper right")
    for name in (name for name in history[0] if name.startswith("dice_")):
        right.plot(epochs, [row[name] for row in history], label=f"class {name.removeprefix('dice_')}")
    right.set(xlabel="epoch", ylabel="Dice, validation", ylim=(None, 1))
    right.legend(loc="lower right")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def samples(predictor: Predictor, validation: list[Sample], most: int = 4, side: int = 512) -> bytes:
    """PNG: a row each for the first images of the validation set: image | label | prediction."""
    rows = []
    for sample in validation[:most]:
        image = _rgb(sample.image)
        label, mask = (_classes(c, len(predictor.class_values)) for c in (sample.label, _predicted(predictor, sample)))
        row = np.concatenate([_canvas(part, side) for part in (image, label, mask)], axis=1)
        rows.append(row)
    return encode_png(np.concatenate(rows))


def _predicted(predictor: Predictor, sample: Sample) -> npt.NDArray[Any]:
    return predictor.to_classes(predictor(sample.image))


def _rgb(image: npt.NDArray[Any]) -> Bytes:
    """Any image -> (H, W, 3), stretched from its darkest to its brightest pixel: to be looked at."""
    x = image.astype(np.float64)
    x = (x - x.min()) / max(x.max() - x.min(), 1e-9) * 255
    return np.broadcast_to(x[..., np.newaxis] if x.ndim == 2 else x, (*x.shape[:2], 3)).astype(np.uint8)


def _classes(classes: npt.NDArray[Any], n: int) -> Bytes:
    """Class indices as shades of grey."""
    return np.repeat((classes * (255 // (n - 1))).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def _canvas(picture: Bytes, side: int) -> Bytes:
    """The picture's upper left on a white square, with a white margin."""
    canvas = np.full((side + 8, side + 8, 3), 255, np.uint8)
    part = picture[:side, :side]
    canvas[4 : 4 + part.shape[0], 4 : 4 + part.shape[1]] = part
    return canvas
