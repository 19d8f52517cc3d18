"""Labels as their sources have them, and the flags by which they are read. What they mean: `trainer.data.classes`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet import imaging
from unet.errors import UserError
from unet.imaging import Picture

Array = npt.NDArray[Any]
Colour = tuple[int, ...]
LabelsKind = Literal["auto", "classes", "instances", "threshold"]
"""`threshold`: two classes with soft edges, divided half-way between the lowest and the highest value."""


@dataclass(frozen=True)
class LabelPage:
    """A page of a label as its source has it: a file, or shapes that were drawn."""

    values: Array  # (H, W) whole numbers as stored, or (H, W, 3) colours
    colours: Mapping[int, Colour] = field(default_factory=dict)  # RGB of values, by a palette or label map
    names: Mapping[int | Colour, str] = field(default_factory=dict)  # of classes, by value or by colour
    objects: npt.NDArray[np.int32] | None = None  # (H, W) ids, 0 background, where the source knows objects
    ignored: npt.NDArray[np.bool_] | None = None  # (H, W) pixels that the source marks as without an opinion
    orientation: int | None = None  # EXIF orientation of the file, which was applied; None for shapes


@dataclass(frozen=True)
class LabelFile:
    """A label that is an image file."""

    path: Path
    name: str  # relative to the data folder
    names: Mapping[int | Colour, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, sizes: list[tuple[int, int]]) -> list[LabelPage]:
        """Pages of the file, which need not have the sizes of the image's. Raises UserError and OSError."""
        picture = read_picture(self.path, as_stored=True)
        palette: dict[int, Colour] = dict(enumerate(picture.metadata.palette))
        if all(colour == (i, i, i) for i, colour in palette.items()):  # a grey image with a palette
            palette = {}
        return [LabelPage(p, palette, self.names, orientation=picture.metadata.orientation) for p in picture.pages]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set is read: the flags of the same names."""

    label_suffix: str | None = None
    labels: LabelsKind = "auto"
    ignore_value: str | None = None  # a number, or #rrggbb
    class_names: tuple[str, ...] = ()  # in the order of the classes' values
    channel: int | None = None  # of the images, from 1

    def __post_init__(self) -> None:
        if self.ignore_value is not None and not re.fullmatch(r"-?\d+|#[0-9a-fA-F]{6}", self.ignore_value):
            raise UserError(f"--ignore-value {self.ignore_value}: expected a whole number, or a colour as #rrggbb")


def read_picture(path: Path, as_stored: bool = False) -> Picture:
    """Picture of an image file. Raises OSError and UserError, also for an animation, as only its first picture would be
    read."""
    picture = imaging.read(read_bytes(path), as_stored=as_stored)
    if picture.metadata.animated:
        raise UserError("found an animation; expected one picture: save its pictures as a TIFF of several pages")
    return picture


def read_bytes(path: Path) -> bytes:
    """Contents of a file. Raises UserError for a pipe or device, which would be waited for, and OSError."""
    if path.exists() and not path.is_file():
        raise UserError("found a pipe or device; expected a file")
    return path.read_bytes()


def consecutive(ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Object ids (H, W) renumbered 1, 2, ... n, 0 for the background."""
    ranks = np.unique(np.append(0, ids), return_inverse=True)[1]  # 0 is the first one, whether it is there or not
    return np.asarray(ranks[1:], np.int64).reshape(ids.shape)


def has_colour(image: Array) -> bool:
    """Whether channels differ: a grey image saved as RGB has no colour."""
    return image.ndim == 3 and bool((image != image[:, :, :1]).any())
