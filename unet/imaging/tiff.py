"""TIFF files through tifffile: which pages and channels a file has, and its samples as an image or as stored."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tifffile import PHOTOMETRIC, TiffFile

from unet.imaging import headers
from unet.imaging.picture import Array, ImageError, ImageTooLargeError, Picture, decoding
from unet.imaging.series import ORIENTATION, Block, Description, one_page

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # exceptions say what is wrong with a file

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_JPEG, _JPEG_2000, _APERIO_RGB, _WEBP = 7, 34712, 33005, 50001
_STATED_SIZES: dict[int, Callable[[bytes], tuple[int, int]]] = {
    _JPEG: headers.jpeg_size,
    _JPEG_2000: headers.jpeg2000_size,
    _APERIO_RGB: headers.jpeg2000_size,
    _WEBP: headers.webp_size,
}
"""Their strips and tiles state a size of their own, for which the decoder allocates memory."""
_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, *_STATED_SIZES}
"""None, fax, LZW, deflate, PackBits, LZMA, ZSTD: never decoded into more bytes than the page claims."""
_SAMPLES = {
    **dict.fromkeys((PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.PALETTE), 1),
    **{PHOTOMETRIC.RGB: 3, PHOTOMETRIC.YCBCR: 3, PHOTOMETRIC.SEPARATED: 4},
}
"""Samples of a pixel, without extra ones, by the photometric interpretations that are read."""
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_GDAL_NODATA = 42113


class TiffImage:
    """A TIFF in memory: its directories read, nothing decoded. Raises ImageError or ImageTooLargeError."""

    def __init__(self, data: bytes, max_pages: int | None) -> None:
        with decoding():
            file = headers.plain_tiff(data, max_pages)
            self.file = TiffFile(file, is_scanimage=False)  # such a description makes tifffile guess pages
            directories: list[Any] = list(self.file.pages)
            pages = [page for page in directories if not (page.is_reduced or page.is_mask)] or directories
            pages = pages[:1] if self.file.is_svs else pages  # Aperio: then thumbnail, label, overview
        if not pages:
            raise ImageError("the image is damaged: the TIFF has no page")
        self.blocks = [one_page(page) for page in pages]
        for block in self.blocks:
            _check(block)
        self.description = Description(self.file)
        if described := self.description.blocks(pages, len(data)):
            self.blocks = described
            for block in described:
                _check(block)
        if sum(sum(page.databytecounts) for block in self.blocks for page in block.directories) > 2 * len(data):
            raise ImageError("the image is damaged: strips or tiles of the TIFF overlap")
        self.n_pages = sum(block.n_pages for block in self.blocks)
        n_planes = sum(math.prod(block.shape) // block.length("YX") for block in self.blocks)
        n_expected = self.description.imagej.get("images", 1)
        if isinstance(n_expected, int) and n_expected > n_planes:
            raise ImageError(f"expected {n_expected} images, as ImageJ's description says, found {n_planes}")
        if max_pages is not None and self.n_pages > max_pages:
            raise ImageTooLargeError(f"expected at most {max_pages} pages (--max-pages), found {self.n_pages}")
        self._decoded, self._kept = self.blocks, slice(None)  # blocks, and pages of each

    def keep(self, page: int) -> None:
        """Leaves out all pages but one, from 0. Those are not decoded, unless one directory holds them all."""
        for block in self.blocks:
            if page < block.n_pages:
                break
            page -= block.n_pages
        alone = block.only(page)
        self._decoded, self._kept = [alone or block], slice(None) if alone else slice(page, page + 1)

    @property
    def axes(self) -> str:
        """Axes of the file, without those of length 1; I for pages that nothing describes."""
        block = self.blocks[0]
        axes = "".join(axis for axis, n in zip(block.axes, block.shape, strict=True) if n != 1 or axis in "YX")
        return "I" * (len(self.blocks) > 1) + axes

    @property
    def claims(self) -> list[tuple[int, int, int]]:
        """(width, height, pixels to allocate) of each page that is decoded. A tile may be larger than its image. A
        pixel of many channels counts as one for every 16 bytes."""
        claims = []
        for block in self._decoded:
            page, height, width = block.page, block.length("Y"), block.length("X")
            weight = math.ceil(block.length("CS") * page.dtype.itemsize / 16)
            n_pixels = max(height * width, page.tilewidth * page.tilelength * page.tiledepth) * weight
            claims += [(width, height, n_pixels)] * block.n_pages
        return claims

    def decode(self, as_stored: bool) -> Picture:
        """The picture as `reader.read` returns it. Raises ImageError."""
        pages: list[Array] = []
        for block in self._decoded:
            self._check_stated_sizes(block)
            with decoding():
                array = block.load()
                views = list(block.split(array))[self._kept]
            pages += [_image(samples, block.page, as_stored) for samples in views]
        metadata = self.description.metadata(self.blocks, self.n_pages)
        return Picture(
            pages, self.axes, replace(metadata, palette=self._palette()) if as_stored else metadata, tiff=True
        )

    def _palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of the indices, if the first page has a palette."""
        with suppress(Exception):  # a damaged palette: no reason to refuse the indices
            if self.blocks[0].page.photometric == PHOTOMETRIC.PALETTE:
                return tuple(map(tuple, _palette(self.blocks[0].page).tolist()))
        return ()

    def _check_stated_sizes(self, block: Block) -> None:
        """Raises ImageError for a JPEG, JPEG 2000 or WebP strip or tile whose own header states a larger size."""
        page = block.page
        if not (size_of := _STATED_SIZES.get(page.compression)):
            return
        largest = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        for directory in block.directories:
            segments = self.file.filehandle.read_segments(directory.dataoffsets, directory.databytecounts)
            for data in (directory.jpegtables, *(data for data, _ in segments)):
                with decoding():
                    width, height = size_of(data) if data else (0, 0)
                if width > largest[0] or height > largest[1]:
                    expected = f"expected strips or tiles of {largest} pixels"
                    raise ImageError(f"{expected}, found one that says {width, height}")


def _check(block: Block) -> None:
    """Raises ImageError for samples that are not read, by their usual names, and for damaged directories."""
    page = block.page
    # in those an attribute may have any type
    numbers = [*page.shape, page.imagewidth, page.imagelength, page.imagedepth, page.rowsperstrip]
    numbers += [page.tilewidth, page.tilelength, page.tiledepth, page.tags.valueof(ORIENTATION, 1)]
    numbers += [page.samplesperpixel, page.compression, page.photometric, page.bitspersample]
    for directory in block.directories:
        numbers += [*directory.dataoffsets, *directory.databytecounts]
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or page.planarconfig not in (1, 2):
        raise ImageError("the image is damaged: expected other numbers as tags of the TIFF")
    if not page.imagewidth or not page.imagelength or 0 in block.shape:
        raise ImageError(f"expected an image, found {page.imagewidth} x {page.imagelength} pixels")
    compression, photometric = (getattr(tag, "name", tag) for tag in (page.compression, page.photometric))
    if page.compression not in _COMPRESSIONS:
        raise ImageError(f"TIFF compression {compression} is not read: save it with deflate, LZW or ZSTD")
    converted = page.photometric != PHOTOMETRIC.YCBCR or page.compression in (_JPEG, _WEBP)
    if page.photometric == PHOTOMETRIC.SEPARATED:
        converted = page.compression not in _STATED_SIZES and page.bitspersample in (8, 16)
    if not converted or page.samplesperpixel < _SAMPLES.get(page.photometric, math.inf):
        found = f"{page.samplesperpixel} x {photometric} with compression {compression}"
        raise ImageError(f"expected a TIFF of grey values, RGB, CMYK, a palette or JPEG's YCbCr, found {found}")
    if page.dtype is None or page.dtype.kind not in "biuf":
        sample_format = getattr(page.sampleformat, "name", page.sampleformat)
        found = f"{page.bitspersample} bits of {sample_format}"
        raise ImageError(f"expected integers or floats as samples of the TIFF, found {found}")
    with decoding():
        n_segments = 0 if page.is_contiguous else math.prod(page.chunked)
    for directory in block.directories if n_segments else ():
        if {len(directory.dataoffsets), len(directory.databytecounts)} != {n_segments}:
            raise ImageError(f"the image is damaged: expected {n_segments} strips or tiles in the TIFF, found others")
    if n_segments > 1000 + math.prod(page.shape) // 64:
        raise ImageError(f"expected strips or tiles of 64 pixels or more, found {n_segments} for the page")


def _image(samples: Array, page: Any, as_stored: bool) -> Array:
    """Image (H, W) or (H, W, C x S) of samples (H, W, C, S): without alpha, upright, 1 bit as 0 and 255; unless
    `as_stored`, with palettes looked up, CMYK as RGB, black as 0, less than 8 bits scaled to 8, and NaN for no data."""
    extra = tuple(page.extrasamples)
    n_colours = max(_SAMPLES[page.photometric], samples.shape[-1] - len(extra))
    kept = [i for i in range(samples.shape[-1]) if i < n_colours or extra[i - n_colours] not in _ALPHA]
    samples = samples if len(kept) == samples.shape[-1] else samples[..., kept]
    image = samples.astype(np.uint8) * np.uint8(255) if samples.dtype == bool else samples
    if not as_stored:
        image = _rendered(image, page)
    image = image.reshape(*image.shape[:2], -1)
    if not as_stored and _GDAL_NODATA in page.tags:
        image = _without_nodata(image, samples, page.tags.valueof(_GDAL_NODATA))
    orientation = page.tags.valueof(ORIENTATION)
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
    if page.photometric == PHOTOMETRIC.SEPARATED:
        top = 2**bits - 1
        light = (top - samples[..., :4]).astype(np.uint32)
        samples = (light[..., :3] * light[..., 3:] // top).astype(samples.dtype)
    return samples


def _palette(page: Any) -> npt.NDArray[np.uint8]:
    """RGB (2**bits, 3) of a page with a palette, whose values have 16 bits, or (rarely) 8. Raises ImageError."""
    colours = np.asarray(page.colormap)
    if colours.shape != (3, 2**page.bitspersample) or colours.dtype.kind != "u":
        raise ImageError("the image is damaged: the TIFF has no palette of its size")
    return (colours.T >> 8 if colours.max() > 255 else colours.T).astype(np.uint8)


def _without_nodata(image: Array, samples: Array, text: object) -> Array:
    """The image as float32, integers scaled to 0..1 by their dtype, with NaN where all samples have GDAL's value for
    no data; as it is where none has."""
    try:
        value = float(str(text).strip("\0 "))
    except ValueError:
        return image
    with np.errstate(over="ignore"):
        # of floats, as many digits as they have: GDAL writes -3.4028234663852886e+38
        stored = samples.dtype.type(value) if samples.dtype.kind == "f" else value
    missing = (samples == stored).reshape(*samples.shape[:2], -1).all(axis=2)
    if not missing.any():
        return image
    top = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
    image = (image / np.float32(top)).astype(np.float32)
    image[missing] = np.nan
    return image
