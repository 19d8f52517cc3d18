"""PNG files as most are, read and written in a fraction of the time that OpenCV takes."""

import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from kornia_rs.io import decode_image_png_u8, decode_image_png_u16

from unet.headers import PNG, chunks

LARGEST = 2**20
"""Bytes of rows: other threads wait while they are decoded, for some milliseconds, or a tenth of a second if the file
is made for that."""

_READERS = {8: decode_image_png_u8, 16: decode_image_png_u16}
"""By bits of a number."""
_MODES = {0: ("mono", 1), 2: ("rgb", 3), 6: ("rgba", 4)}
"""Mode and channels by colour type."""
_UP = 2
"""The filter of a row that holds its differences to the one above."""
_LEVEL = 1
"""Of 0 to 3."""


def decoded(data: bytes) -> npt.NDArray[Any] | None:
    """(H, W) grey or (H, W, 3) RGB, uint8 or uint16, without alpha. Of a PNG with all that `headers.pages` asks for and
    nothing that its picture does not need; None where anything is unusual, large or damaged, and for any other file:
    that is for OpenCV to judge. (What the Adler-32 of the pixels says is not asked; the chunks' CRC are.)"""
    if not data.startswith(PNG) or any(name in (b"tRNS", b"eXIf") for name, _, _ in chunks(data)):
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    mode, channels = _MODES.get(colour, ("", 0))
    rows = height * (1 + width * channels * depth // 8)  # each after a byte for its filter
    # what compression makes longer, rather than shorter, is slow: it may hold any number of blocks without a pixel
    if not channels or depth not in _READERS or interlaced or rows > LARGEST or len(data) > 1.01 * rows + 4096:
        return None
    try:
        pixels: npt.NDArray[Any] = _READERS[depth](data, (height, width), mode)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # Rust's
            return None
        raise
    if channels == 4:
        return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
    return pixels[..., 0] if channels == 1 else pixels


def encode_flat(image: npt.NDArray[np.uint8]) -> bytes:
    """(H, W) -> 8-bit grey PNG, for areas of one value: in little time, and less than a bit per pixel."""
    height, width = image.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = _UP
    rows[:1, 1:] = image[:1]
    np.subtract(image[1:], image[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = isal_zlib.compress(rows, _LEVEL)
    return b"".join([PNG, _chunk(b"IHDR", header), _chunk(b"IDAT", packed), _chunk(b"IEND", b"")])


def _chunk(name: bytes, content: bytes) -> bytes:
    check = isal_zlib.crc32(content, isal_zlib.crc32(name))
    return b"".join([struct.pack(">I", len(content)), name, content, struct.pack(">I", check)])
