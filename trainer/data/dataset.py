"""Data sets: a folder of images and labels, read into memory and checked as a whole."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.labels import Classes, Colour, default_colours, has_colour
from trainer.data.pairs import find_pairs
from unet import imaging
from unet.errors import UserError
from unet.pixels import to_pixels

Array = npt.NDArray[Any]


class DataError(UserError):
    """List of everything wrong with a data set, one line per problem."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{folder}: {count} with the data:", *problems]))
        self.problems = problems


@dataclass(frozen=True)
class Sample:
    """One annotated image: a file, or a page of a multi-page file."""

    name: str
    image: Array  # (H, W) or (H, W, 3) RGB; uint8, uint16 or float32
    label: npt.NDArray[np.uint8]  # (H, W) class indices: positions in `DataSet.class_values`; or IGNORED
    objects: npt.NDArray[np.int32] | None = None  # (H, W) ids, 0 background; in a data set of instances


@dataclass(frozen=True)
class DataSet:
    """Samples in natural order of their names."""

    samples: list[Sample]
    class_values: tuple[int, ...]  # values of the classes in label files, ascending
    files: dict[str, str]  # SHA-256 of each file, by its path in the folder
    class_names: tuple[str, ...] = ()  # one for each value; by default background and foreground, or the value
    class_colours: tuple[Colour, ...] = ()  # RGB, one for each value; by default a wheel of hues
    instances: bool = False  # objects are learned with their borders; `Sample.objects` has them

    def __post_init__(self) -> None:
        n = len(self.class_values)
        names = ("background", "foreground") if n == 2 else tuple(map(str, self.class_values))
        object.__setattr__(self, "class_names", self.class_names or names)
        object.__setattr__(self, "class_colours", self.class_colours or default_colours(n))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and contents of all files."""
        listing = "".join(f"{digest}  {name}\n" for name, digest in self.files.items())
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def n_classes(self) -> int:
        """Output channels of the network: 1 for a binary problem, 3 for objects (background, inside, border), else the
        number of classes."""
        return 3 if self.instances else 1 if len(self.class_values) == 2 else len(self.class_values)

    @property
    def n_channels(self) -> int:
        """Input channels of the network: 3 if any image has colour, else 1."""
        return 3 if any(has_colour(sample.image) for sample in self.samples) else 1


def read_folder(folder: Path) -> DataSet:
    """Data set of a folder; page i of a label belongs to page i of its image. Raises DataError with all problems, by
    file name."""
    pairs, problems = find_pairs(folder)
    classes = Classes()
    files: dict[str, str] = {}
    pages: list[tuple[str, Array, Array]] = []  # name, image, label values
    for pair in pairs:
        image_file, label_file = (path.relative_to(folder).as_posix() for path in (pair.image, pair.label))
        images: list[Array] = []
        labels: list[Array] = []
        with collect(problems, image_file):
            images, files[image_file] = read_pages(pair.image)
        with collect(problems, label_file):
            labels, files[label_file] = read_pages(pair.label)
        if images and labels and len(images) != len(labels):
            problems.append(f"{label_file}: number of pages is {len(labels)}; expected {len(images)} as in its image")
            continue
        lossy = pair.label.suffix.lower() in (".jpg", ".jpeg", ".webp")
        for i, (image, label) in enumerate(zip(images, labels, strict=False), start=1):
            page = f" page {i}" if len(images) > 1 else ""
            size, expected = (f"{each.shape[1]} x {each.shape[0]}" for each in (label, image))
            if size != expected:
                problems.append(f"{label_file}{page}: found {size} pixels; expected {expected} as in its image")
            with collect(problems, image_file + page):
                to_pixels(image)
            with collect(problems, label_file + page):
                pages.append((pair.name + page, image, classes.read(label, label_file + page, lossy=lossy)))
    if problems := problems or classes.problems():
        raise DataError(folder, problems)
    samples = [Sample(name, image, classes.indices(values)) for name, image, values in pages]
    return DataSet(samples, classes.values, files)


def read_pages(path: Path) -> tuple[list[Array], str]:
    """Pages of an image file, and its SHA-256. Raises UserError and OSError."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError("found a pipe or device; expected a file")
    data = path.read_bytes()
    return imaging.read(data).pages, hashlib.sha256(data).hexdigest()


@contextmanager
def collect(problems: list[str], name: str) -> Iterator[None]:
    """Add errors with the file of that name to `problems`."""
    try:
        yield
    except UserError as error:
        problems.append(f"{name}: {error}")
    except OSError as error:
        problems.append(f"{name}: cannot be read: {error.strerror or error}")
