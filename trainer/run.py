"""A training run from settings to files: data, network, loop, checkpoint, account."""

import math
import os
import platform
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from textwrap import indent
from typing import Any, cast

import numpy as np
import torch

import unet
from trainer import pictures
from trainer.data import IMAGES, LABELS, Batches, DataSet, Sample, download, read_folder, sample, split, split_fold
from trainer.fit import Learner, Progress, Schedule, TrainingError, fit
from trainer.folder import CURVES, SAMPLES, RunFolder, claim
from trainer.metrics import object_scores
from trainer.recipes import Recipe
from trainer.settings import TrainSettings
from trainer.stop import Stop
from trainer.tensorboard import TensorBoard
from trainer.world import World, claim_gpu, join
from unet import Predictor, UNet
from unet.checkpoint import Checkpoint
from unet.device import device_name, out_of_memory, resolve_device
from unet.pixels import Preprocessing, to_pixels


def run(settings: TrainSettings, stop: Stop | None = None) -> None:
    """Does what `unet-train` says. Raises a ValueError or OSError for what the user can mend, and Stopped."""
    if settings.device != "cpu":
        claim_gpu()
    device = resolve_device(settings.device)
    recipe = settings.resolved_recipe()
    with join(device) as world, claim(settings.out) if world.first else nullcontext():
        try:
            _run(settings, recipe, device, world, stop or Stop())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise TrainingError(
                f"{device} ran out of memory: lower --batch-size ({recipe.batch_size}), --image-size "
                f"({recipe.image_size}) or --base-channels ({recipe.base_channels}), or cut large images into fewer: "
                "all of them are kept there, at 8 bytes for each pixel and more"
            ) from error


def _run(settings: TrainSettings, recipe: Recipe, device: torch.device, world: World, stop: Stop) -> None:
    data = world.in_turn(lambda: _read(settings))
    train, val = _split(settings, data)
    if world.first:
        _introduce(settings, recipe, device, data, train, val)

    torch.manual_seed(settings.seed)
    network = recipe.build(data.n_channels, data.n_classes).to(device)
    learner = Learner(world.synchronise(network), recipe, world)
    preprocessing = Preprocessing(input_range=recipe.input_range, standardise=recipe.standardise)
    predictor = Predictor(cast(UNet, learner.result), preprocessing, class_values=data.class_values, device=device)
    batches = Batches(
        train,
        preprocessing,
        network.config.n_channels,
        len(data.class_values),
        recipe,
        margin=network.margin,
        seed=settings.seed,
        device=device,
        world=world,
    )
    folder = RunFolder(settings.out, _identity(settings, recipe, data))
    progress = Progress() if settings.force else folder.restore(learner)
    if progress.finished and folder.report.exists():
        if world.first:
            print(f"already finished: {_outcome(progress, folder)}. To train again: --force")
        return
    board = TensorBoard(settings.out, progress.epoch + 1) if settings.tensorboard and world.first else None
    if world.first:
        if progress.epoch:
            print(f"going on after epoch {progress.epoch}, where an earlier run was interrupted")
        folder.save_last(progress, learner)  # finds out now, not after an epoch, that nothing can be written
        folder.report.unlink(missing_ok=True)  # from an earlier run; if it is there, this one is over

    saving = Throttle()
    best: Checkpoint | None = None

    def save(improved: bool) -> bool:
        nonlocal best
        if improved:
            best = _checkpoint(predictor, _summary(recipe, data, progress))
        if board:
            board.add(progress.history[-1])
        if not (progress.finished or saving.due()):
            return False
        with saving:
            if best:
                folder.save_best(best)
                best = None
            folder.save_history(progress.rows())
            folder.save_picture(CURVES, pictures.curves(progress.rows()))
            # at the end: a run that dies before repeats the epoch and saves all of it again
            folder.save_last(progress, learner)
        return True

    schedule = Schedule(recipe, len(batches), settings.max_minutes)
    stop.epoch = progress.epoch
    with stop.hold():
        fit(learner, batches, predictor, val, schedule, progress, save, stop)
    if world.first:
        _account(folder, recipe, data, val, progress, device)


class Throttle:
    """For `with throttle: ...`, which takes a while: not due before that is no more than a fifth of the time."""

    SHARE = 0.2

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ended = -math.inf

    def due(self) -> bool:
        return time.monotonic() - self._ended >= self._seconds * (1 / self.SHARE - 1)

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self._seconds = self._ended - self._started


def _read(settings: TrainSettings) -> DataSet:
    if settings.data == "isbi2012" and not Path(settings.data).is_dir():
        return read_folder(download.isbi2012(settings.isbi2012_url))
    if settings.data != "sample":
        folder = Path(settings.data)
        if not folder.is_dir():
            found = "no folder" if folder.exists() else "no such folder"
            raise ValueError(
                f"{folder}: {found}; expected one that holds {IMAGES}/ and {LABELS}/, or 'sample', or 'isbi2012'"
            )
        return read_folder(folder)
    folder = settings.out / "sample"
    try:
        sample.write(folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {os.strerror(error.errno or 0)}") from error
    return read_folder(folder)


def _split(settings: TrainSettings, data: DataSet) -> tuple[list[Sample], list[Sample]]:
    n = len(data.samples)
    if settings.folds is None:
        if settings.fold > 1:
            raise ValueError(f"--fold {settings.fold}: expected --folds with it, the number of parts")
        indices = split(n, settings.val_fraction, settings.val_split, settings.seed)
    elif "val_fraction" in settings.model_fields_set:
        raise ValueError(
            f"--val-fraction {settings.val_fraction} and --folds {settings.folds}: expected one of them, as each says "
            "what to validate on"
        )
    else:
        indices = split_fold(n, settings.folds, settings.fold, settings.val_split, settings.seed)
    train, val = ([data.samples[i] for i in side] for side in indices)
    for purpose, samples in (("train on", train), ("validate on", val)):
        if len(_classes(samples)) < 2:
            raise ValueError(
                f"all there is to {purpose} is of one class: expected at least two; choose other images with "
                f"--val-split random or another {'--val-fraction' if settings.folds is None else '--fold'}"
            )
    return train, val


def _classes(samples: list[Sample]) -> set[int]:
    """Indices of those that are in the labels."""
    return {int(i) for sample in samples for i in np.unique(sample.label)}


def _introduce(
    settings: TrainSettings,
    recipe: Recipe,
    device: torch.device,
    data: DataSet,
    train: list[Sample],
    val: list[Sample],
) -> None:
    same = " (the same one, so the scores say little)" if len(data.samples) == 1 else ""
    print(
        f"data      {settings.data}: {len(train)} images to train on, {len(val)} to validate on{same}, "
        f"classes {data.class_values}"
    )
    for samples, purpose, so in ((train, "train on", "is not learnt"), (val, "validate on", "has no score")):
        for i in sorted(set(range(len(data.class_values))) - _classes(samples)):
            value = data.class_values[i]
            print(f"          class {value} is in no image to {purpose}: it {so} (--val-split random may help)")
    if not recipe.standardise and (dark := _dark(data.samples)):
        print(f"          {dark}")
    print(f"recipe    {indent(str(recipe), ' ' * 10).lstrip()}")
    fallback = " (no CUDA GPU can be used here)" if settings.device == "auto" and device.type == "cpu" else ""
    print(f"device    {device_name(device)}{fallback}", flush=True)


def _dark(samples: list[Sample]) -> str | None:
    """Of images that do not use the bits of their files, such as 12 of 16."""
    brightest = max(pixels.max() / unit for pixels, unit in (to_pixels(sample.image) for sample in samples))
    kinds = {str(sample.image.dtype) for sample in samples} - {"uint8"}
    if not kinds or brightest >= 0.25:
        return None
    return (
        f"the brightest pixel is {brightest:.2g} of the range of {', '.join(sorted(kinds))}; this recipe takes "
        "brightness as it is: scale the images to the whole range, or take --recipe default"
    )


def _identity(settings: TrainSettings, recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """What two runs must share to be the same run. Where it computes is not part of it."""
    return {
        "recipe": asdict(recipe),
        "max_minutes": settings.max_minutes,
        "val_fraction": settings.val_fraction,
        "val_split": settings.val_split,
        "folds": settings.folds,
        "fold": settings.fold,
        "seed": settings.seed,
        "data": data.files,
    }


def _checkpoint(predictor: Predictor, training: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        network=predictor.network.config,
        preprocessing=predictor.preprocessing,
        state_dict={name: tensor.detach().clone() for name, tensor in predictor.network.state_dict().items()},
        class_values=predictor.class_values,
        threshold=predictor.threshold,
        training=training,
    )


def _summary(recipe: Recipe, data: DataSet, progress: Progress) -> dict[str, Any]:
    """Plain builtins: how this model came to be. In the checkpoint and in report.json."""
    return {
        "recipe": asdict(recipe),
        "best": dict(progress.best),
        "epoch": progress.best["epoch"],
        "score": progress.best["score"],
        "data": {"images": len(data.samples), "fingerprint": data.fingerprint},
        "versions": {
            "unet-service": unet.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _account(
    folder: RunFolder, recipe: Recipe, data: DataSet, val: list[Sample], progress: Progress, device: torch.device
) -> None:
    """report.json, samples.png and the table at the end, all of the saved model."""
    predictor = Predictor.load(folder.best, device="cuda" if device.type == "cuda" else "cpu", precision="fp32")
    seconds, found = 0.0, []
    for each in val:
        started = time.monotonic()
        probabilities = predictor(each.image)
        seconds += time.monotonic() - started
        if predictor.binary:
            found.append(object_scores(probabilities, each.label, predictor.threshold))
    per_image = seconds / len(val)
    objects = {}
    if told_apart := [each for each in found if each]:
        objects = {
            "rand": float(np.mean([each.rand for each in told_apart])),
            "information": float(np.mean([each.information for each in told_apart])),
        }
    timings = {
        "seconds": progress.elapsed,
        "validation_share": sum(row["validation_seconds"] for row in progress.history) / progress.elapsed,
        "augmentation_share": sum(row["augmentation_seconds"] for row in progress.history) / progress.elapsed,
        "crops_per_second": sum(row["crops"] for row in progress.history)
        / sum(row["training_seconds"] for row in progress.history),
        "validation_seconds_per_image": per_image,
        "peak_memory_mib": peak_memory(device) / 2**20,
    }
    report = _summary(recipe, data, progress) | {"objects": objects, "timings": timings, "device": device_name(device)}
    folder.save_picture(SAMPLES, pictures.samples(predictor, val))
    folder.save_report(report)

    best = progress.best
    for value in predictor.class_values:
        if f"dice_{value}" in best:
            print(f"class {value:<12} dice {best[f'dice_{value}']:.4f}  iou {best[f'iou_{value}']:.4f}")
    print(f"pixel error        {best['pixel_error']:.4f}")
    if predictor.binary:
        print(f"auc                {best['auc']:.4f}")
        print(f"threshold          {predictor.threshold:.3f}")
    if objects:
        print(
            f"objects            rand {objects['rand']:.4f}  variation of information {objects['information']:.4f} bits"
        )
    meanwhile = " while the GPU computes" if device.type == "cuda" else ""
    print(
        f"time               {progress.elapsed:.0f} s: {timings['augmentation_share']:.1%} crops and augmentation"
        f"{meanwhile}, {timings['validation_share']:.1%} validation"
    )
    print(
        f"speed              {timings['crops_per_second']:.1f} crops/s in training, {1 / per_image:.1f} images/s in "
        f"prediction, {timings['peak_memory_mib']:.0f} MiB at most, on {device_name(device)}"
    )
    print(f"finished: {_outcome(progress, folder)}")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _outcome(progress: Progress, folder: RunFolder) -> str:
    return f"best score {progress.best['score']:.4f} in epoch {progress.best['epoch']}, in {folder.best}"
