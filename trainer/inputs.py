"""The images of a run: found by `--data`, read, and divided into training and validation."""

from pathlib import Path

import numpy as np

from trainer.data import DataSet, Sample, download, read_folder, sample, split, split_fold
from trainer.data.pairs import IMAGES, LABELS
from trainer.settings import TrainSettings
from unet.errors import UserError


def read(settings: TrainSettings) -> DataSet:
    """The data set that --data names; `sample` is written to OUT/sample, `isbi2012` is downloaded."""
    folder = Path(settings.data)
    if settings.data == "sample":
        folder = settings.out / "sample"
        sample.write(folder)
    elif settings.data == "isbi2012" and not folder.is_dir():
        folder = download.isbi2012()
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {found}; expected one that holds {IMAGES}/ and {LABELS}/, 'sample' or 'isbi2012'")
    return read_folder(folder)


def divide(settings: TrainSettings, data: DataSet) -> tuple[list[Sample], list[Sample]]:
    """Samples for training and for validation, by the flags. Raises UserError if a side has a single class."""
    n, kind, seed = len(data.samples), settings.val_split, settings.seed
    if settings.folds is None:
        if settings.fold > 1:
            raise UserError(f"--fold {settings.fold}: expected --folds with it, the number of parts")
        indices = split(n, settings.val_fraction, kind, seed)
    elif "val_fraction" in settings.model_fields_set:
        raise UserError(
            f"--val-fraction {settings.val_fraction} and --folds {settings.folds}: expected one of them only"
        )
    else:
        indices = split_fold(n, settings.folds, settings.fold, kind, seed)
    train, val = ([data.samples[i] for i in side] for side in indices)
    for purpose, samples in (("training", train), ("validation", val)):
        if len(classes_in(samples)) < 2:
            raise UserError(
                f"all {purpose} labels hold a single class: expected at least two; choose other images with "
                f"--val-split random or another {'--val-fraction' if settings.folds is None else '--fold'}"
            )
    return train, val


def classes_in(samples: list[Sample]) -> set[int]:
    """Indices of the classes that the labels contain."""
    return {int(i) for sample in samples for i in np.unique(sample.label)}
