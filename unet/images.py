"""Image files: bytes <-> arrays. Every decoder is behind `decode`, for training files and uploads alike."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

# any channel count and depth, with the EXIF orientation applied (IMREAD_UNCHANGED would ignore it)
_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH

_RUN_LENGTHS = [
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
]

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what is wrong with a file, the exception says

Array = npt.NDArray[Any]


class ImageError(ValueError):
    """Bytes that are no image this project reads. Says why."""


class ImageTooLargeError(ImageError):
    """More pixels or pages than allowed."""


def decode(data: bytes, *, max_pixels: int | None = None, max_pages: int | None = None) -> list[Array]:
    """The pages of an image file, one unless it is a multi-page TIFF: each (H, W) grey or (H, W, 3) RGB.

    uint8, uint16 or float32 as in the file; 1-bit becomes 0 and 255; palettes are looked up; alpha is dropped; the EXIF
    orientation is applied. `max_pixels` counts all pages, and is checked before any memory is taken for them.
    Raises ImageTooLargeError or ImageError.
    """
    if not data:
        raise ImageError("expected an image, found nothing (0 bytes)")
    n_pages = _check_header(data, max_pixels, max_pages)
    buffer = np.frombuffer(data, np.uint8)
    try:
        if n_pages == 1:
            page = cv2.imdecode(buffer, _FLAGS)
            pages = [] if page is None else [page]
        else:
            pages = list(cv2.imdecodemulti(buffer, _FLAGS)[1])
        if len(pages) != n_pages:
            raise ImageError("the image is truncated or damaged")
        return [cv2.cvtColor(page, cv2.COLOR_BGR2RGB) if page.ndim == 3 else page for page in pages]
    except cv2.error as error:
        raise ImageError(f"the image cannot be decoded: {error.err}") from error


def encode_png(image: Array, *, flat: bool = False) -> bytes:
    """(H, W) or (H, W, 3) RGB, uint8 or uint16 -> PNG.

    `flat` is for masks, areas of one value: compressed as run lengths they take less than a bit per pixel and as little
    time as if they were written so, and any reader finds the values themselves.
    """
    return _encoded(*cv2.imencode(".png", _bgr(image), _RUN_LENGTHS if flat else []))


def encode_tiff(pages: Sequence[Array]) -> bytes:
    """Pages as for `encode_png` -> one multi-page TIFF."""
    return _encoded(*cv2.imencodemulti(".tiff", [_bgr(page) for page in pages]))


def _check_header(data: bytes, max_pixels: int | None, max_pages: int | None) -> int:
    """The number of pages, from headers alone: nothing is decoded, so a bomb costs nothing."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            n_pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if max_pages is not None and n_pages > max_pages:
                raise ImageTooLargeError(f"expected at most {max_pages} pages, found {n_pages}")
            n_pixels = 0
            for page in range(n_pages):
                image.seek(page)
                n_pixels += image.width * image.height
                if max_pixels is not None and n_pixels > max_pixels:
                    raise ImageTooLargeError(
                        f"expected at most {max_pixels} pixels, found {image.width} x {image.height} on page {page + 1}"
                    )
            return n_pages
    except ImageTooLargeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(str(error)) from error
    except Exception as error:  # readers of headers raise whatever they like on hostile bytes
        raise ImageError(f"expected an image ({', '.join(FORMATS)}), found something else") from error


def _bgr(image: Array) -> Array:
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image


def _encoded(ok: bool, buffer: Array) -> bytes:
    assert ok, "OpenCV refused to encode an array that we made"
    return buffer.tobytes()
