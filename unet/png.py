"""PNG's compression by Intel's ISA-L, which takes a third of the time of the zlib that OpenCV has, and most of a PNG's
time is that."""

import struct
import zlib
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from unet.headers import PNG, chunks

LARGEST = 2**24
"""Bytes of pixels that are held twice for a moment."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
_UP = 2
"""The filter of a row that holds its differences to the one above."""
_LEVEL = 1
"""Of 0 to 3."""


def inflated(data: bytes) -> bytes:
    """A PNG (with all that `headers.pages` asks for) of the same picture, its pixels not compressed: for a decoder that
    is slow at that. As it is where anything is unusual or damaged, for the decoder to judge, and any other file."""
    if not data.startswith(PNG):
        return data
    pixels = [(start, end) for name, start, end in chunks(data) if name == b"IDAT"]
    apart = any(end != start for (_, end), (start, _) in pairwise(pixels))
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    size = height * (1 + -(-width * depth * _CHANNELS.get(colour, 0) // 8))  # each row after a byte for its filter
    if apart or interlaced or size > LARGEST:
        return data
    packed = memoryview(data)
    if any(isal_zlib.crc32(packed[a + 4 : b - 4]) != int.from_bytes(packed[b - 4 : b]) for a, b in pixels):
        return data
    stream = isal_zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(packed[a + 8 : b - 4] for a, b in pixels), size + 1)
    except isal_zlib.IsalError:  # type: ignore[misc]  # its stubs do not know what it is
        return data
    if len(rows) != size or not stream.eof:
        return data
    (start, _), (_, end) = pixels[0], pixels[-1]
    return b"".join([data[:start], _chunk(b"IDAT", zlib.compress(rows, 0)), data[end:]])


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
