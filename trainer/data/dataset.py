"""Data sets: a folder of images and labels, read into memory and checked as a whole."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.classes import Labels, count
from trainer.data.labels import Colour, LabelPage, Reading, has_colour, read_bytes, read_picture
from trainer.data.layouts import MANY
from trainer.data.pairs import find_pairs
from trainer.data.store import Store
from trainer.losses import IGNORED
from unet.checkpoint import default_colours, default_names
from unet.errors import UserError
from unet.listing import is_image, plural, some
from unet.pixels import to_pixels

Array = npt.NDArray[Any]


class DataError(UserError):
    """List of everything wrong with a data set, one line per problem, or for many that differ in numbers only."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        heading = f"{folder}: {plural(len(problems), 'problem')} with the data:"
        super().__init__("\n  ".join([heading, *shortened(problems)]))
        self.problems = problems


@dataclass(frozen=True)
class Sample:
    """One annotated image: a file, or a page of a multi-page file."""

    name: str
    image: Array  # (H, W) or (H, W, C), as imaging.read gives it
    label: npt.NDArray[np.uint8]  # (H, W) class indices: positions in `DataSet.class_values`; or IGNORED
    objects: npt.NDArray[np.int32] | None = None  # (H, W) ids, 0 background; in a data set of instances

    @cached_property
    def counts(self) -> Counter[int]:
        """Pixels of each class index, and of IGNORED."""
        return count(self.label)

    @property
    def is_labelled(self) -> bool:
        """Whether any pixel has a class."""
        return self.counts[IGNORED] < self.label.size


@dataclass(frozen=True)
class DataSet:
    """Samples in natural order of their names."""

    samples: list[Sample]
    class_values: tuple[int, ...]  # values of the classes in label files, ascending
    files: dict[str, str]  # SHA-256 of each file, by its path in the folder
    class_names: tuple[str, ...] = ()  # one for each value; by default background and foreground, or the value
    class_colours: tuple[Colour, ...] = ()  # RGB, one for each value; by default a wheel of hues
    instances: bool = False  # objects are learned with their borders; `Sample.objects` has them
    notes: tuple[str, ...] = ()  # what was guessed or left out, a line each

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", self.class_names or default_names(self.class_values))
        colours = self.class_colours or default_colours(len(self.class_values))
        object.__setattr__(self, "class_colours", colours)

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
        """Input channels of the network: those of the images; 3 for grey and RGB ones."""
        return max(n_channels(sample.image) for sample in self.samples)


def read_folder(folder: Path, reading: Reading | None = None, store: Store | None = None) -> DataSet:
    """Data set of a folder (or a file with annotations); page i of a label belongs to page i of its image. `store` is
    for large ones. Raises DataError with all problems, by file name."""
    reading, keep = reading or Reading(), store.keep if store else lambda array: array
    found = find_pairs(folder, reading.label_suffix)
    problems, labels, files = found.problems, Labels(reading), dict[str, str]()
    names: list[str] = []
    turned: list[str] = []  # labels without EXIF of images with one
    root = folder if folder.is_dir() else folder.parent
    for pair in found.pairs:
        images: list[Array] = []
        image_file = Path(os.path.relpath(pair.images[0], root)).as_posix()
        with collect(problems, image_file):
            images, orientation = read_image(pair.images, reading.channel)
            images = [keep(image) for image in images]
            files |= checksums(pair.images, root)
        if not images:
            continue
        pages: list[LabelPage] = []
        with collect(problems, pair.label.name):
            pages = pair.label.read([image.shape[:2] for image in images])
            pages = [replace(page, values=keep(page.values)) for page in pages]
            files |= checksums([path for path in pair.label.files if path not in pair.images], root, files)
            if len(pages) != len(images):
                n = n_channels(images[0])
                channels = f", which has {n} channels" if n > 1 else ""
                raise UserError(f"number of pages is {len(pages)}; expected {len(images)} as in its image{channels}")
        for i, (image, label) in enumerate(zip(images, pages, strict=False), start=1):
            page = f" page {i}" if len(images) > 1 else ""
            only_image_turned = orientation > 1 and label.orientation == 1
            with collect(problems, image_file + page):
                check_pixels(image)
            with collect(problems, pair.label.name + page):
                check_size(label.values, image, only_image_turned)
                labels.add(label, image, pair.label.name + page)
                names.append(pair.name + page)
                turned += [pair.label.name + page] * only_image_turned
    page_images = [page.image for page in labels.pages]
    problems = problems or channel_problems(names, page_images)
    meaning, wrong = (None, problems) if problems else labels.decide()
    if meaning is None:
        raise DataError(folder, wrong)
    drawn = zip(names, page_images, labels.drawn(meaning), strict=True)
    samples = [
        Sample(name, image, keep(label), objects if objects is None else keep(objects))
        for name, image, (label, objects) in drawn
    ]
    notes = [*found.left_out, *labels.notes]
    if turned:
        notes.append(f"{some(turned, 1)}: without EXIF, beside an image that its EXIF orientation turns: see check.png")
    return DataSet(
        samples, meaning.values, files, meaning.names, meaning.colours, instances=meaning.instances, notes=tuple(notes)
    )


def shortened(problems: list[str]) -> list[str]:
    """The problems; of those that say the same of many files, the first few and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"\d+", "", problem.partition(": ")[2]), []).append(problem)
    shown = []
    for same in kinds.values():
        shown += same if len(same) <= MANY else [*same[:2], f"... and so do {len(same) - 2} more"]
    return shown


def read_image(paths: Sequence[Path], channel: int | None) -> tuple[list[Array], int]:
    """Pages of an image, and the EXIF orientation that was applied. Several files have a channel each; `channel`,
    from 1, takes one. Raises UserError and OSError."""
    pictures = [read_picture(path) for path in paths]
    pages = pictures[0].pages
    if len(paths) > 1:
        if len({tuple(page.shape for page in picture.pages) for picture in pictures}) > 1:
            raise UserError(f"{', '.join(path.name for path in paths)}: expected channels of one size")
        pages = [np.dstack(channels) for channels in zip(*(picture.pages for picture in pictures), strict=True)]
    if channel is not None:
        if (n := min(page.shape[2] if page.ndim == 3 else 1 for page in pages)) < channel:
            raise UserError(f"found {plural(n, 'channel')}; expected at least {channel}, by --channel")
        pages = [np.ascontiguousarray(np.atleast_3d(page)[:, :, channel - 1]) for page in pages]
    return pages, pictures[0].metadata.orientation


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and all its subfolders."""
    return [path for path in sorted(folder.rglob("*")) if is_image(path) and path.is_file()]


def checksums(paths: Iterable[Path], root: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of files, by their paths from `root` on; of those in `known` it is taken from there."""
    names = {Path(os.path.relpath(path, root)).as_posix(): path for path in paths}
    known = known or {}
    return {name: known.get(name) or hashlib.sha256(read_bytes(path)).hexdigest() for name, path in names.items()}


def check_pixels(image: Array) -> None:
    """Raises UserError for pixels that cannot be learned from."""
    to_pixels(image)
    if image.dtype.kind == "f" and not np.isfinite(image).any():
        raise UserError("expected finite pixel values; found none")


def check_size(label: Array, image: Array, only_image_turned: bool) -> None:
    """Raises UserError unless label and image have one size."""
    size, expected = (f"{each.shape[1]} x {each.shape[0]}" for each in (label, image))
    if size != expected:
        advice = ", which its EXIF orientation turns: turn the label as well, or save the image without EXIF"
        exif = advice if only_image_turned else ""
        turned = " (turned by 90 degrees?)" if label.shape[:2] == image.shape[1::-1] and not exif else ""
        raise UserError(f"found {size} pixels; expected {expected} as in its image{exif}{turned}")


def n_channels(image: Array) -> int:
    """Channels of an image; 1 for a grey one saved as RGB."""
    return image.shape[2] if image.ndim == 3 and (image.shape[2] != 3 or has_colour(image)) else 1


def channel_problems(names: list[str], images: list[Array]) -> list[str]:
    """One line for each image whose number of channels is not that of most others. Grey and RGB go together."""
    found = [n_channels(image) for image in images]
    kinds = Counter(3 if n == 1 and 3 in found else n for n in found)
    usual = kinds.most_common(1)[0][0] if kinds else 0
    fit = {usual, 1} if usual == 3 else {usual}
    return [
        f"{name}: found {plural(n, 'channel')}; expected {usual}, as most images have"
        for name, n in zip(names, found, strict=True)
        if n not in fit
    ]


@contextmanager
def collect(problems: list[str], name: str) -> Iterator[None]:
    """Add errors with the file of that name to `problems`."""
    try:
        yield
    except UserError as error:
        problems.append(f"{name}: {error}")
    except OSError as error:
        problems.append(f"{name}: cannot be read: {error.strerror or error}")
