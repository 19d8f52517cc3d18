"""TIFF files through tifffile: which pages and channels a file has, and its samples as an image or as stored."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile

from unet.imaging import headers
from unet.imaging.picture import Array, ImageError, Metadata, decoding

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # exceptions say what is wrong with a file

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_DESCRIBED = (
    "shaped",
    "ome",
    "imagej",
    "svs",
)  # axes are those of tifffile's own, OME's, ImageJ's, Aperio's descriptions
_STATED_SIZES: dict[int, Callable[[bytes], tuple[int, int]]] = {
    7: partial(headers.jpeg_size, fill=False),
    50001: headers.webp_size,
}
"""JPEG and WebP: their strips and tiles state a size of their own, for which the decoder allocates memory."""
_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, *_STATED_SIZES}
"""None, fax, LZW, deflate, PackBits, LZMA, ZSTD: never decoded into more bytes than the page claims."""
_SAMPLES = {
    **dict.fromkeys((PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.PALETTE), 1),
    **{PHOTOMETRIC.RGB: 3, PHOTOMETRIC.SEPARATED: 4, PHOTOMETRIC.YCBCR: 3},
}
"""Samples of a pixel, without extra ones, by the photometric interpretations that are read."""
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_UNITS = {2: "inch", 3: "cm"}
_RESOLUTION, _ORIENTATION = {282, 283}, 274
_MAX_JSON, _MAX_XML = 2**16, 2**24  # characters of descriptions that are parsed: tifffile's or ImageJ's, OME's


class Block(NamedTuple):
    """Pages that are decoded together."""

    page: Any  # the TiffPage that describes the samples of all; in a damaged file its attributes may have any type
    directories: list[Any]  # a TiffPage or TiffFrame for each; the first alone where all samples lie in a row
    axes: str
    shape: tuple[int, ...]
    load: Callable[[], Array]

    def length(self, axes: str) -> int:
        """Number of values along these axes together."""
        return math.prod(n for axis, n in zip(self.axes, self.shape, strict=True) if axis in axes)


class TiffImage:
    """A TIFF in memory: its directories read, nothing decoded. Raises ImageError or ImageTooLargeError."""

    def __init__(self, data: bytes, max_pages: int | None) -> None:
        file = headers.plain_tiff(data, max_pages)
        with decoding():
            self.file = TiffFile(file, is_scanimage=False)  # such a description makes tifffile guess pages
            directories: list[Any] = list(self.file.pages)
            pages = [page for page in directories if not (page.is_reduced or page.is_mask)] or directories
        if not pages:
            raise ImageError("the image is damaged: the TIFF has no page")
        with decoding():
            self.ome = _ome(pages[0].description, len(pages)) if self.file.is_ome else None
        self.axes = pages[0].axes if len(pages) == 1 else "I" + pages[0].axes
        self.blocks = self._described(pages[0].description, len(data)) or [
            Block(page, [page], page.axes, page.shape, partial(page.asarray, maxworkers=1)) for page in pages
        ]
        for block in self.blocks:
            _check(block)
        if sum(sum(page.databytecounts) for block in self.blocks for page in block.directories) > 2 * len(data):
            raise ImageError("the image is damaged: strips or tiles of the TIFF overlap")

    def _described(self, description: str, n_bytes: int) -> list[Block]:
        """Stacks and channels by the file's own description; none without one, or where it contradicts the pages."""
        series: list[Any] = []
        with suppress(Exception):  # tifffile's, on damaged descriptions
            described = any(getattr(self.file, f"is_{kind}") for kind in _DESCRIBED) and self.ome != {}
            if described and (self.file.is_ome or len(description) < _MAX_JSON):
                series = [(s, [s.keyframe] if s.dataoffset else list(s)) for s in self.file.series]
        blocks = []
        for s, directories in series[:1] if self.file.is_svs else series:  # SVS: then thumbnail, label, overview
            axes, shape = s.get_axes(False), s.get_shape(False)
            n_samples = sum(math.prod(page.shape) if page else 0 for page in directories)
            if s.dataoffset:  # all samples in a row, whatever the number of directories
                n_samples = min(math.prod(shape), (n_bytes - s.dataoffset) // s.dtype.itemsize)
            known = [axis for axis in axes if axis in "YXCS"]
            if math.prod(shape) != n_samples or not {"Y", "X"} <= set(known) or len(known) > len(set(known)):
                return []
            self.axes = s.axes
            blocks.append(Block(s.keyframe, directories, axes, shape, partial(s.asarray, squeeze=False, maxworkers=1)))
        return blocks

    def claims(self) -> Iterator[tuple[int, int, int]]:
        """(width, height, pixels to be allocated) of each page. A tile may be larger than its image; a pixel of many
        channels counts as one for every 16 bytes."""
        for block in self.blocks:
            page, height, width = block.page, block.length("Y"), block.length("X")
            tile = page.tilewidth * page.tilelength * page.tiledepth
            weight = math.ceil(block.length("CS") * page.dtype.itemsize / 16)
            for _ in range(math.prod(block.shape) // block.length("YXCS")):
                yield width, height, max(height * width, tile) * weight

    def decode(self, as_stored: bool) -> list[Array]:
        """Pages, (H, W) or (H, W, C). Raises ImageError."""
        pages: list[Array] = []
        for block in self.blocks:
            for directory in block.directories:
                self._check_stated_sizes(block.page, directory)
            with decoding():
                array = block.load().reshape(block.shape)
            pages += [_image(samples, block.page, as_stored) for samples in _split(array, block.axes)]
        return pages

    def metadata(self) -> Metadata:
        """Resolution and calibration: OME's or ImageJ's, else as the tags of the first page have it."""
        page, ome, imagej = self.blocks[0].page, self.ome or {}, {}
        numbers, unit = [0.0, 0.0, 0.0], ""
        with suppress(Exception):  # tifffile's, or of numbers that do not parse: no reason to refuse the pixels
            imagej = (self.file.imagej_metadata if self.file.is_imagej else None) or {}
            unit = str(imagej.get("unit", _UNITS.get(page.resolutionunit, ""))).replace(r"\u00B5", "µ")
            numbers = [float(number) for number in (*page.resolution, imagej.get("spacing", 0))]
            if "PhysicalSizeX" in ome:
                x, y, z = (float(ome.get(f"PhysicalSize{axis}", 0)) for axis in "XYZ")
                numbers, unit = [1 / x, 1 / y, z], ome.get("PhysicalSizeXUnit", "µm")
        right = [1e-9 < number < 1e9 for number in numbers]
        resolution = (numbers[0], numbers[1]) if right[0] and right[1] and unit else None
        return Metadata(resolution, unit, numbers[2] if right[2] else None)

    def _check_stated_sizes(self, page: Any, directory: Any) -> None:
        """Raises ImageError for a JPEG or WebP strip or tile whose own header states a larger size."""
        if not (size_of := _STATED_SIZES.get(page.compression)):
            return
        if directory.jpegtables and size_of(directory.jpegtables) != (0, 0):
            raise ImageError("the image is damaged: the JPEG tables of the TIFF hold an image")
        largest = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        for offset, count in zip(directory.dataoffsets, directory.databytecounts, strict=True):
            self.file.filehandle.seek(offset)
            width, height = size_of(self.file.filehandle.read(count)) if count else (0, 0)
            if width > largest[0] or height > largest[1]:
                expected = f"expected strips or tiles of {largest[0]} x {largest[1]} pixels"
                raise ImageError(f"{expected}, found one that says {width} x {height}")


def _ome(xml: str, n_pages: int) -> dict[str, str]:
    """Attributes of the first image's Pixels in OME-XML. Empty for other XML, and for more planes than there are pages
    (tifffile takes memory for as many as are claimed)."""
    try:
        elements = list(ElementTree.fromstring(xml[:_MAX_XML]).iter())  # noqa: S314  (expat bounds entities)
        pixels = [element.attrib for element in elements if element.tag.endswith("Pixels")]
        planes = [math.prod(int(image["Size" + axis]) for axis in "ZCT") for image in pixels]
        planes += [int(element.get(name, 0)) for element in elements for name in ("PlaneCount", "NumPlanes")]
        planes += [sum(element.tag.endswith("TiffData") for element in elements)]
    except (ElementTree.ParseError, KeyError, ValueError):
        return {}
    modulo = any(element.get("Namespace", "").endswith("modulo") for element in elements)  # axes of any length
    return {} if not pixels or modulo or max(planes) > n_pages else pixels[0]


def _check(block: Block) -> None:
    """Raises ImageError for samples that are not read, by their usual names, and for damaged directories."""
    page = block.page
    numbers = [*block.shape, page.samplesperpixel, page.compression, page.photometric, page.bitspersample]
    numbers += [page.tilewidth, page.tilelength, page.tiledepth, page.rowsperstrip, page.tags.valueof(_ORIENTATION, 1)]
    for directory in block.directories:
        numbers += [*directory.dataoffsets, *directory.databytecounts]
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or page.planarconfig not in (1, 2):
        raise ImageError("the image is damaged: expected other numbers as tags of the TIFF")
    if 0 in block.shape or not block.shape:
        raise ImageError(f"expected an image, found {page.imagewidth} x {page.imagelength} pixels")
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        raise ImageError(f"TIFF compression {name} is not read: save with deflate, LZW or ZSTD")
    undecoded = page.photometric == PHOTOMETRIC.YCBCR and page.compression not in _STATED_SIZES
    if page.photometric not in _SAMPLES or undecoded or page.samplesperpixel < _SAMPLES[page.photometric]:
        found = f"{page.samplesperpixel} x {getattr(page.photometric, 'name', page.photometric)}"
        raise ImageError(f"expected a TIFF of grey values, RGB, CMYK, a palette or JPEG's YCbCr, found {found}")
    if page.dtype is None or page.dtype.kind not in "biuf":
        found = f"{page.bitspersample} bits of sample format {page.sampleformat}"
        raise ImageError(f"expected integers of 1 to 64 bits or floats as samples of the TIFF, found {found}")
    with decoding():
        n_segments = 0 if page.is_contiguous else math.prod(page.chunked)
    for directory in block.directories if n_segments else ():
        if {len(directory.dataoffsets), len(directory.databytecounts)} != {n_segments}:
            raise ImageError(f"the image is damaged: expected {n_segments} strips or tiles in the TIFF, found others")
    if n_segments > 1000 + math.prod(page.shape) // 64:
        raise ImageError(f"expected strips or tiles of 64 pixels or more, found {n_segments} for the page")


def _split(array: Array, axes: str) -> Iterator[Array]:
    """Views (H, W, C, S), one for each page: C and S are channels and samples; axes other than Y and X are pages."""
    for axis in "CS":
        if axis not in axes:
            array, axes = array[..., None], axes + axis
    pages = [i for i, axis in enumerate(axes) if axis not in "YXCS"]
    array = array.transpose(*pages, *(axes.index(axis) for axis in "YXCS"))
    for index in np.ndindex(array.shape[: len(pages)]):
        yield array[index]


def _image(samples: Array, page: Any, as_stored: bool) -> Array:
    """(H, W, C, S) samples -> (H, W) or (H, W, C x S): without alpha, upright, 1 bit as 0 and 255; unless `as_stored`,
    with palettes looked up, CMYK as RGB, black as 0, and less than 8 bits scaled to 8."""
    extra = tuple(page.extrasamples)
    n_colours = max(_SAMPLES[page.photometric], samples.shape[-1] - len(extra))
    kept = [i for i in range(samples.shape[-1]) if i < n_colours or extra[i - n_colours] not in _ALPHA]
    samples = samples if len(kept) == samples.shape[-1] else samples[..., kept]
    if samples.dtype == bool:
        samples = samples.astype(np.uint8) * np.uint8(255)
    if not as_stored:
        samples = _rendered(samples, page)
    image = samples.reshape(*samples.shape[:2], -1)
    orientation = page.tags.valueof(_ORIENTATION)
    image = image.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    image = image[::-1] if orientation in (3, 4, 7, 8) else image
    return np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)


def _rendered(samples: Array, page: Any) -> Array:
    """Samples (..., S) converted to grey or RGB with black as 0."""
    bits = page.bitspersample
    if page.photometric == PHOTOMETRIC.PALETTE:
        colours = np.asarray(page.colormap)
        if colours.shape != (3, 2**bits) or colours.dtype.kind != "u" or samples.dtype.kind != "u":
            raise ImageError("the image is damaged: the TIFF has no palette of its size")
        table = (colours.T >> 8 if colours.max() > 255 else colours.T).astype(np.uint8)  # of 16 bits, or (rarely) of 8
        return table[samples[..., 0]]
    if 1 < bits < 8:
        samples = (np.arange(2**bits) * 255 // (2**bits - 1)).astype(np.uint8)[samples]
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        top = {"f": 1, "i": -1}.get(samples.dtype.kind, 2 ** max(bits, 8) - 1)
        samples = samples.dtype.type(top) - samples
    if page.photometric == PHOTOMETRIC.SEPARATED:
        top = np.iinfo(samples.dtype).max
        ink, black = samples[..., :3].astype(np.uint64), samples[..., 3:4].astype(np.uint64)
        samples = ((top - ink) * (top - black) // top).astype(samples.dtype)
    return samples
