"""TIFF files through tifffile: which pages and channels a file has, and its samples as an image or as stored."""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TIFF, TiffFile, TiffPage, TiffPageSeries

from unet.imaging import headers
from unet.imaging.picture import Array, ImageError, Metadata, decoding

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what is wrong with a file, the exception says

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_DESCRIBED = ("shaped", "ome", "imagej", "stk", "svs")
"""Descriptions of axes that are followed: tifffile's own, OME's, ImageJ's, MetaMorph's, Aperio's."""
_IGNORED = {
    *("lsm", "mmstack", "ndtiff", "fluoview", "sis", "scn", "qpi", "ndpi", "bif", "avs", "eer", "philips"),
    *("scanimage", "nih", "mdgel"),
}
"""Others, of which only the pages count. (For some of them tifffile looks for further files.)"""
_STATED_SIZES = {7: headers.jpeg_size, 50001: headers.webp_size}
"""JPEG and WebP: their strips and tiles state a size of their own, for which the decoder allocates memory."""
_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, *_STATED_SIZES}
"""None, fax, LZW, deflate, PackBits, LZMA, ZSTD: never decoded into more bytes than the page claims."""
_SAMPLES = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.SEPARATED: 4, PHOTOMETRIC.YCBCR: 3}
"""Samples of a pixel, without extra ones, by photometric interpretation. Others have one."""
_PHOTOMETRICS = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.PALETTE, *_SAMPLES)
_ALPHA = (1, 2)
"""ExtraSamples: associated and unassociated alpha."""
_UNITS = {2: "inch", 3: "cm"}
_ORIENTATION = 274
_XML_BYTES = 2**24
"""Longest OME description that is parsed."""


class Block(NamedTuple):
    """Pages that are decoded together."""

    page: TiffPage
    """The one that describes the samples of all."""
    source: TiffPage | TiffPageSeries
    directories: list[Any]
    """A TiffPage or TiffFrame each."""
    axes: str
    shape: tuple[int, ...]

    def length(self, axes: str, others: bool = False) -> int:
        """Number of values along these axes together, or along all others."""
        return math.prod(n for axis, n in zip(self.axes, self.shape, strict=True) if (axis in axes) != others)


class TiffImage:
    """A TIFF in memory: its directories read, nothing decoded. Raises ImageError or ImageTooLargeError."""

    def __init__(self, data: bytes, max_pages: int | None) -> None:
        # a page may come with a mask, a thumbnail or overviews
        headers.check_tiff(data, None if max_pages is None else 2 * max_pages + 30)
        with decoding():
            flags: dict[str, Any] = {f"is_{kind}": False for kind in _IGNORED & TIFF.FILE_FLAGS}
            self.file = TiffFile(io.BytesIO(data), **flags)
            directories = list(self.file.pages)
            pages = [page for page in directories if not (page.is_reduced or page.is_mask)] or directories
            self.ome = _ome(pages[0].description) if self.file.is_ome else {}
        self.blocks = [
            Block(s.keyframe, s, list(s), s.get_axes(False), s.get_shape(False)) for s in self._series(data, len(pages))
        ] or [Block(page, page, [page], page.axes, page.shape) for page in pages]
        for block in self.blocks:
            _check(block)
        if sum(sum(page.databytecounts) for block in self.blocks for page in block.directories) > 2 * len(data):
            raise ImageError("the image is damaged: strips or tiles of the TIFF overlap")

    def _series(self, data: bytes, n_pages: int) -> list[TiffPageSeries]:
        """Stacks and channels by the file's own description; none without one, or if it contradicts the pages."""
        series: list[TiffPageSeries] = []
        with suppress(Exception):  # tifffile's, on descriptions that are damaged
            if any(getattr(self.file, f"is_{kind}", False) for kind in _DESCRIBED) and _plausible(self.ome, n_pages):
                series = [s for s in self.file.series if s.kind in _DESCRIBED]
                series = series[:1] if self.file.is_svs else series  # further ones: thumbnail, label, overview
                for s in series:
                    size = math.prod(s.get_shape(False))
                    if s.dataoffset is None:
                        fits = size == sum(math.prod(page.shape) for page in s)
                    else:
                        fits = s.dataoffset + size * s.dtype.itemsize <= len(data)
                    if not fits or not {"Y", "X"} <= set(s.get_axes(False)):
                        return []
        return series

    @property
    def axes(self) -> str:
        """Axes of the first pages, in tifffile's letters."""
        block = self.blocks[0]
        plain = len(self.blocks) == 1 or isinstance(block.source, TiffPageSeries)
        return block.source.axes if plain else "I" + block.axes

    def claims(self) -> Iterator[tuple[int, int, int]]:
        """(width, height, pixels to be allocated) of each page. A tile may be larger than its image, and a pixel of
        many channels counts as one for every 16 bytes."""
        for block in self.blocks:
            page, height, width = block.page, block.length("Y"), block.length("X")
            tile = page.tilewidth * page.tilelength * page.tiledepth
            weight = math.ceil(block.length("CS") * page.dtype.itemsize / 16)
            for _ in range(block.length("YXCS", others=True)):
                yield width, height, max(height * width, tile) * weight

    def decode(self, as_stored: bool) -> list[Array]:
        """Pages, (H, W) or (H, W, C). Raises ImageError."""
        pages = []
        for block in self.blocks:
            for directory in block.directories:
                self._check_stated_sizes(block.page, directory)
            with decoding():
                if isinstance(block.source, TiffPage):
                    array = block.source.asarray(maxworkers=1).reshape(block.shape)
                else:
                    array = block.source.asarray(squeeze=False, maxworkers=1).reshape(block.shape)
            pages += [_image(samples, block.page, as_stored) for samples in _split(array, block.axes)]
        return pages

    def metadata(self) -> Metadata:
        """Resolution and calibration: OME's or ImageJ's, else as the tags of the first page have it."""
        page = self.blocks[0].page
        with decoding():
            resolution = page.resolution if {282, 283} <= set(page.tags.keys()) else None
            imagej = (self.file.imagej_metadata if self.file.is_imagej else None) or {}
            unit = str(imagej.get("unit", _UNITS.get(page.resolutionunit, "")))
            spacing = float(imagej["spacing"]) if "spacing" in imagej else None
            if "PhysicalSizeX" in self.ome and "PhysicalSizeY" in self.ome:
                resolution = 1 / float(self.ome["PhysicalSizeX"]), 1 / float(self.ome["PhysicalSizeY"])
                unit = self.ome.get("PhysicalSizeXUnit", "µm")
                spacing = float(self.ome["PhysicalSizeZ"]) if "PhysicalSizeZ" in self.ome else None
        return Metadata(resolution, unit, spacing)

    def _check_stated_sizes(self, page: TiffPage, directory: Any) -> None:
        """Raises ImageError for a JPEG or WebP strip or tile that says it is larger than the page has it."""
        if page.jpegheader is not None:
            raise ImageError("expected a TIFF with JPEG tiles, found Hamamatsu's NDPI")
        if not (size_of := _STATED_SIZES.get(page.compression)):
            return
        if directory.jpegtables and headers.jpeg_size(directory.jpegtables) != (0, 0):
            raise ImageError("the image is damaged: the JPEG tables of the TIFF hold an image")
        most = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        for offset, count in zip(directory.dataoffsets, directory.databytecounts, strict=True):
            self.file.filehandle.seek(offset)
            width, height = size_of(self.file.filehandle.read(count)) if count else (0, 0)
            if width > most[0] or height > most[1]:
                found = f"found one that says {width} x {height}"
                raise ImageError(f"expected strips or tiles of {most[0]} x {most[1]} pixels, {found}")


def _ome(xml: str) -> dict[str, str]:
    """Attributes of the first Pixels element, and "planes": the most planes of an image. Empty for other XML."""
    if len(xml) > _XML_BYTES:
        return {}
    elements = list(ElementTree.fromstring(xml).iter())  # noqa: S314  (expat bounds the expansion of entities)
    pixels = [dict(element.attrib) for element in elements if element.tag.endswith("Pixels")]
    if not pixels or any(element.get("Namespace", "").endswith("modulo") for element in elements):
        return {}
    planes = [math.prod(int(image["Size" + axis]) for axis in "ZCT") for image in pixels]
    counts = [int(element.get(name, 0)) for element in elements for name in ("PlaneCount", "NumPlanes")]
    return {**pixels[0], "planes": str(max(planes + counts))}


def _plausible(ome: dict[str, str], n_pages: int) -> bool:
    """Whether no image claims more planes than the file has pages (tifffile allocates lists for what is claimed)."""
    return not ome or int(ome["planes"]) <= n_pages


def _check(block: Block) -> None:
    """Raises ImageError for samples that are not read, by their usual names, and for damaged directories."""
    page = block.page
    numbers = (*block.shape, page.samplesperpixel, page.compression, page.photometric, page.planarconfig)
    tile = (page.tilewidth, page.tilelength, page.tiledepth, page.rowsperstrip)
    if not all(isinstance(number, int) and number >= 0 for number in (*numbers, *tile)):
        raise ImageError("the image is damaged: expected numbers as tags of the TIFF")
    if 0 in block.shape or not block.shape:
        raise ImageError(f"expected an image, found {page.imagewidth} x {page.imagelength} pixels")
    if page.compression not in _COMPRESSIONS:
        raise ImageError(f"TIFF compression {_name(COMPRESSION, page.compression)} is not read: use deflate or LZW")
    subsampled = page.photometric == PHOTOMETRIC.YCBCR and page.compression not in _STATED_SIZES
    if page.photometric not in _PHOTOMETRICS or subsampled:
        found = _name(PHOTOMETRIC, page.photometric)
        raise ImageError(f"expected a TIFF of grey values, RGB, CMYK, a palette or JPEG's YCbCr, found {found}")
    if page.dtype is None or page.dtype.kind not in "biuf":
        found = f"{page.bitspersample} bits of sample format {page.sampleformat}"
        raise ImageError(f"expected integers of 1 to 64 bits or floats as samples of the TIFF, found {found}")
    if not page.is_contiguous:
        with decoding():
            n_segments = math.prod(page.chunked)
        for directory in block.directories:
            if {len(directory.dataoffsets), len(directory.databytecounts)} != {n_segments}:
                raise ImageError(f"the image is damaged: the TIFF has not the {n_segments} strips or tiles of its size")
        if n_segments > 1000 + math.prod(page.shape) // 64:
            raise ImageError(f"expected strips or tiles of 64 pixels or more, found {n_segments} for the page")


def _name(names: Any, number: int) -> str:
    """TIFF's name for a number."""
    try:
        return str(names(number).name)
    except ValueError:
        return str(int(number))


def _split(array: Array, axes: str) -> Iterator[Array]:
    """Views (H, W, C, S) of each page: C and S are channels and samples, axes other than Y and X are pages."""
    order = sorted(range(len(axes)), key=lambda i: "YXCS".find(axes[i]))  # -1, and therefore first: others
    array = array.transpose(order)
    n_others = sum(axis not in "YXCS" for axis in axes)
    shape = array.shape[n_others:]
    if "C" not in axes:
        shape = (*shape[:2], 1, *shape[2:])
    if "S" not in axes:
        shape = (*shape, 1)
    for index in np.ndindex(array.shape[:n_others]):
        yield array[index].reshape(shape)


def _image(samples: Array, page: TiffPage, as_stored: bool) -> Array:
    """(H, W, C, S) of samples -> (H, W) or (H, W, C x S): without alpha, upright, 1 bit as 0 and 255; unless
    `as_stored`, with the colours of palettes, CMYK as RGB, black as 0, and less than 8 bits as 8."""
    extra = page.extrasamples or ()
    n_colours = max(_SAMPLES.get(page.photometric, 1), samples.shape[-1] - len(extra))
    kept = [i for i in range(samples.shape[-1]) if i < n_colours or extra[i - n_colours] not in _ALPHA]
    if len(kept) < samples.shape[-1]:
        samples = samples[..., kept]
    if samples.dtype == bool:
        samples = samples.view(np.uint8) * np.uint8(255)
    if not as_stored:
        samples = _rendered(samples, page)
    image = samples.reshape(*samples.shape[:2], -1)
    orientation = page.tags.valueof(_ORIENTATION)
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)


def _rendered(samples: Array, page: TiffPage) -> Array:
    """Samples (..., S) as they are to be seen."""
    bits = page.bitspersample
    if page.photometric == PHOTOMETRIC.PALETTE:
        colours = np.asarray(page.colormap)
        if colours.shape != (3, 2**bits) or samples.dtype.kind != "u":
            raise ImageError("the image is damaged: the TIFF has no palette of its size")
        table = (colours.T >> 8 if colours.max() > 255 else colours.T).astype(np.uint8)
        return table[samples[..., 0]]
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        if samples.dtype.kind == "f":
            samples = 1 - samples
        else:
            samples = np.invert(samples) if bits in (1, 8, 16, 32, 64) else 2**bits - 1 - samples
    if page.photometric == PHOTOMETRIC.SEPARATED and samples.dtype.kind == "u":
        top = np.iinfo(samples.dtype).max
        ink, black = samples[..., :3].astype(np.uint64), samples[..., 3:4].astype(np.uint64)
        samples = ((top - ink) * (top - black) // top).astype(samples.dtype)
    if 1 < bits < 8:
        samples = (np.arange(2**bits) * 255 // (2**bits - 1)).astype(np.uint8)[samples]
    return samples
