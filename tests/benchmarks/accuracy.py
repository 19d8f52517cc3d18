"""Accuracy of a model on images that it did not see:  python tests/benchmarks/accuracy.py MODEL DATA [--last N]

Prints, with and without test-time augmentation: pixel error at a threshold of 0.5, Dice of the foreground at the
model's threshold, and AUC, all inside the field of view of photographs that have one (a bright disc on black); and the
challenge's V_rand at the best threshold. --json FILE writes the same as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import numpy.typing as npt

from trainer.data import Sample, read_folder
from trainer.metrics import ThresholdCurve, object_scores, scores
from unet import Predictor
from unet.device import PrecisionChoice

RAND_THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--last", type=int, help="only the last N images, by name (default: all)")
    parser.add_argument("--precision", choices=get_args(PrecisionChoice), default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.model, precision=arguments.precision)
    if not predictor.binary:
        parser.error("expected a binary model")
    samples = read_folder(arguments.data).samples
    samples = samples[-arguments.last :] if arguments.last else samples
    found = {name: measure(predictor, samples, tta) for name, tta in (("plain", False), ("averaged", True))}

    print(f"{len(samples)} images, threshold {predictor.threshold:.3f}")
    print(f"{'':12}{'plain':>10}{'averaged':>10}")
    for name in found["plain"]:
        print(f"{name:12}" + "".join(f"{found[kind][name]:10.4f}" for kind in found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(predictor: Predictor, samples: list[Sample], tta: bool) -> dict[str, float]:
    curve = ThresholdCurve()
    rand = {threshold: [] for threshold in RAND_THRESHOLDS}  # type: dict[float, list[float]]
    for sample in samples:
        probabilities = predictor(sample.image, tta=tta)
        inside = field_of_view(sample.image)
        curve.add(probabilities[inside], sample.label[inside])
        for threshold in RAND_THRESHOLDS:
            if found := object_scores(probabilities, sample.label, threshold):
                rand[threshold].append(found["rand"])
    at_threshold, half = (scores(np.sum(curve.confusions(t), axis=0)) for t in (predictor.threshold, 0.5))
    best = max(RAND_THRESHOLDS, key=lambda threshold: np.mean(rand[threshold]))
    return {
        "pixel error": half.pixel_error,
        "dice": at_threshold.dice[1],
        "auc": curve.auc(),
        "v_rand": float(np.mean(rand[best])),
        "at": best,
    }


def field_of_view(image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(H, W): the bright disc of a colour photograph on black; all of a grey image."""
    if image.ndim == 2:
        return np.ones(image.shape, bool)
    bright = (image.max(axis=2) > 40).astype(np.uint8)
    n, components, stats, _ = cv2.connectedComponentsWithStats(bright)
    disc = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()) if n > 1 else 0
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15))
    return cv2.morphologyEx((components == disc).astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0


if __name__ == "__main__":
    main()
