"""A data folder: `Training_Images/NAME.ext` with `Training_Labels/NAME.ext`, read whole and checked first.

Two label values make a binary problem (the higher one is the foreground), more make one class per value.
Images are in the order of their names, in which numbers count as numbers: 2 comes before 10.
"""

import hashlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet.images import SUFFIXES, ImageError, decode
from unet.pixels import PixelError, luminance, to_pixels

IMAGES, LABELS = "Training_Images", "Training_Labels"
MAX_CLASSES = 64
LOSSY = (".jpg", ".jpeg", ".webp")

NOISY_LABEL = (
    "JPEG, WebP and smooth resizing add grey values between classes: save labels as PNG, resize them to the nearest "
    "value"
)

Array = npt.NDArray[Any]
Colours = dict[int, dict[tuple[int, ...], str]]
"""Of labels: grey value -> colours that became it -> the first label that has them."""
SplitKind = Literal["contiguous", "random"]


class DataError(ValueError):
    """Everything that is wrong with a data folder, one line per problem."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{folder}: {count} with the data:", *problems]))
        self.problems = problems


@dataclass(frozen=True)
class Sample:
    """One annotated image: a file, or a page of a multi-page one."""

    name: str
    image: Array
    """(H, W) or (H, W, 3), uint8, uint16 or float32."""
    label: npt.NDArray[np.uint8]
    """(H, W), the index of each pixel's class in `DataSet.class_values`."""


@dataclass(frozen=True)
class DataSet:
    samples: list[Sample]
    class_values: tuple[int, ...]
    files: dict[str, str]
    """SHA-256 of each file, by its name in the folder."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and contents of all files."""
        listing = "".join(f"{digest}  {name}\n" for name, digest in self.files.items())
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def n_classes(self) -> int:
        """1 for a binary problem, else the number of classes: the network's output channels."""
        return 1 if len(self.class_values) == 2 else len(self.class_values)

    @property
    def n_channels(self) -> int:
        """3 if any image has colour, else 1; grey pictures saved as RGB are grey."""
        return 3 if any(_has_colour(sample.image) for sample in self.samples) else 1


def read_folder(folder: Path) -> DataSet:
    """Reads and checks all of it, in the order of names. Raises DataError listing every problem, by file name."""
    problems: list[str] = []
    pairs = _pair(folder, problems)
    files: dict[str, str] = {}
    pages: list[tuple[str, Array, Array]] = []
    colours: Colours = defaultdict(dict)
    for image_path, label_path in pairs:
        images, labels = (_read(folder, path, files, problems) for path in (image_path, label_path))
        if images is not None and labels is not None:
            pages += _match_pages(image_path, label_path, images, labels, colours, problems)

    values = sorted({int(value) for _, _, label in pages for value in np.unique(label)} if not problems else ())
    if not problems and len(values) == 1:
        problems.append(f"{LABELS}: only one value in all ({values[0]}): nothing to tell apart; expected at least two")
    if not problems and len(values) > MAX_CLASSES:
        problems.append(f"{LABELS}: {len(values)} different values in all; expected 2 to {MAX_CLASSES}: {NOISY_LABEL}")
    if not problems and len(values) > 2 and not 0 <= values[0] <= values[-1] <= 255:
        odd = next(name for name, _, label in pages if not 0 <= label.min() <= label.max() <= 255)
        problems.append(
            f"{LABELS}: class values from {values[0]} to {values[-1]}; expected 0 to 255, since masks are 8-bit; the "
            f"first others are in {odd}"
        )
    if not problems:
        problems += _equally_bright(colours)
    if not problems and values == [0, 1, 255]:
        ones, full = ([name for name, _, label in pages if value in label] for value in (1, 255))
        if not set(ones) & set(full):
            problems.append(
                f"{LABELS}: the foreground is 1 in {ones[0]} and 255 in {full[0]}, and no label has both; expected one "
                "value per class: save all labels as 0 and 255, or as 0, 1 and 2 if these are three classes"
            )
    if problems:
        raise DataError(folder, problems)
    samples = [Sample(name, image, np.searchsorted(values, label).astype(np.uint8)) for name, image, label in pages]
    return DataSet(samples, tuple(values), files)


def split(n_samples: int, fraction: float, kind: SplitKind, seed: int) -> tuple[list[int], list[int]]:
    """Indices for (training, validation), at least one each. A single sample is both.

    `contiguous` takes the last ones for validation, so that neighbouring slices of a stack stay on one side.
    """
    if n_samples == 1:
        return [0], [0]
    n_val = min(max(1, math.floor(n_samples * fraction + 1e-9)), n_samples - 1)  # what is left over is to learn from
    order = _order(n_samples, kind, seed)
    return sorted(order[:-n_val]), sorted(order[-n_val:])


def split_fold(n_samples: int, folds: int, fold: int, kind: SplitKind, seed: int) -> tuple[list[int], list[int]]:
    """Indices for (training, validation) in cross-validation: every sample is validated on in one fold of 1 .. folds.

    Raises ValueError for a fold that is not there, or more folds than samples.
    """
    if not 1 <= fold <= folds <= n_samples:
        raise ValueError(f"fold {fold} of {folds}: expected 1 <= fold <= folds <= {n_samples}, the number of images")
    parts = np.array_split(_order(n_samples, kind, seed), folds)
    val = sorted(int(i) for i in parts[fold - 1])
    return [i for i in range(n_samples) if i not in val], val


def _order(n_samples: int, kind: SplitKind, seed: int) -> list[int]:
    if kind == "contiguous":
        return list(range(n_samples))
    return [int(i) for i in np.random.default_rng(seed).permutation(n_samples)]


def _pair(folder: Path, problems: list[str]) -> list[tuple[Path, Path]]:
    missing = [name for name in (IMAGES, LABELS) if not (folder / name).is_dir()]
    if missing:  # it is not one problem for each file of the other folder
        problems += [f"{name}/: no such folder" for name in missing]
        return []
    images, labels = (_by_stem(folder, name, problems) for name in (IMAGES, LABELS))
    if not problems and not images and not labels:
        problems.append(f"no images: expected {IMAGES}/NAME.png with {LABELS}/NAME.png ({', '.join(SUFFIXES)})")
    for stem in sorted(images.keys() - labels.keys()):
        problems.append(f"{IMAGES}/{images[stem].name}: has no label {LABELS}/{stem}.*{_others(folder / LABELS, stem)}")
    for stem in sorted(labels.keys() - images.keys()):
        problems.append(f"{LABELS}/{labels[stem].name}: has no image {IMAGES}/{stem}.*{_others(folder / IMAGES, stem)}")
    return [(images[stem], labels[stem]) for stem in images if stem in labels]


def _others(folder: Path, stem: str) -> str:
    """Files of that name that are not read."""
    names = [path.name for path in sorted(folder.glob("*")) if path.stem == stem]
    return f"; {names[0]} is of a kind that is not read ({', '.join(SUFFIXES)} are)" if names else ""


def _by_stem(folder: Path, name: str, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted((folder / name).iterdir(), key=_order_of_name):
        if path.is_dir() and not path.name.startswith("."):
            problems.append(f"{name}/{path.name}/: a folder, in which nothing is looked for; expected images")
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or path.is_dir():
            continue
        if path.stem in found:
            problems.append(f"{name}/{path.name}: has the same name as {found[path.stem].name}")
        else:
            found[path.stem] = path
    return found


def _order_of_name(path: Path) -> tuple[list[str | int], str]:
    """For `sorted`: text and numbers by turns, in which 2 comes before 10; then the name, since 01 is as much as 1."""
    parts = re.split(r"(\d+)", path.stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _read(folder: Path, path: Path, files: dict[str, str], problems: list[str]) -> list[Array] | None:
    name = path.relative_to(folder)
    try:
        if path.is_fifo():
            problems.append(f"{name}: expected a file, found a pipe, which would be waited for")
            return None
        data = path.read_bytes()
        files[name.as_posix()] = hashlib.sha256(data).hexdigest()
        return decode(data)
    except (OSError, ImageError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        problems.append(f"{name}: cannot be read: {reason}")
        return None


def _match_pages(
    image_path: Path,
    label_path: Path,
    images: list[Array],
    labels: list[Array],
    colours: Colours,
    problems: list[str],
) -> list[tuple[str, Array, Array]]:
    """Page i of the image belongs to page i of the label."""
    if len(images) != len(labels):
        problems.append(f"{LABELS}/{label_path.name}: {len(labels)} pages; expected {len(images)}, as its image has")
        return []
    matched = []
    for i, (image, coloured) in enumerate(zip(images, labels, strict=True)):
        label = _grey(coloured)
        page = f" page {i + 1}" if len(images) > 1 else ""
        image_name, label_name = f"{IMAGES}/{image_path.name}{page}", f"{LABELS}/{label_path.name}{page}"
        if image.shape[:2] != label.shape:
            problems.append(f"{label_name}: {_size(label)} pixels; expected {_size(image)}, as its image has")
        if problem := _image_problem(image):
            problems.append(f"{image_name}: {problem}")
        if problem := _label_problem(label, lossy=label_path.suffix.lower() in LOSSY):
            problems.append(f"{label_name}: {problem}")
        else:
            for grey, colour in _colours(coloured, label):
                colours[grey].setdefault(colour, label_name)
        matched.append((f"{image_path.stem}{page}", image, label))
    return matched


def _image_problem(image: Array) -> str | None:
    try:
        to_pixels(image)
    except PixelError as error:
        return str(error)
    return None


def _label_problem(label: Array, *, lossy: bool) -> str | None:
    values = np.unique(label)
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        return "values that are not whole numbers; expected one whole number per class"
    if len(values) > MAX_CLASSES or (lossy and len(values) > 2):
        return f"{len(values)} different values; expected 2 (or one per class, at most {MAX_CLASSES}): {NOISY_LABEL}"
    return None


def _grey(label: Array) -> Array:
    """A label in colour, such as red on black or a looked-up palette, is read by its luminance."""
    if label.ndim == 2:
        return label
    return label[:, :, 0] if not _has_colour(label) else np.rint(luminance(label)).astype(label.dtype)


def _colours(label: Array, grey: Array) -> set[tuple[int, tuple[int, ...]]]:
    """Grey value and colour of what is in a label."""
    if label.ndim == 2:
        return {(int(value), 3 * (int(value),)) for value in np.unique(grey)}
    one_number = np.zeros(grey.shape, np.int64)
    for channel in range(3):  # of 16 bits at most, or few enough values
        one_number = one_number * 2**16 + label[:, :, channel].astype(np.int64)
    _, first = np.unique(one_number, return_index=True)
    found = zip(grey.ravel()[first].tolist(), label.reshape(-1, 3)[first].tolist(), strict=True)
    return {(int(value), tuple(map(int, colour))) for value, colour in found}


def _equally_bright(colours: Colours) -> list[str]:
    """Colours that would become one class."""
    problems = []
    for grey, found in colours.items():
        if len(found) > 1:
            (one, first), (other, second), *_ = found.items()
            problems.append(
                f"{second}: the colour {other} is as bright as {one} in {first}, so both would be the class {grey}: "
                "save labels with one grey value per class"
            )
    return problems


def _has_colour(image: Array) -> bool:
    return image.ndim == 3 and bool((image != image[:, :, :1]).any())


def _size(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
