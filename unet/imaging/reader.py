"""Reading: limits first, from headers; then pixels.

PNG, JPEG and WebP through OpenCV, GIF and BMP through Pillow, JPEG 2000 through imagecodecs.
"""

import io
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from unet.imaging import headers
from unet.imaging.picture import (
    Array,
    ImageError,
    ImageTooLargeError,
    Limits,
    Metadata,
    NoSuchPageError,
    Picture,
    decoding,
)
from unet.imaging.series import ORIENTATION
from unet.imaging.tiff import MAGIC, TiffImage

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # exceptions say what is wrong with a file

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k")
MAX_SIDE = 1_000_000  # pixels: the limit of libpng, which writes answers; OpenCV's is 2**20
UNLIMITED = Limits()
_PILLOW: dict[bytes, type[ImageFile]] = {headers.PNG: PngImageFile, b"BM": BmpImageFile, b"GIF8": GifImageFile}
"""Opened lazily, by the first bytes."""
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_RUN_LENGTHS = (1, 2)  # compression of a BMP: Pillow takes seconds


def measure(data: bytes, limits: Limits = UNLIMITED, page: int | None = None) -> int:
    """Number of pixels that decoding takes memory for, all pages together or one of them, from headers alone. Raises
    ImageTooLargeError, NoSuchPageError, or ImageError for what is not an image."""
    return _opened(data, limits, page)[1]


def read(
    source: bytes | str | Path, limits: Limits = UNLIMITED, *, page: int | None = None, as_stored: bool = False
) -> Picture:
    """The picture in a file, or in its bytes; of a stack, only this page, from 1, if one is given. Raises
    ImageTooLargeError, NoSuchPageError, ImageError, OSError.

    Pages are (H, W) grey, (H, W, 3) RGB or (H, W, C), integers and floats as in the file; 1 bit becomes 0 and 255,
    alpha is dropped, the orientation is applied, of an animation the first picture counts. Palettes are looked up,
    black is 0, and pixels with GDAL's value for no data are NaN (integers then become floats of 0..1); `as_stored`, for
    labels: indices of the palette, and samples as they are.
    """
    if not isinstance(source, bytes):
        with Path(source).open("rb") as file:
            source = file.read(-1 if limits.max_bytes is None else limits.max_bytes + 1)
    image, _ = _opened(source, limits, page)
    del source  # large: a TIFF has been copied
    picture = image.decode(as_stored)
    return picture if page is None else replace(picture, tiff=False, part=(page, image.n_pages))


def _opened(data: bytes, limits: Limits, page: int | None) -> "tuple[TiffImage | RasterImage, int]":
    """The image, not decoded yet, and its number of pixels, which are within the limits."""
    if limits.max_bytes is not None and len(data) > limits.max_bytes:
        raise ImageTooLargeError(f"expected at most {limits.max_bytes} bytes (--max-bytes), found more")
    image = TiffImage(data, limits.max_pages) if data.startswith(MAGIC) else RasterImage(data)
    if page is not None:
        if not 1 <= page <= image.n_pages:
            raise NoSuchPageError(f"page: expected 1{f' to {image.n_pages}' * (image.n_pages > 1)}, found {page}")
        image.keep(page - 1)
    total = 0
    for number, (width, height, pixels) in enumerate(image.claims, page or 1):
        total += pixels
        found = f"found {width} x {height} on page {number}"
        if not width or not height:
            raise ImageError(f"expected an image, found {width} x {height} pixels")
        if limits.max_pixels is not None and total > limits.max_pixels:
            raise ImageTooLargeError(f"expected at most {limits.max_pixels} pixels (--max-pixels), {found}")
        if max(width, height) > MAX_SIDE:
            raise ImageTooLargeError(f"expected sides of at most {MAX_SIDE} pixels, {found}")
    return image, total


class RasterImage:
    """A PNG, JPEG, JPEG 2000, BMP, WebP or GIF in memory: its size known, nothing decoded. Raises ImageError for other
    files."""

    n_pages = 1

    def __init__(self, data: bytes) -> None:
        self.data = headers.plain_png(data) if data.startswith(headers.PNG) else data
        self.lazy: ImageFile | None = None
        weight = 1
        if data.startswith(b"\xff\xd8\xff"):
            self.size = headers.jpeg_size(data, fill=True)
        elif data.startswith((JP2, headers.J2K)):
            with decoding():
                self.data = headers.codestream(data)
                self.size = headers.jpeg2000_size(self.data)
            self.alpha = _alpha(data[: -len(self.data)])
            weight = -(-self.data[41] // 4)  # components, as 32-bit integers while they are decoded
        elif data.startswith(b"RIFF"):
            self.size = headers.webp_size(data)
        elif kind := next((kind for magic, kind in _PILLOW.items() if data.startswith(magic)), None):
            with decoding():  # (`Image.open` would apply limits of its own, which are global)
                self.lazy = kind(io.BytesIO(self.data))
                self.size = self.lazy.size
        else:
            kinds = "PNG, JPEG, TIFF, BMP, WebP, GIF or JPEG 2000"
            raise ImageError(f"expected an image ({kinds}), found {len(data) or 'no'} other bytes")
        self.claims = [(*self.size, self.size[0] * self.size[1] * weight)]  # width, height, pixels to be allocated

    def keep(self, page: int) -> None:
        """Nothing: there is no other page."""

    def decode(self, as_stored: bool) -> Picture:
        """The picture, or the first one of an animation, as `read` returns it. Raises ImageError."""
        page, palette = self._page(as_stored), self._palette() if as_stored else ()
        metadata = Metadata(orientation=self._orientation(), animated=self._animated(), palette=palette)
        return Picture([page], "YXS"[: page.ndim], metadata)

    def _animated(self) -> bool:
        """Whether a GIF or WebP holds more pictures than the first."""
        if self.data.startswith(b"RIFF"):
            return self.data[12:16] == b"VP8X" and bool(self.data[20] & 2)
        with suppress(Exception):  # Pillow's, on what follows the first picture: no reason to refuse that one
            return isinstance(self.lazy, GifImageFile) and self.lazy.is_animated
        return False

    def _palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of the indices of a PNG, GIF or BMP that has a palette."""
        colours = self.lazy.getpalette("RGB") if self.lazy and self.lazy.mode == "P" else None
        return tuple(zip(*[iter(colours or ())] * 3, strict=False))

    def _orientation(self) -> int:
        """EXIF orientation, 1 to 8, of a JPEG or PNG; 1 if there is none."""
        with suppress(Exception):  # Pillow's, on damaged EXIF: no reason to refuse the pixels
            if self.lazy or (self.data.startswith(b"\xff\xd8") and b"Exif" in self.data[:65536]):
                return int((self.lazy or JpegImageFile(io.BytesIO(self.data))).getexif().get(ORIENTATION, 1))
        return 1

    def _page(self, as_stored: bool) -> Array:
        """Pixels, without alpha and upright by EXIF."""
        lazy = self.lazy
        if lazy and as_stored and lazy.mode == "P":
            with decoding():
                return np.array(ImageOps.exif_transpose(lazy))
        if lazy and lazy.format != "PNG" and lazy.info.get("compression") not in _RUN_LENGTHS:
            with decoding():
                colours = np.array(lazy.convert("RGB"))
            grey = not lazy.mode.startswith("RGB") and (colours == colours[..., :1]).all()  # of a palette
            return np.ascontiguousarray(colours[..., 0]) if grey else colours
        page: Array | None
        is_jpeg2000 = self.data.startswith(headers.J2K)
        with decoding():
            if is_jpeg2000:
                page = imagecodecs.jpeg2k_decode(self.data)
            else:  # with the EXIF orientation applied (IMREAD_UNCHANGED would ignore it)
                page = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
        if page is None or sorted(page.shape[:2]) != sorted(self.size):  # EXIF may turn it
            raise ImageError("the image is truncated, damaged, or of a kind that is not read")
        if is_jpeg2000:
            page = np.delete(page, self.alpha, axis=2) if page.ndim == 3 else page
            return page[..., 0] if page.shape[2:] == (1,) else np.ascontiguousarray(page)
        if as_stored and lazy and lazy.format == "PNG" and (bits := self.data[24]) in (2, 4) and page.ndim == 2:
            page //= 255 // (2**bits - 1)  # libpng scales them to 8 bits
        return cv2.cvtColor(page, cv2.COLOR_BGR2RGB) if page.ndim == 3 else page


def _alpha(boxes: bytes) -> list[int]:
    """Components of a JPEG 2000 that are opacity, by the channel definition among the boxes of a JP2."""
    start = boxes.find(b"cdef") + 6
    n = int.from_bytes(boxes[start - 2 : start]) if start > 5 else 0
    definitions = struct.iter_unpack(">HHH", boxes[start : start + 6 * n].ljust(6 * n, b"\0")[: 6 * n])
    return [component for component, kind, _ in definitions if kind in (1, 2)]
