"""Data sets: a folder of images and labels, read into memory and checked as a whole."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.labels import Classes, has_colour
from trainer.data.pairs import Pair, find_pairs
from unet import imaging
from unet.errors import UserError
from unet.pixels import to_pixels

Array = npt.NDArray[Any]

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


class DataError(UserError):
    """Everything wrong with a data set, one line per problem."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{folder}: {count} with the data:", *problems]))
        self.problems = problems


@dataclass(frozen=True)
class Sample:
    """One annotated image: a file, or a page of a multi-page file."""

    name: str
    image: Array  # (H, W) or (H, W, 3) RGB; uint8, uint16 or float32
    label: npt.NDArray[np.uint8]  # (H, W) class indices: positions in `DataSet.class_values`


@dataclass(frozen=True)
class DataSet:
    """Samples in natural order of their names."""

    samples: list[Sample]
    class_values: tuple[int, ...]  # values of the classes in label files, ascending
    files: dict[str, str]  # SHA-256 of each file, by its path in the folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and contents of all files."""
        listing = "".join(f"{digest}  {name}\n" for name, digest in self.files.items())
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def n_classes(self) -> int:
        """Output channels of the network: 1 for a binary problem, else the number of classes."""
        return 1 if len(self.class_values) == 2 else len(self.class_values)

    @property
    def n_channels(self) -> int:
        """Input channels of the network: 3 if any image has colour, else 1."""
        return 3 if any(has_colour(sample.image) for sample in self.samples) else 1


def read_folder(folder: Path) -> DataSet:
    """Data set of a folder. Raises DataError with all problems, by file name."""
    pairs, problems = find_pairs(folder)
    reader = Reader(folder, problems)
    for pair in pairs:
        reader.read(pair)
    problems = problems or reader.classes.problems()
    if problems:
        raise DataError(folder, problems)
    samples = [Sample(name, image, reader.classes.indices(values)) for name, image, values in reader.pages]
    return DataSet(samples, reader.classes.values, reader.files)


class Reader:
    """Reads pairs of files; collects their pages, classes and checksums, and everything wrong with them."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        self.folder = folder
        self.problems = problems
        self.classes = Classes()
        self.files: dict[str, str] = {}
        self.pages: list[tuple[str, Array, Array]] = []  # name, image, label values

    def read(self, pair: Pair) -> None:
        """Page i of the label belongs to page i of the image."""
        image_file, label_file = self.name(pair.image), self.name(pair.label)
        images, labels = self.read_pages(pair.image), self.read_pages(pair.label)
        if images and labels and len(images) != len(labels):
            self.problems.append(
                f"{label_file}: number of pages is {len(labels)}; expected {len(images)} as in its image"
            )
            return
        for i, (image, label) in enumerate(zip(images, labels, strict=False), start=1):
            page = f" page {i}" if len(images) > 1 else ""
            if _size(image) != _size(label):
                expected = f"expected {_size(image)} as in its image"
                self.problems.append(f"{label_file}{page}: found {_size(label)} pixels; {expected}")
            with self.collect(image_file + page):
                to_pixels(image)
            with self.collect(label_file + page):
                values = self.classes.read(label, label_file + page, lossy=pair.label.suffix.lower() in LOSSY_SUFFIXES)
                self.pages.append((pair.name + page, image, values))

    def read_pages(self, path: Path) -> list[Array]:
        """Pages of an image file; none if it cannot be read."""
        with self.collect(self.name(path)):
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise UserError("found a pipe or device; expected a file")
            data = path.read_bytes()
            self.files[self.name(path)] = hashlib.sha256(data).hexdigest()
            return imaging.read(data).pages
        return []

    @contextmanager
    def collect(self, name: str) -> Iterator[None]:
        """Adds errors to `problems`."""
        try:
            yield
        except UserError as error:
            self.problems.append(f"{name}: {error}")
        except OSError as error:
            self.problems.append(f"{name}: cannot be read: {error.strerror or error}")

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _size(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
