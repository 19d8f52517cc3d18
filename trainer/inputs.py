"""The images of a run: found by `--data`, read, and divided into training and validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from trainer.data import DataSet, Sample, download, read_folder, sample
from trainer.data.dataset import collect, images_below, read_image
from trainer.data.files import JSON
from trainer.data.pairs import IMAGES, LABELS
from trainer.data.split import SplitKind, arrange, halves, is_stack, kind_of, split, split_fold
from trainer.data.store import Store
from trainer.losses import IGNORED
from trainer.settings import TrainSettings
from unet import imaging
from unet.errors import UserError
from unet.pixels import match_channels, to_pixels

ENOUGH = 10
"""Images to validate on that can be spared for good: fewer are learned from, too, once they have given the score."""
HELD_OUT, MANY = 0.6, 8
"""Share of the run for which they are held out, if there are MANY images or more in all; with fewer, in proportion, as
each is missed more (two images of nuclei, one held out for 0.15 of the run instead of 0.6: AP at IoU 0.5 0.67 ->
0.71)."""
UNLABELLED = 200
"""Unlabelled images that are learned from: all are kept in memory."""


def read(settings: TrainSettings) -> DataSet:
    """The data set that --data names; `sample` is written to OUT/sample, `isbi2012` is downloaded."""
    folder = Path(settings.data)
    if settings.data == "sample":
        folder = settings.out / "sample"
        sample.write(folder)
    elif settings.data == "isbi2012" and not folder.is_dir():
        folder = download.isbi2012()
    if not (folder.is_dir() or (folder.is_file() and folder.suffix.lower() in JSON)):
        found, advice = ("not a folder", " (unpack an archive)") if folder.exists() else ("no such folder", "")
        holds = f"{IMAGES}/ and {LABELS}/, or another layout of --help"
        raise UserError(f"{folder}: {found}; expected one that holds {holds}{advice}; or 'sample' or 'isbi2012'")
    return read_folder(folder, settings.reading(), Store(settings.out))


@dataclass(frozen=True)
class Division:
    """Images to train on and images to validate on."""

    training: list[Sample]
    validation: list[Sample]
    kind: SplitKind  # never "auto"
    held_out_until: float  # share of the run, 0..1, after which it learns from the images to validate on; 1: never


def divide(samples: Sequence[Sample], settings: TrainSettings) -> Division:
    """Divide by the flags. Of the divisions of its kind, `auto` takes the one with most classes and looks (start of
    the name, grey or colour, dark or bright) to learn from, then to validate on: the only image in colour is learned
    from. A single image is cut: its last quarter is validated on, or the rest if that has fewer classes. Raises
    UserError if the labels to train on have a single class, or those to validate on none."""
    if settings.folds is None and settings.fold != 1:
        raise UserError(f"--fold {settings.fold}: expected --folds with it, the number of parts")
    asked = settings.model_fields_set & {"val_fraction", "folds"}
    if len(asked) == 2:
        raise UserError(f"--val-fraction {settings.val_fraction}, --folds {settings.folds}: expected only one of them")
    kind, single = settings.val_split, len(samples) == 1
    if single:
        samples, kind = halves(samples[0]), "contiguous"
    elif kind == "auto":
        kind = "contiguous" if is_stack(samples) else "spread"
    order = arrange(samples, kind, settings.seed)
    if settings.folds is None:
        turns = len(order) if settings.val_split == "auto" else 1
        looks = [(start, colour, round(brightness)) for start, colour, _, brightness in kind_of(samples)]
        present = [{*classes_in([sample]), look} for sample, look in zip(samples, looks, strict=True)]
        sides = max(
            (split(order[turn:] + order[:turn], settings.val_fraction) for turn in range(turns)),
            key=lambda sides: [len(set().union(*(present[i] for i in side))) for side in sides],
        )
    else:
        sides = split_fold(order, settings.folds, int(settings.fold))
    training, validation = ([samples[i] for i in side] for side in sides)
    if single:
        advice = "label both ends of the image, or a second image"
    else:
        other = "fold" if settings.folds else "val-fraction"
        advice = f"choose other images with --val-split random or another --{other}"
    if len(classes_in(training)) < 2:
        raise UserError(f"all labels to train on hold a single class: expected at least two; {advice}")
    if not classes_in(validation):
        raise UserError(f"all pixels to validate on are ignored: expected some with a class; {advice}")
    spared = asked or len(validation) >= ENOUGH
    return Division(training, validation, kind, 1.0 if spared else HELD_OUT * min(1, len(samples) / MANY))


def classes_in(samples: Sequence[Sample]) -> set[int]:
    """Indices of the classes that the labels contain."""
    return {i for sample in samples for i in sample.counts} - {IGNORED}


def ignored_share(samples: Sequence[Sample]) -> float:
    """Share of the pixels that are ignored, 0..1."""
    ignored = sum(sample.counts[IGNORED] for sample in samples)
    return ignored / sum(sample.label.size for sample in samples)


def smallest_object(samples: Sequence[Sample]) -> int:
    """Half the pixels that nine in ten labelled objects have: what is smaller is mostly noise. (Of two images of
    nuclei, AP at IoU 0.5 on 14 others was 0.63 with objects of 10 pixels and more, 0.67 of 30 and more.) Without ids
    they are the connected regions of all classes but the first. Objects that a side of the image cuts do not count."""
    areas = [np.zeros(0, np.int64)]
    for objects in (ids for each in samples for ids in _objects(each)):
        area = np.bincount(objects.ravel())
        area[np.concatenate([[0], objects[0], objects[-1], objects[:, 0], objects[:, -1]])] = 0
        areas.append(area[area > 0])
    found = np.concatenate(areas)
    return max(1, int(np.quantile(found, 0.1)) // 2) if len(found) else 1


def _objects(sample: Sample) -> Iterator[npt.NDArray[np.int32]]:
    """Ids (H, W) of objects, of each class in turn."""
    if sample.objects is not None:
        yield sample.objects
        return
    for k in sorted(classes_in([sample]) - {0}):
        yield np.asarray(cv2.connectedComponents((sample.label == k).astype(np.uint8), connectivity=4)[1], np.int32)


def read_unlabelled(folder: Path, n_channels: int, channel: int | None) -> list[Sample]:
    """Images of a folder and its subfolders, with nothing but ignored pixels as labels; at most UNLABELLED pages,
    evenly from all files. Prints what is left out, and why. Raises UserError if nothing is left."""
    if not folder.is_dir():
        raise UserError(f"--unlabelled {folder}: expected a folder of images")
    files = images_below(folder)
    step = max(1, -(-len(files) // UNLABELLED))
    samples: list[Sample] = []
    problems: list[str] = []
    for path in files[::step]:
        name = path.relative_to(folder).as_posix()
        with collect(problems, name):
            for image in read_image([path], channel)[0]:
                match_channels(to_pixels(image)[0][:1, :1], n_channels)
                samples.append(Sample(name, image, np.full(image.shape[:2], IGNORED, np.uint8)))
    if problems:
        print(f"          left out of --unlabelled: {'; '.join(problems[:5])}" + ("; ..." if len(problems) > 5 else ""))
    if not samples:
        raise UserError(f"--unlabelled {folder}: found no images ({', '.join(imaging.SUFFIXES)})")
    kept = samples[:: -(-len(samples) // UNLABELLED)]
    print(f"unlabelled {len(kept)} images of {len(files)} in {folder}: learned from by consistency")
    return kept
