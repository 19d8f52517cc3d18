"""Files of one picture: PNG, JPEG, BMP, WebP through OpenCV, GIF through Pillow."""

import io
import struct
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, ImageOps, PngImagePlugin
from PIL.ImageFile import ImageFile

from unet.imaging import headers
from unet.imaging.picture import Array, Claim, ImageError, decoding

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file, the exception says

# any depth, grey or colour, with the EXIF orientation applied (IMREAD_UNCHANGED would ignore it)
_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
_BITFIELDS = 3
"""A compression of BMP: none, but masks say where the bits of a colour are."""


class RasterFile:
    """A PNG, JPEG, BMP, WebP or GIF in memory: its size known, nothing decoded. Raises ImageError for other files."""

    def __init__(self, data: bytes) -> None:
        self.data, self.lazy = data, None
        if data.startswith(headers.PNG):
            self.data = headers.plain_png(data)
            self.lazy = _opened(PngImagePlugin.PngImageFile, self.data)
        elif data.startswith(b"BM"):
            self.lazy = _opened(BmpImagePlugin.BmpImageFile, data)
        elif data.startswith(b"GIF8"):
            self.lazy = _opened(GifImagePlugin.GifImageFile, data)
        elif not data.startswith((b"\xff\xd8\xff", b"RIFF")):
            raise ImageError("expected an image (PNG, JPEG, TIFF, BMP, WebP or GIF), found something else")
        if self.lazy:
            self.width, self.height = self.lazy.size
        else:
            size = headers.webp_size if data.startswith(b"RIFF") else headers.jpeg_size
            self.width, self.height = size(data)

    def claims(self) -> Iterator[Claim]:
        """What its one page claims."""
        yield Claim(self.width, self.height, self.width * self.height)

    def decode(self, as_stored: bool) -> Array:
        """(H, W) grey or (H, W, 3) RGB as in the file, without alpha, EXIF orientation applied; of an animation the
        first picture. `as_stored`: indices of a palette, uint8, instead of its colours. Raises ImageError."""
        if self.lazy and as_stored and self.lazy.mode == "P":
            with decoding():
                return np.array(ImageOps.exif_transpose(self.lazy))
        if self.lazy and (self.data.startswith(b"GIF8") or _misread(self.data)):
            with decoding():
                colours = np.array(self.lazy.convert("RGB"))
            return colours if np.ptp(colours, axis=-1).any() else np.ascontiguousarray(colours[..., 0])
        with decoding():
            page = cv2.imdecode(np.frombuffer(self.data, np.uint8), _FLAGS)
        if page is None:
            raise ImageError("the image is truncated, damaged, or of a kind that is not read")
        if sorted(page.shape[:2]) != sorted((self.height, self.width)):  # EXIF may turn it
            raise ImageError("the image is truncated or damaged")
        return cv2.cvtColor(page, cv2.COLOR_BGR2RGB) if page.ndim == 3 else page


def _opened(kind: type[ImageFile], data: bytes) -> ImageFile:
    """Pillow's lazy image. (`Image.open` would apply limits of its own, which are global.)"""
    with decoding():
        return kind(io.BytesIO(data))


def _misread(data: bytes) -> bool:
    """Whether OpenCV gets the colours of this BMP wrong: OS/2's header, and pixels that are not blue, green, red."""
    if not data.startswith(b"BM") or len(data) < 66:
        return data.startswith(b"BM")
    header, depth, compression = struct.unpack_from("<I10xHI", data, 14)
    masks = struct.unpack_from("<III", data, 54)
    return header < 40 or (depth == 32 and compression == _BITFIELDS and masks != (0xFF0000, 0xFF00, 0xFF))
