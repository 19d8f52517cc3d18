"""TIFF files through tifffile: which pages and channels a file has, and its samples as an image or as stored."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from tifffile import PHOTOMETRIC, TiffFile

from unet.imaging import headers
from unet.imaging.picture import Array, ImageError, Metadata, decoding

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # exceptions say what is wrong with a file

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_STATED_SIZES: dict[int, Callable[[bytes], tuple[int, int]]] = {7: headers.jpeg_size, 50001: headers.webp_size}
"""JPEG and WebP: their strips and tiles state a size of their own, for which the decoder allocates memory."""
_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, *_STATED_SIZES}
"""None, fax, LZW, deflate, PackBits, LZMA, ZSTD: never decoded into more bytes than the page claims."""
_SAMPLES = {
    **dict.fromkeys((PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.PALETTE), 1),
    **dict.fromkeys((PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR), 3),
}
"""Samples of a pixel, without extra ones, by the photometric interpretations that are read."""
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_UNITS = {2: "inch", 3: "cm"}
ORIENTATION = 274


class TiffImage:
    """A TIFF in memory: its directories read, nothing decoded. Raises ImageError or ImageTooLargeError."""

    def __init__(self, data: bytes, max_pages: int | None) -> None:
        with decoding():
            file = headers.plain_tiff(data, max_pages)
            self.file = TiffFile(file, is_scanimage=False)  # such a description makes tifffile guess pages
            directories: list[Any] = list(self.file.pages)
            pages = [page for page in directories if not (page.is_reduced or page.is_mask)] or directories
            self.pages = pages[:1] if self.file.is_svs else pages  # Aperio: then thumbnail, label, overview
            n_bytes = sum(sum(page.databytecounts) for page in self.pages)
        if not self.pages:
            raise ImageError("the image is damaged: the TIFF has no page")
        self.axes = "I" * (len(self.pages) > 1) + self.pages[0].axes
        self.claims = [_claim(page) for page in self.pages]
        if n_bytes > 2 * len(data):
            raise ImageError("the image is damaged: strips or tiles of the TIFF overlap")
        self.imagej: dict[str, Any] = {}
        with suppress(Exception):  # tifffile's, on a damaged description: no reason to refuse the pixels
            if len(directories[0].description) < 2**16:  # characters; parsing takes a second for a million
                self.imagej = self.file.imagej_metadata or {}
        if isinstance(n := self.imagej.get("images"), int) and n > len(self.pages):
            raise ImageError(f"expected {n} pages, as ImageJ's description says, found {len(self.pages)}")

    def decode(self, as_stored: bool) -> list[Array]:
        """Pages, (H, W) or (H, W, C). Raises ImageError."""
        pages: list[Array] = []
        for page in self.pages:
            self._check_stated_sizes(page)
            with decoding():
                samples = page.asarray(maxworkers=1)
            samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
            pages.append(_image(samples.reshape(page.imagelength, page.imagewidth, -1), page, as_stored))
        return pages

    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of the indices, if the first page has a palette."""
        with suppress(Exception):  # a damaged palette: no reason to refuse the indices
            if self.pages[0].photometric == PHOTOMETRIC.PALETTE:
                return tuple(map(tuple, _palette(self.pages[0]).tolist()))
        return ()

    def metadata(self) -> Metadata:
        """Resolution and calibration: ImageJ's, else as the tags of the first page have it."""
        numbers, unit = [0.0, 0.0, 0.0], ""
        with suppress(Exception):  # tifffile's, or of numbers that do not parse: no reason to refuse the pixels
            unit = str(self.imagej.get("unit", _UNITS.get(self.pages[0].resolutionunit, "")))
            numbers = [float(number) for number in (*self.pages[0].resolution, self.imagej.get("spacing", 0))]
        x, y, z = (number if 1e-9 < number < 1e9 else None for number in numbers)
        orientation = self.pages[0].tags.valueof(ORIENTATION, 1)
        return Metadata((x, y) if x and y and unit else None, unit.replace(r"\u00B5", "µ"), z, orientation)

    def _check_stated_sizes(self, page: Any) -> None:
        """Raises ImageError for a JPEG or WebP strip or tile whose own header states a larger size."""
        if not (size_of := _STATED_SIZES.get(page.compression)):
            return
        largest = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        segments = self.file.filehandle.read_segments(page.dataoffsets, page.databytecounts)
        for data in (page.jpegtables, *(data for data, _ in segments)):
            width, height = size_of(data) if data else (0, 0)
            if width > largest[0] or height > largest[1]:
                raise ImageError(f"expected strips or tiles of {largest} pixels, found one that says {width, height}")


def _claim(page: Any) -> tuple[int, int, int]:
    """Claim (width, height, pixels to allocate) of a page. A tile may be larger than its image. A pixel of many
    channels counts as one for every 16 bytes. Raises ImageError for unsupported samples and damaged directories."""
    # in those an attribute may have any type
    numbers = [*page.shape, page.imagewidth, page.imagelength, page.tilewidth, page.tilelength, page.rowsperstrip]
    numbers += [page.samplesperpixel, page.compression, page.photometric, page.bitspersample]
    numbers += [page.tags.valueof(ORIENTATION, 1), *page.dataoffsets, *page.databytecounts]
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or page.planarconfig not in (1, 2):
        raise ImageError("the image is damaged: expected other numbers as tags of the TIFF")
    known = page.compression in _COMPRESSIONS and page.dtype is not None and page.dtype.kind in "biuf"
    known = known and (page.photometric != PHOTOMETRIC.YCBCR or page.compression in _STATED_SIZES)
    if not known or page.samplesperpixel < _SAMPLES.get(page.photometric, math.inf) or page.imagedepth != 1:
        photometric, compression = (getattr(tag, "name", tag) for tag in (page.photometric, page.compression))
        found = f"{page.samplesperpixel} x {photometric} of {page.bitspersample} bits, compression {compression}"
        raise ImageError(f"this kind of TIFF is not read ({found}): save it as grey or RGB with deflate, LZW or ZSTD")
    with decoding():
        n_segments = 0 if page.is_contiguous else math.prod(page.chunked)
    if n_segments and {len(page.dataoffsets), len(page.databytecounts)} != {n_segments}:
        raise ImageError(f"the image is damaged: expected {n_segments} strips or tiles in the TIFF, found others")
    if n_segments > 1000 + math.prod(page.shape) // 64:
        raise ImageError(f"expected strips or tiles of 64 pixels or more, found {n_segments} for the page")
    weight = math.ceil(page.samplesperpixel * page.dtype.itemsize / 16)
    n_pixels = max(page.imagewidth * page.imagelength, page.tilewidth * page.tilelength)
    return page.imagewidth, page.imagelength, n_pixels * weight


def _image(samples: Array, page: Any, as_stored: bool) -> Array:
    """Image (H, W) or (H, W, C) of samples (H, W, S): without alpha, upright, 1 bit as 0 and 255; unless `as_stored`,
    with palettes looked up, black as 0, and less than 8 bits scaled to 8."""
    extra = tuple(page.extrasamples)
    n_colours = max(_SAMPLES[page.photometric], samples.shape[-1] - len(extra))
    kept = [i for i in range(samples.shape[-1]) if i < n_colours or extra[i - n_colours] not in _ALPHA]
    samples = samples if len(kept) == samples.shape[-1] else samples[..., kept]
    if samples.dtype == bool:
        samples = samples.astype(np.uint8) * np.uint8(255)
    if not as_stored:
        samples = _rendered(samples, page)
    image, orientation = samples, page.tags.valueof(ORIENTATION)
    image = image.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    image = image[::-1] if orientation in (3, 4, 7, 8) else image
    return np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)


def _rendered(samples: Array, page: Any) -> Array:
    """Samples (..., S) converted to grey or RGB with black as 0."""
    bits = page.bitspersample
    if page.photometric == PHOTOMETRIC.PALETTE:
        if samples.dtype.kind != "u":
            raise ImageError("the image is damaged: indices of a palette are not whole numbers")
        return _palette(page)[samples[..., 0]]
    if 1 < bits < 8:
        samples = (np.arange(2**bits) * 255 // (2**bits - 1)).astype(np.uint8)[samples]
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        top = {"f": 1, "i": -1}.get(samples.dtype.kind, 2 ** max(bits, 8) - 1)
        samples = samples.dtype.type(top) - samples
    return samples


def _palette(page: Any) -> npt.NDArray[np.uint8]:
    """RGB (2**bits, 3) of a page with a palette, whose values have 16 bits, or (rarely) 8. Raises ImageError."""
    colours = np.asarray(page.colormap)
    if colours.shape != (3, 2**page.bitspersample) or colours.dtype.kind != "u":
        raise ImageError("the image is damaged: the TIFF has no palette of its size")
    return (colours.T >> 8 if colours.max() > 255 else colours.T).astype(np.uint8)
