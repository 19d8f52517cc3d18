"""A training run from settings to files: data, network, loop, checkpoint, report."""

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unet
from trainer import sample
from trainer.batches import Batches
from trainer.dataset import DataSet, read_folder, split
from trainer.fit import Progress, Schedule, fit, make_optimizer
from trainer.folder import RunFolder
from trainer.recipes import Recipe
from trainer.settings import TrainSettings
from unet import NetworkConfig, Predictor
from unet.checkpoint import Checkpoint
from unet.device import device_name, resolve_device
from unet.pixels import Preprocessing


def run(settings: TrainSettings) -> None:
    """Does what `unet-train` says. Raises a ValueError or OSError for what the user can mend."""
    device = resolve_device(settings.device)
    recipe = settings.resolved_recipe()
    settings.out.mkdir(parents=True, exist_ok=True)
    data = _read(settings)
    train, val = split(len(data.samples), settings.val_fraction, settings.val_split, settings.seed)
    _introduce(settings, recipe, device, data, len(train), len(val))

    torch.manual_seed(settings.seed)
    network = NetworkConfig(
        n_channels=1 if recipe.grey else data.n_channels,
        n_classes=data.n_classes,
        bilinear=recipe.bilinear,
        base_channels=recipe.base_channels,
        variant=recipe.variant,
    ).build()
    preprocessing = Preprocessing(input_range=recipe.input_range, standardise=recipe.standardise)
    predictor = Predictor(network, preprocessing, class_values=data.class_values, device=device)
    optimizer = make_optimizer(network, recipe)
    batches = Batches([data.samples[i] for i in train], preprocessing, predictor.n_channels, recipe, settings.seed)
    folder = RunFolder(settings.out, _identity(settings, recipe, data))
    progress = Progress() if settings.force else folder.restore(network, optimizer)
    if progress.finished:
        print(f"already finished: {_outcome(progress, folder)}. To train again: --force")
        return
    if progress.epoch:
        print(f"going on after epoch {progress.epoch}, where an earlier run was interrupted")
    folder.save_last(progress, network, optimizer)  # finds out now, not after an epoch, that nothing can be written

    def save(improved: bool) -> None:
        if improved:  # before last.pth: a run that dies between the two repeats this epoch and saves the same again
            folder.save_best(_checkpoint(predictor, _summary(recipe, data, progress)))
        folder.save_last(progress, network, optimizer)

    schedule = Schedule(recipe, len(batches), settings.max_minutes)
    fit(predictor, optimizer, batches, [data.samples[i] for i in val], schedule, progress, save)

    folder.save_report(_summary(recipe, data, progress) | {"device": device_name(device), "seconds": progress.elapsed})
    print(f"finished: {_outcome(progress, folder)}")


def _read(settings: TrainSettings) -> DataSet:
    if settings.data != "sample":
        return read_folder(Path(settings.data))
    folder = settings.out / "sample"
    sample.write(folder)
    return read_folder(folder)


def _introduce(
    settings: TrainSettings, recipe: Recipe, device: torch.device, data: DataSet, n_train: int, n_val: int
) -> None:
    print(
        f"data      {settings.data}: {n_train} images to train on, {n_val} to validate on, classes {data.class_values}"
    )
    print("recipe    " + ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()))
    fallback = " (no CUDA GPU can be used here)" if settings.device == "auto" and device.type == "cpu" else ""
    print(f"device    {device_name(device)}{fallback}", flush=True)


def _identity(settings: TrainSettings, recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """What two runs must share to be the same run. Where it computes is not part of it."""
    return {
        "recipe": asdict(recipe),
        "max_minutes": settings.max_minutes,
        "val_fraction": settings.val_fraction,
        "val_split": settings.val_split,
        "seed": settings.seed,
        "data": data.fingerprint,
    }


def _checkpoint(predictor: Predictor, training: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        network=predictor.network.config,
        preprocessing=predictor.preprocessing,
        state_dict=predictor.network.state_dict(),
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


def _outcome(progress: Progress, folder: RunFolder) -> str:
    return f"best score {progress.best['score']:.4f} in epoch {progress.best['epoch']}, in {folder.best}"
