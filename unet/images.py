"""Image files: bytes <-> arrays. Every decoder is behind `decode`, for training files and uploads alike."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from unet import headers, png
from unet.headers import HeaderError, Page

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

# any channel count and depth, with the EXIF orientation applied (IMREAD_UNCHANGED would ignore it)
_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file, the exception says

Array = npt.NDArray[Any]


class ImageError(ValueError):
    """Bytes that are no image this project reads. Says why."""


class ImageTooLargeError(ImageError):
    """More pixels or pages than allowed."""


def count_pixels(data: bytes, *, max_pixels: int, max_pages: int) -> int:
    """Of all pages of an image file together, by its headers: before any memory is taken for them. Raises
    ImageTooLargeError or ImageError."""
    return sum(page.pixels for page in _claimed(data, max_pixels, max_pages))


def decode(data: bytes) -> list[Array]:
    """The pages of an image file, one unless it is a multi-page TIFF: each (H, W) grey or (H, W, 3) RGB.

    Integers and floats as in the file; 1-bit becomes 0 and 255; palettes are looked up; alpha is dropped; the EXIF
    orientation is applied; of an animation the first picture counts. (In a TIFF of 8 bits libtiff has multiplied the
    colours by an alpha, and inverted them where 0 is white.) Raises ImageError; of files that nobody vouches for,
    `count_pixels` comes first.
    """
    claimed = _claimed(data)
    data = headers.bare(data)
    if (pixels := png.decoded(data)) is not None:
        return [pixels]
    try:
        buffer = np.frombuffer(data, np.uint8)
        if len(claimed) == 1:
            page = cv2.imdecode(buffer, _FLAGS)
            pages = [] if page is None else [page]
        else:
            pages = list(cv2.imdecodemulti(buffer, _FLAGS)[1])
        if not pages:
            raise ImageError("the image is truncated, damaged, or of a kind that is not read")
        if [sorted(page.shape[:2]) for page in pages] != [sorted((page.height, page.width)) for page in claimed]:
            raise ImageError("the image is truncated or damaged")  # sorted: EXIF may turn it
        return [cv2.cvtColor(page, cv2.COLOR_BGR2RGB) if page.ndim == 3 else page for page in pages]
    except cv2.error as error:
        raise ImageError(f"the image cannot be decoded: {' '.join(error.err.split())}") from error


def encode_png(image: Array, *, flat: bool = False) -> bytes:
    """(H, W) or (H, W, 3) RGB, uint8 or uint16 -> PNG. `flat` is for masks, (H, W) uint8: areas of one value."""
    return png.encode_flat(image) if flat else _encoded(*cv2.imencode(".png", _bgr(image)))


def encode_tiff(pages: Sequence[Array]) -> bytes:
    """Pages as for `encode_png` -> one multi-page TIFF."""
    return _encoded(*cv2.imencodemulti(".tiff", [_bgr(page) for page in pages]))


def _claimed(data: bytes, max_pixels: int | None = None, max_pages: int | None = None) -> list[Page]:
    """The pages that the headers claim, if they are within the limits."""
    if not data:
        raise ImageError("expected an image, found nothing (0 bytes)")
    claimed: list[Page] = []
    try:
        for page in headers.pages(data):
            claimed.append(page)
            if max_pages is not None and len(claimed) > max_pages:
                raise ImageTooLargeError(f"expected at most {max_pages} pages, found more")
            found = f"found {page.width} x {page.height} on page {len(claimed)}"
            if max_pixels is not None and sum(page.pixels for page in claimed) > max_pixels:
                raise ImageTooLargeError(f"expected at most {max_pixels} pixels, {found}")
            if max(page.width, page.height) > headers.MAX_SIDE:
                raise ImageTooLargeError(f"expected sides of at most {headers.MAX_SIDE} pixels, {found}")
    except HeaderError as error:
        raise ImageError(str(error)) from error
    return claimed


def _bgr(image: Array) -> Array:
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image


def _encoded(ok: bool, buffer: Array) -> bytes:
    assert ok, "OpenCV refused to encode an array that we made"
    return buffer.tobytes()
