"""Files of one picture: PNG, JPEG, BMP, WebP through OpenCV, GIF through Pillow."""

import io
import math
import struct
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, ImageOps, PngImagePlugin
from PIL.ImageFile import ImageFile

from unet.imaging import headers
from unet.imaging.picture import Array, ImageError, decoding

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # exceptions say what is wrong with a file

# any depth, grey or colour, with the EXIF orientation applied (IMREAD_UNCHANGED would ignore it)
_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
# what Pillow opens lazily, by the first bytes
_PILLOW: dict[bytes, type[ImageFile]] = {
    headers.PNG: PngImagePlugin.PngImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
}
_BITFIELDS = 3  # compression of a BMP: none, but masks say where the bits of a colour are


class RasterFile:
    """A PNG, JPEG, BMP, WebP or GIF in memory: its size known, nothing decoded. Raises ImageError for other files."""

    def __init__(self, data: bytes) -> None:
        self.data = headers.plain_png(data) if data.startswith(headers.PNG) else data
        self.lazy: ImageFile | None = None
        if data.startswith(b"\xff\xd8\xff"):
            self.size = headers.jpeg_size(data)
        elif data.startswith(b"RIFF"):
            self.size = headers.webp_size(data)
        elif data.startswith(tuple(_PILLOW)):
            kind = next(kind for magic, kind in _PILLOW.items() if data.startswith(magic))
            with decoding():  # (`Image.open` would apply limits of its own, which are global)
                self.lazy = kind(io.BytesIO(self.data))
                self.size = self.lazy.size
        else:
            raise ImageError("expected an image (PNG, JPEG, TIFF, BMP, WebP or GIF), found something else")

    def claims(self) -> Iterator[tuple[int, int, int]]:
        """(width, height, pixels to be allocated) of the one page."""
        yield *self.size, math.prod(self.size)

    def decode(self, as_stored: bool) -> Array:
        """(H, W) grey or (H, W, 3) RGB as in the file, without alpha, EXIF orientation applied; of an animation the
        first picture. `as_stored`: indices of a palette, uint8, instead of its colours. Raises ImageError."""
        if self.lazy and as_stored and self.lazy.mode == "P":
            with decoding():
                return np.array(ImageOps.exif_transpose(self.lazy))
        if self.lazy and (self.data.startswith(b"GIF8") or _misread(self.data)):
            with decoding():
                colours = np.array(self.lazy.convert("RGB"))
            grey = self.lazy.mode != "RGB" and (colours == colours[..., :1]).all()  # a GIF has palettes only
            return np.ascontiguousarray(colours[..., 0]) if grey else colours
        with decoding():
            page = cv2.imdecode(np.frombuffer(self.data, np.uint8), _FLAGS)
        if page is None or sorted(page.shape[:2]) != sorted(self.size):  # EXIF may turn it
            raise ImageError("the image is truncated, damaged, or of a kind that is not read")
        return cv2.cvtColor(page, cv2.COLOR_BGR2RGB) if page.ndim == 3 else page


def _misread(data: bytes) -> bool:
    """Whether OpenCV gets the colours of this BMP wrong: OS/2's header, and pixels that are not blue, green, red."""
    if not data.startswith(b"BM"):
        return False
    header, depth, compression, *masks = struct.unpack("<I10xHI20x3I", data[14:66].ljust(52, b"\0"))
    return header < 40 or (depth == 32 and compression == _BITFIELDS and masks != [0xFF0000, 0xFF00, 0xFF])
