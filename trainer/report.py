"""Output of a run: its settings, a line per epoch, and the final table, samples.png and report.json."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import unet
from trainer.check import describe
from trainer.data import DataSet, Sample
from trainer.folder import REPORT, Progress, RunFolder, flat
from trainer.inputs import Division, classes_in
from trainer.losses import IGNORED
from trainer.metrics import object_scores
from trainer.objects import ObjectCounts
from trainer.pace import Position
from trainer.recipes import Recipe
from trainer.settings import TrainSettings
from unet import Predictor, files
from unet.device import describe_choice, device_name
from unet.listing import plural, some
from unet.outputs import Legend
from unet.outputs.labels import find_objects
from unet.pixels import Preprocessing

LONG_S = 300.0
"""Length of a run from which on it is said."""
NARROW, SOON_MINUTES = 16, 10
"""Base channels and minutes that gave usable models on one CPU core; see README."""


def print_start(
    settings: TrainSettings, recipe: Recipe, data: DataSet, division: Division, device: torch.device
) -> None:
    """Print data, recipe and device, and warn of classes missing in training or validation, and of images whose values
    do not fit a recipe without normalisation."""
    train, val = division.training, division.validation
    print(
        f"data      {settings.data}: {plural(len(train), 'image')} to train on, {len(val)} to validate on "
        f"({division.kind}: {some((sample.name for sample in val), 6)})",
        *describe(data),
        sep="\n          ",
    )
    if division.held_out_until < 1:
        print(
            f"          the score is that of the {plural(len(val), 'image')} held out until "
            f"{division.held_out_until:.0%} of the run; after that the run learns from all images. To hold them out to "
            "the end: --val-fraction 0.2"
        )
    for samples, purpose, consequence in ((train, "train on", "is not learnt"), (val, "validate on", "has no score")):
        for i in sorted(set(range(len(data.class_values))) - classes_in(samples)):
            value = data.class_values[i]
            print(f"          class {value} is in no image to {purpose}: it {consequence}")
    preprocessing = Preprocessing(input_range=recipe.input_range, standardise=recipe.standardise)
    misfits = [said for sample in data.samples if (said := preprocessing.misfit(sample.image))]
    if misfits:
        print(f"          {len(misfits)} of {len(data.samples)} images: {misfits[0]}")
    print(f"recipe    {recipe}")
    if recipe.augmentation.upright:
        print("          classes lie one above the other in all images: they are not turned, only mirrored")
    usual = settings.resolved_recipe().epochs
    if recipe.epochs < usual:
        print(
            f"          {recipe.epochs} epochs, not {usual}: after a longer run on a few images of objects, masks of "
            f"other images would be too large. For the longer run: --epochs {usual}"
        )
    if settings.verbose:
        print(*(f"          {name} {value}" for name, value in flat(asdict(recipe)).items()), sep="\n")
    print(f"device    {describe_choice(settings.device, device)}", flush=True)


def print_join(val: list[Sample]) -> None:
    held_out = plural(len(val), "image")
    print(f"          from now on the run learns from the {held_out} that gave the score, too", flush=True)


def print_length(settings: TrainSettings, recipe: Recipe, device: torch.device, position: Position) -> None:
    """Print how long a run takes that is long without anybody asking, and on a CPU which flags give a model sooner."""
    seconds = position.seconds + position.left
    if seconds < LONG_S or position.epochs is None:
        return
    minutes = seconds / 60
    length = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.{0 if minutes > 570 else 1}f} h"
    what = " for this run of the curve" if settings.curve else ""
    said = f"time      about {length}{what} on this {'CPU' if device.type == 'cpu' else 'GPU'} ({device_name(device)})"
    good = recipe.name in ("default", "quick") and not settings.curve
    if good and device.type == "cpu" and minutes > 2 * SOON_MINUTES:
        narrower = recipe.base_channels > NARROW and not settings.init_from
        width = f"--base-channels {NARROW} " if narrower else ""
        said += f": {width}--max-minutes {SOON_MINUTES} gives a usable model"
    with tqdm.external_write_mode():  # above the bar
        print(said, flush=True)


def print_epoch(row: Mapping[str, float], epochs: int, remaining: float) -> None:
    dice = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name.startswith("dice_"))
    score = f"{dice}  score {row['score']:.4f}  " if "score" in row else ""
    to_go = f", {tqdm.format_interval(remaining)} to go" if remaining else ""
    print(
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.4f}  {score}{row['seconds']:.1f} s{to_go}",
        flush=True,
    )


def summary(recipe: Recipe, data: DataSet, division: Division, progress: Progress) -> dict[str, Any]:
    """Provenance of a model in plain builtins, for the checkpoint and report.json."""
    scored, error = progress.scored, progress.scored["score_error"]
    return {
        "recipe": asdict(recipe),
        "classes": dict(zip(map(str, data.class_values), data.class_names, strict=True)),
        "epoch": progress.epoch,
        "score": scored["score"],  # of images that were not learned from until then
        "score_error": error if math.isfinite(error) else None,  # standard error over these images; none for one
        "scored": {**scored, "images": [sample.name for sample in division.validation], "joined": progress.joined},
        "objects": progress.objects,
        "data": {"images": len(data.samples), "fingerprint": data.fingerprint},
        "versions": {
            "unet-service": unet.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def objects(predictor: Predictor, val: list[Sample]) -> dict[str, float]:
    """Detection scores of annotated objects (see `ObjectCounts`); without them, means of the scores of components over
    the images that have several, if any has."""
    if predictor.objects:
        counts = ObjectCounts()
        for sample in val:
            if sample.objects is not None:
                ids = find_objects(predictor.predict(sample.image, "objects"), Legend.of(predictor))
                counts.add(ids, sample.objects, sample.label == IGNORED)
        return counts.scores()
    found = []
    for sample in val if predictor.binary else ():
        if scores := object_scores(predictor(sample.image), sample.label, predictor.threshold):
            found.append(scores)
    return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]} if found else {}


def account(
    folder: RunFolder, summary: Mapping[str, Any], progress: Progress, n_val: int, device: torch.device
) -> None:
    """Write report.json and print the final table."""
    rows, scored, elapsed = progress.history, progress.scored, progress.elapsed
    validated = [row for row in rows if "score" in row]
    validating = sum(row["validation_seconds"] for row in validated)
    timings = {
        "seconds": elapsed,
        "validation_share": validating / elapsed,
        "augmentation_share": sum(row["augmentation_seconds"] for row in rows) / elapsed,
        "crops_per_second": sum(row["crops"] for row in rows) / sum(row["training_seconds"] for row in rows),
        "validation_seconds_per_image": validating / (len(validated) * n_val),
    }
    report = {**summary, "timings": timings, "device": device_name(device)}
    folder.save_file(REPORT, (json.dumps(_finite(report), indent=2) + "\n").encode())

    for value, name in summary["classes"].items():
        if f"dice_{value}" in scored:
            print(f"{name:<18} dice {scored[f'dice_{value}']:.4f}  iou {scored[f'iou_{value}']:.4f}")
    print(f"pixel error        {scored['pixel_error']:.4f}")
    if "threshold" in scored:
        print(f"auc                {scored['auc']:.4f}\nthreshold          {scored['threshold']:.3f}")
    if progress.objects:
        found = progress.objects
        if "rand" in found:
            print("objects            rand {rand:.4f}  variation of information {information:.4f} bits".format(**found))
        else:
            print(
                "objects            AP {ap_50:.4f} at IoU 0.5, {ap_70:.4f} at 0.7, {ap_90:.4f} at 0.9  PQ {pq:.4f}\n"
                "                   {predicted} found of {objects}, {splits} split, {merges} merged".format(**found)
            )
    overlapped = " while the GPU computes" if device.type == "cuda" else ""
    print(
        f"time               {elapsed:.0f} s: {timings['augmentation_share']:.1%} crops and augmentation{overlapped}, "
        f"{timings['validation_share']:.1%} validation\n"
        f"speed              {timings['crops_per_second']:.1f} crops/s in training, "
        f"{1 / timings['validation_seconds_per_image']:.1f} images/s in validation, on {device_name(device)}\n"
        f"finished: {outcome(progress, folder)}"
    )


def add(out: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry to the report.json of a finished run."""
    report = json.loads((out / REPORT).read_text()) | _finite(entry)
    files.replace_atomically(out / REPORT, (json.dumps(report, indent=2) + "\n").encode())


def outcome(progress: Progress, folder: RunFolder) -> str:
    """The score with its standard error, and which weights the model has."""
    scored, error = progress.scored, progress.scored["score_error"]
    spread = f" ± {error:.4f}" if math.isfinite(error) else ""
    since = ", before they were learned from" if progress.joined else ""
    return (
        f"score {scored['score']:.4f}{spread} on held-out images in epoch {scored['epoch']}{since}; {folder.best} "
        f"holds the weights of the last epoch, {progress.epoch}"
    )


def _finite(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
