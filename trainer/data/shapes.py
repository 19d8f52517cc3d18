"""Shapes of annotation tools, drawn as a label.

A pixel belongs to a polygon that contains its centre; pixel (x, y) covers x to x + 1 and y to y + 1, as in QuPath, COCO
and on the canvas of labelme. (OpenCV's fillPoly paints the outline, too: a square of 3 x 3 pixels would be 4 x 4, and
neighbours would overlap.)
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.labels import Array, Colour, LabelPage
from unet.errors import UserError

BACKGROUND, IGNORE = "_background_", "__ignore__"  # labelme's names of what is no class
Mask = npt.NDArray[np.bool_]
Window = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Shape:
    """One region of a class: the union of polygons, or a bitmap."""

    name: str  # of its class; "" if the tool gave none
    polygons: list[list[Array]] = field(default_factory=list)  # each an outline and its holes, (N, 2) x and y in pixels
    bitmap: Callable[[], Mask] | None = None  # (h, w), decoded when it is drawn
    corner: tuple[int, int] = (0, 0)  # x and y of the bitmap's first pixel
    group: Hashable = None  # shapes of one name and group are one object; None: an object of its own

    def drawn(self, height: int, width: int) -> tuple[Window, Mask]:
        """Pixels of the shape in an image of that size: a window of the image, and which of its pixels are inside."""
        if self.bitmap is not None:
            bitmap, (left, top) = self.bitmap(), self.corner
            bottom, right = top + bitmap.shape[0], left + bitmap.shape[1]
        else:
            rings = np.concatenate([polygon[0] for polygon in self.polygons])
            (left, top), (right, bottom) = np.floor(rings.min(axis=0)), np.ceil(rings.max(axis=0))
        x0, y0, x1, y1 = (
            int(np.clip(v, 0, n)) for v, n in zip((left, top, right, bottom), 2 * (width, height), strict=True)
        )
        if x0 == x1 or y0 == y1:
            where = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}"
            raise UserError(f"found a shape at {where}; expected it inside the image of {width} x {height} pixels")
        if self.bitmap is not None:
            inside = bitmap[y0 - self.corner[1] : y1 - self.corner[1], x0 - self.corner[0] : x1 - self.corner[0]]
        else:
            inside = np.zeros((y1 - y0, x1 - x0), bool)
            for polygon in self.polygons:
                inside |= fill([ring - (x0, y0) for ring in polygon], *inside.shape)
        return (slice(y0, y1), slice(x0, x1)), inside


def fill(rings: list[Array], height: int, width: int) -> Mask:
    """Pixels (H, W) whose centres are inside an odd number of rings, (N, 2) x and y each: an outline with its holes.

    Scan lines: from each crossing of a ring with a row of centres on, the row's pixels change sides.
    """
    changes = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        x, y = (ring - 0.5).T  # centres are at whole numbers
        next_x, next_y = np.roll(x, -1), np.roll(y, -1)
        first, end = np.ceil(np.sort([y, next_y], axis=0)).clip(0, height).astype(int)  # rows that an edge crosses
        edge = np.repeat(np.arange(len(ring)), end - first)
        row = np.arange(len(edge)) + (end - np.cumsum(end - first))[edge]
        crossing = x[edge] + (row - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
        np.bitwise_xor.at(changes, (row, np.ceil(crossing).clip(0, width).astype(int)), 1)
    return np.bitwise_xor.accumulate(changes, axis=1)[:, :width].astype(bool)


@dataclass(frozen=True)
class Legend:
    """Classes of shapes, the same for all files of a data set: 0 is the background."""

    values: dict[str, int]  # by name
    colours: dict[str, Colour]  # RGB by name, where the tool says it

    @property
    def names(self) -> dict[int | Colour, str]:
        return {0: "background", **{value: name or "foreground" for name, value in self.values.items()}}


@dataclass(frozen=True)
class Drawing:
    """Shapes of one image: a source of its label. A later shape is drawn over an earlier one."""

    name: str
    files: tuple[Path, ...]
    shapes: list[Shape]
    legend: Legend
    size: tuple[int, int] | None = None  # (H, W) of the image as the file of the shapes says it

    def read(self, sizes: list[tuple[int, int]]) -> list[LabelPage]:
        """The label of an image whose pages have these sizes (H, W): class values uint8 or uint16, and objects.
        Raises UserError if the shapes are of another image."""
        if len(sizes) != 1:
            raise UserError(f"its image has {len(sizes)} pages; expected 1, since shapes do not tell their page")
        (height, width) = size = sizes[0]
        if self.size not in (None, size):
            found = f"found shapes of an image of {self.size[1]} x {self.size[0]} pixels"
            raise UserError(
                f"{found}; expected {width} x {height} as its image has (was it resized or turned by EXIF?)"
            )
        values = np.zeros(size, np.uint8 if len(self.legend.values) < 256 else np.uint16)
        objects = np.zeros(size, np.int32)
        ignored = np.zeros(size, bool)
        ids: dict[Hashable, int] = {}
        for shape in self.shapes:
            window, inside = shape.drawn(height, width)
            is_object = shape.name in self.legend.values
            key = shape if shape.group is None else (shape.name, shape.group)
            values[window][inside] = self.legend.values[shape.name] if is_object else 0
            objects[window][inside] = ids.setdefault(key, len(ids) + 1) if is_object else 0
            ignored[window][inside] = shape.name == IGNORE
        colours = {self.legend.values[name]: colour for name, colour in self.legend.colours.items()}
        colours |= {0: (0, 0, 0)} if colours else {}
        return [LabelPage(values, colours, self.legend.names, objects, ignored if ignored.any() else None)]
