"""Pages, channels and calibration of a TIFF by its description, ImageJ's, OME's or tifffile's, as tifffile reads it.

A description may claim anything: what it says counts where as many samples are there, and is ignored elsewhere.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile

from unet.imaging.picture import MICROMETRES, Array, Metadata

ORIENTATION = 274

_DESCRIBED = ("shaped", "ome", "imagej", "svs")  # tifffile's own, OME, ImageJ, Aperio
_MAX_TEXT, _MAX_XML = 2**16, 2**22  # characters of descriptions that are parsed: tifffile's or ImageJ's, OME's
_PAGE_NAME = 285
_UNITS = {2: "inch", 3: "cm"}
_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


class Block(NamedTuple):
    """Pages that are decoded together: a described series, or one directory."""

    page: Any  # the TiffPage that describes the samples of all; in a damaged file its attributes may have any type
    directories: list[Any]  # a TiffPage or TiffFrame for each; the first alone where all samples lie in a row
    axes: str
    shape: tuple[int, ...]
    load: Callable[[], Array]
    described: bool = True
    row: Callable[[int, int], Array] | None = None  # samples that lie in a row: the first to be read, and how many

    def length(self, axes: str) -> int:
        """Number of values along these axes together."""
        return math.prod(n for axis, n in zip(self.axes, self.shape, strict=True) if axis in axes)

    @property
    def n_pages(self) -> int:
        """Product of all axes but height, width, channels and samples."""
        return math.prod(self.shape) // self.length("YXCS")

    @property
    def stack(self) -> dict[str, int]:
        """Axes of the pages by the description, slowest first, with their lengths; empty if two have one name."""
        if not self.described:
            return {}
        lengths = {axis: n for axis, n in zip(self.axes, self.shape, strict=True) if axis not in "YXCS" and n != 1}
        return lengths if math.prod(lengths.values()) == self.n_pages else {}

    def only(self, page: int) -> "Block | None":
        """One page, from 0, as a block that is decoded without the others; None if they share a directory."""
        if self.n_pages == 1:
            return self
        paging = [i for i, axis in enumerate(self.axes) if axis not in "YXCS" and self.shape[i] > 1]
        last = paging[-1] + 1
        outer, inner = self.shape[:last], self.shape[last:]
        channels = [i for i in range(last) if self.axes[i] in "YXCS"]
        order = np.arange(math.prod(outer)).reshape(outer)
        order = order.transpose(*(i for i in range(last) if i not in channels), *channels).reshape(self.n_pages, -1)
        parts, n = order[page].tolist(), len(self.directories) // order.size
        directories = [each for part in parts for each in self.directories[part * n : (part + 1) * n]]
        loads = [partial(each.asarray, maxworkers=1) for each in directories]
        if self.row:
            directories, n_samples = self.directories, math.prod(inner)
            loads = [partial(self.row, part * n_samples, n_samples) for part in parts]
        if not loads:
            return None
        axes, shape = "".join(self.axes[i] for i in channels), tuple(self.shape[i] for i in channels)
        load = partial(_joined, loads)
        return Block(self.page, directories, axes + self.axes[last:], shape + inner, load, self.described)

    def split(self, array: Array) -> Iterator[Array]:
        """Views (H, W, C, S) of the decoded samples, one for each page: C are channels, S samples of a colour."""
        array, axes = array.reshape(self.shape), self.axes
        for axis in "CS":
            if axis not in axes:
                array, axes = array[..., None], axes + axis
        pages = [i for i, axis in enumerate(axes) if axis not in "YXCS"]
        array = array.transpose(*pages, *(axes.index(axis) for axis in "YXCS"))
        for index in np.ndindex(array.shape[: len(pages)]):
            yield array[index]


def _joined(loads: Sequence[Callable[[], Array]]) -> Array:
    return np.concatenate([load().ravel() for load in loads])


def one_page(page: Any) -> Block:
    """A directory without a description."""
    return Block(page, [page], page.axes, page.shape, partial(page.asarray, maxworkers=1), described=False)


class Description:
    """The first directory's text about all pages: parsed if it is not too long, empty where it is damaged."""

    def __init__(self, file: TiffFile) -> None:
        self.file = file
        self.ome: dict[str, str] = {}
        self.imagej: dict[str, Any] = {}
        self.followed = False
        with suppress(Exception):  # tifffile's, on damaged text: no reason to refuse the pixels
            first: Any = file.pages[0]
            n_characters = len(first.description) + len(first.description1)
            if file.is_ome and n_characters < _MAX_XML:
                self.ome = _ome(first.description, len(file.pages))
            elif n_characters < _MAX_TEXT:
                self.imagej = file.imagej_metadata or {}
            self.followed = bool(self.ome) if file.is_ome else n_characters < _MAX_TEXT

    def blocks(self, pages: list[Any], n_bytes: int) -> list[Block]:
        """Series of these pages, with as many samples as the file, of `n_bytes`, holds; none if any has others."""
        by_index = {page.index: page for page in pages}
        series: list[tuple[Any, list[Any]]] = []
        with suppress(Exception):
            if self.followed and any(getattr(self.file, f"is_{kind}") for kind in _DESCRIBED):
                series = [(each, [each.keyframe] if each.dataoffset else list(each)) for each in self.file.series]
        blocks = []
        for each, directories in series[:1] if self.file.is_svs else series:  # SVS: then thumbnail, label
            axes, shape, page = each.get_axes(False), each.get_shape(False), each.keyframe
            if not all(directory and directory.index in by_index for directory in directories):
                return []
            known = [axis for axis in axes if axis in "YXCS"]
            n_samples = sum(math.prod(directory.shape) for directory in directories)
            if each.dataoffset:  # all samples in a row, whatever the number of directories
                n_samples = min(math.prod(shape), (n_bytes - each.dataoffset) // each.dtype.itemsize)
            if math.prod(shape) != n_samples or not {"Y", "X"} <= set(known) or len(known) > len(set(known)):
                return []
            # a frame of tifffile is not looked at: it is taken to be like the first
            if len({by_index[directory.index].hash for directory in directories}) > 1:
                return []
            load = partial(each.asarray, squeeze=False, maxworkers=1)
            row = partial(self._row, each) if each.dataoffset else None
            blocks.append(Block(page, directories, axes, shape, load, row=row))
        return blocks

    def _row(self, series: Any, first: int, n: int) -> Array:
        """Samples of a series that lie in a row."""
        offset = series.dataoffset + first * series.dtype.itemsize
        return self.file.filehandle.read_array(self.file.byteorder + series.dtype.char, n, offset)

    def metadata(self, blocks: list[Block], n_pages: int) -> Metadata:
        """Resolution and calibration: OME's or ImageJ's, else as the tags of the first page have it."""
        page, ome, imagej = blocks[0].page, self.ome, self.imagej
        numbers, unit = [0.0, 0.0, 0.0, 0.0], ""
        names: list[Any] = []
        with suppress(Exception):  # numbers that do not parse
            names = imagej.get("Labels") or [b.page.tags.valueof(_PAGE_NAME) for b in blocks if not b.described]
            unit = str(imagej.get("unit", _UNITS.get(page.resolutionunit, ""))).replace(r"\u00B5", "µ")
            numbers = [float(n) for n in (*page.resolution, imagej.get("spacing", 0), imagej.get("finterval", 0))]
            if "PhysicalSizeX" in ome:
                x, y, z = (_stated(ome, f"PhysicalSize{axis}", MICROMETRES, "µm") for axis in "XYZ")
                numbers, unit = [1 / x, 1 / y, z, _stated(ome, "TimeIncrement", _SECONDS, "s")], "µm"
        width, height, depth, time = (number if 1e-9 < number < 1e9 else None for number in numbers)
        names = names[:: max(1, len(names) // n_pages)]  # ImageJ has one for each channel
        return Metadata(
            resolution=(width, height) if width and height and unit else None,
            unit=unit,
            spacing=depth,
            interval=time,
            stack=blocks[0].stack if len(blocks) == 1 else {},
            names=tuple(names) if len(names) == n_pages and all(isinstance(n, str) for n in names) else (),
            orientation=page.tags.valueof(ORIENTATION, 1),
        )


def _stated(ome: dict[str, str], name: str, units: dict[str, float], default: str) -> float:
    """A length in micrometres or a time in seconds, whose unit is an attribute, too; 0 if there is none."""
    return float(ome.get(name, 0)) * units[ome.get(f"{name}Unit", default).lower()]


def _ome(xml: str, n_directories: int) -> dict[str, str]:
    """Attributes of the first image's Pixels in OME-XML. Empty for other XML, and for more planes than there are
    directories: tifffile takes memory for as many as are claimed."""
    elements = list(ElementTree.fromstring(xml).iter())  # noqa: S314  (expat bounds entities)
    pixels = [element.attrib for element in elements if element.tag.endswith("Pixels")]
    n_samples = max(int(element.get("SamplesPerPixel", 1)) for element in elements)
    planes = [math.prod(int(image["Size" + axis]) for axis in "ZCT") // n_samples for image in pixels]
    planes += [int(element.get(name, 0)) for element in elements for name in ("PlaneCount", "NumPlanes")]
    planes += [sum(element.tag.endswith("TiffData") for element in elements)]
    modulo = any(element.get("Namespace", "").endswith("modulo") for element in elements)  # axes of any length
    return {} if modulo or max(planes) > n_directories or not pixels else dict(pixels[0])
