"""Output of a run: its settings, a line per epoch, and the final table, samples.png and report.json."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import unet
from trainer import pictures
from trainer.data import DataSet, Sample
from trainer.folder import REPORT, SAMPLES, Progress, RunFolder, flat
from trainer.inputs import classes_in
from trainer.metrics import object_scores
from trainer.recipes import Recipe
from trainer.settings import TrainSettings
from unet import Predictor
from unet.device import device_name
from unet.pixels import to_pixels


def print_start(
    settings: TrainSettings, recipe: Recipe, data: DataSet, train: list[Sample], val: list[Sample], device: torch.device
) -> None:
    """Print data, recipe and device, and warn of classes missing in training or validation, and of images that are too
    dark for a recipe without normalisation."""
    same = " (the same one, so the scores say little)" if len(data.samples) == 1 else ""
    print(
        f"data      {settings.data}: {len(train)} images to train on, {len(val)} to validate on{same}, "
        f"classes {data.class_values}"
    )
    for samples, purpose, consequence in ((train, "train on", "is not learnt"), (val, "validate on", "has no score")):
        for i in sorted(set(range(len(data.class_values))) - classes_in(samples)):
            value = data.class_values[i]
            print(f"          class {value} is in no image to {purpose}: it {consequence} (try --val-split random)")
    if not recipe.standardise:
        brightest = max(pixels.max() / unit for pixels, unit in (to_pixels(sample.image) for sample in data.samples))
        kinds = {str(sample.image.dtype) for sample in data.samples} - {"uint8"}
        if kinds and brightest < 0.25:  # such as 12 bits of 16
            print(
                f"          the brightest pixel is {brightest:.2g} of the range of {', '.join(sorted(kinds))}; this "
                "recipe takes brightness as it is: scale the images to the whole range, or take --recipe default"
            )
    print(f"recipe    {recipe}")
    if settings.verbose:
        print(*(f"          {name} {value}" for name, value in flat(asdict(recipe)).items()), sep="\n")
    fallback = " (no GPU can be used here)" if settings.device == "auto" and device.type == "cpu" else ""
    print(f"device    {device_name(device)}{fallback}", flush=True)


def print_epoch(row: Mapping[str, float], epochs: int, remaining: float, improved: bool) -> None:
    dice = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name.startswith("dice_"))
    to_go = f", {tqdm.format_interval(remaining)} to go" if remaining else ""
    print(
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.4f}  {dice}  score {row['score']:.4f}  "
        f"{row['seconds']:.1f} s{to_go}{'  best' if improved else ''}",
        flush=True,
    )


def summary(recipe: Recipe, data: DataSet, best: Mapping[str, float]) -> dict[str, Any]:
    """How a model came to be, in plain builtins; stored in the checkpoint and in report.json."""
    return {
        "recipe": asdict(recipe),
        "best": dict(best),
        "epoch": best["epoch"],
        "score": best["score"],
        "data": {"images": len(data.samples), "fingerprint": data.fingerprint},
        "versions": {
            "unet-service": unet.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def account(
    folder: RunFolder, recipe: Recipe, data: DataSet, val: list[Sample], progress: Progress, device: torch.device
) -> None:
    """Test the saved model once more, write samples.png and report.json, and print the final table."""
    predictor = Predictor.load(folder.best, device=str(device), precision="fp32")
    found = []
    for sample in val if predictor.binary else ():
        if scores := object_scores(predictor(sample.image), sample.label, predictor.threshold):
            found.append(scores)
    # none if no image has several objects
    objects = {name: float(np.mean([scores[name] for scores in found])) for name in found[0]} if found else {}
    rows, best, elapsed = progress.history, progress.best, progress.elapsed
    validating = sum(row["validation_seconds"] for row in rows)
    timings = {
        "seconds": elapsed,
        "validation_share": validating / elapsed,
        "augmentation_share": sum(row["augmentation_seconds"] for row in rows) / elapsed,
        "crops_per_second": sum(row["crops"] for row in rows) / sum(row["training_seconds"] for row in rows),
        "validation_seconds_per_image": validating / (len(rows) * len(val)),
    }
    report = summary(recipe, data, best) | {"objects": objects, "timings": timings, "device": device_name(device)}
    folder.save_file(SAMPLES, pictures.samples(predictor, val))
    folder.save_file(REPORT, (json.dumps(report, indent=2) + "\n").encode())

    for value in predictor.class_values:
        if f"dice_{value}" in best:
            print(f"class {value:<12} dice {best[f'dice_{value}']:.4f}  iou {best[f'iou_{value}']:.4f}")
    print(f"pixel error        {best['pixel_error']:.4f}")
    if predictor.binary:
        print(f"auc                {best['auc']:.4f}\nthreshold          {predictor.threshold:.3f}")
    if objects:
        print("objects            rand {rand:.4f}  variation of information {information:.4f} bits".format(**objects))
    overlapped = " while the GPU computes" if device.type == "cuda" else ""
    print(
        f"time               {elapsed:.0f} s: {timings['augmentation_share']:.1%} crops and augmentation{overlapped}, "
        f"{timings['validation_share']:.1%} validation\n"
        f"speed              {timings['crops_per_second']:.1f} crops/s in training, "
        f"{1 / timings['validation_seconds_per_image']:.1f} images/s in validation, on {device_name(device)}\n"
        f"finished: {outcome(progress, folder)}"
    )


def outcome(progress: Progress, folder: RunFolder) -> str:
    return f"best score {progress.best['score']:.4f} in epoch {progress.best['epoch']}, in {folder.best}"
