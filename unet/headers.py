"""What an image file claims to hold, read without decoding anything: PNG, JPEG, TIFF, BMP, WebP.

Uploads are hostile, and decoders believe headers: they take memory and time for whatever is claimed. So files are read
here first, more strictly than the decoder does, and what two readers could understand differently is refused.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_SIDE = 1_000_000
"""libpng's, which writes answers; OpenCV's is 2**20."""
MAX_SCANS = 100
"""Of a progressive JPEG, which has about ten. Each takes the time of a whole image and may have only a few bytes."""
MAX_SEGMENTS = 10_000
"""Of a JPEG."""
MAX_CHUNKS = 100_000
"""Of a PNG, which usually has one for 8 or more KiB."""
MAX_TAGS = 4096
"""Of a page of a TIFF; libtiff's."""

SEARCH = 2**18
"""Bytes at a time: milliseconds at most."""

PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # neither data nor a restart
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR = 274, 277, 284
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_BYTE_COUNTS = (279, 325)
"""Of strips, of tiles."""
_NEGATIVE, _RGB = 0, 2
"""As photometric interpretation."""
_GREY = (0, 1)
"""Likewise: 0 as white, 0 as black."""
_COLOURS = (*_GREY, _RGB, 3, 5, 6)
"""Likewise, what is read: also palettes, CMYK and YCbCr. Of CIELab libtiff makes colours with a white of its own."""
_PLANES = 2
"""As planar configuration: each colour by itself."""
_TURNED = (2, 3, 6, 7)
"""Orientations that OpenCV gets wrong in tiles of 8 bits; 1, 4, 5 and 8 it gets right."""
_LAYOUT = (_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR)
_READ = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, *_LAYOUT, *_BYTE_COUNTS)
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
"""TIFF's numbers for them."""
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
"""None, fax, LZW, JPEG, deflate, PackBits. Others are rare, and hardly anybody looks after their decoders."""
_BITFIELDS = 3
"""A compression of BMP: none, but the bits of each colour are where masks say."""


class HeaderError(ValueError):
    """Not an image file of these kinds, or one that is damaged. Says why."""


class Page(NamedTuple):
    width: int
    height: int
    pixels: int
    """That decoding takes memory for: a tile may be larger than its image."""


def pages(data: bytes) -> Iterator[Page]:
    """The pages of a TIFF, one of any other file. Raises HeaderError, perhaps after some pages."""
    try:
        for page in _read(data):
            if not page.width or not page.height:
                raise HeaderError(f"expected an image, found {page.width} x {page.height} pixels")
            yield page
    except struct.error as error:  # a number beyond the end
        raise HeaderError("the image is truncated or damaged") from error


def bare(data: bytes) -> bytes:
    """A PNG without what its (first) picture does not need: text, colour profiles, the animation's other frames, and
    what is said again, for which libpng writes a line each to stderr. Other files as they are."""
    if not data.startswith(PNG):
        return data
    kept, seen = [PNG], set()
    for name, start, end in chunks(data):
        if name in _NEEDED and (name == b"IDAT" or name not in seen):
            kept.append(data[start:end])
            seen.add(name)
    return b"".join(kept)


def _read(data: bytes) -> Iterator[Page]:
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    raise HeaderError("expected an image (PNG, JPEG, TIFF, BMP or WebP), found something else")


def _page(width: int, height: int, tile: tuple[int, int] = (1, 1)) -> Page:
    return Page(width, height, max(width * height, tile[0] * tile[1]))


def _png(data: bytes) -> Iterator[Page]:
    names = [name for name, _, _ in chunks(data)]
    if names[0] != b"IHDR" or names.count(b"IHDR") != 1:
        raise HeaderError("the image is damaged: a PNG begins with its one header")
    yield _page(*struct.unpack_from(">II", data, 16))


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start, end of each in a PNG. A decoder takes memory for the length before it looks whether as much is
    there. Raises HeaderError."""
    name, end, n_chunks = b"", len(PNG), 0
    while name != b"IEND":
        start, n_chunks = end, n_chunks + 1
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + length + 12
        if end > len(data):
            raise HeaderError("the image is truncated or damaged")
        if n_chunks > MAX_CHUNKS:
            raise HeaderError(f"expected a PNG of at most {MAX_CHUNKS} chunks, found more")
        yield name, start, end


def _jpeg(data: bytes) -> Iterator[Page]:
    page, scans, segments, position = None, 0, 0, 2
    while found := _next_marker(data, position):
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            break
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, position + 3)
            if page or not width or not height:
                raise HeaderError("the image is damaged: a JPEG has one size")
            page = _page(width, height)
        scans += marker == _SOS
        segments += 1
        if scans > MAX_SCANS or segments > MAX_SEGMENTS:
            raise HeaderError(f"expected a JPEG of at most {MAX_SCANS} scans and {MAX_SEGMENTS} segments, found more")
        position += max(2, length)
    if not page:
        raise HeaderError("the image is truncated or damaged")
    yield page


def _next_marker(data: bytes, position: int) -> "re.Match[bytes] | None":
    """In steps, between which other threads may run: one search holds them up to its end."""
    for start in range(position, len(data), SEARCH):
        if found := _MARKER.search(data, start, start + SEARCH + 1):  # one byte of the next step: a marker has two
            return found
    return None


def _tiff(data: bytes) -> Iterator[Page]:
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (directory,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    seen = set()
    while directory:
        if directory in seen or directory > len(data):
            raise HeaderError("the image is damaged: the pages of the TIFF have no end")
        seen.add(directory)
        fields, directory = _directory(data, directory, order, big)
        yield _tiff_page(fields)
    if not seen:
        raise HeaderError("the image is damaged: the TIFF has no page")


def _directory(data: bytes, start: int, order: str, big: bool) -> tuple[dict[int, int], int]:
    """The numbers that matter here, by tag, and where the next directory is. Byte counts are summed; of the bits of
    each sample the most count."""
    head, entry, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (n_entries,) = struct.unpack_from(order + head, data, start)
    start += struct.calcsize(head)
    size = struct.calcsize(order + entry)
    if n_entries > MAX_TAGS or start + n_entries * size > len(data):
        raise HeaderError("the image is truncated or damaged")
    fields, tags = {}, set()
    for tag, kind, count, value in struct.iter_unpack(order + entry, data[start : start + n_entries * size]):
        if tag in tags:
            raise HeaderError(f"the image is damaged: the TIFF says twice what its tag {tag} is")
        tags.add(tag)
        if tag not in _READ:
            continue
        if kind not in _INTEGERS or not count or (count > 1 and tag not in (_BITS, *_BYTE_COUNTS)):
            raise HeaderError(f"the image is damaged: expected a number as the TIFF's tag {tag}")
        if count > MAX_SIDE:  # a strip is a row or more; all pages may point to the same numbers
            raise HeaderError(f"expected a TIFF of at most {MAX_SIDE} strips or tiles a page, found {count}")
        number = np.dtype(order + _INTEGERS[kind])
        n_bytes = count * number.itemsize
        if n_bytes > len(value):
            (position,) = struct.unpack(order + pointer, value)
            value = data[position : position + n_bytes]
        if len(value) < n_bytes:
            raise HeaderError("the image is truncated or damaged")
        numbers = np.frombuffer(value, number, count)
        fields[tag] = int(numbers.max() if tag == _BITS else numbers.sum(dtype=np.float64))
    (following,) = struct.unpack_from(order + pointer, data, start + n_entries * size)
    for tag in _BYTE_COUNTS:
        if fields.get(tag, 0) > len(data):
            raise HeaderError("the image is damaged: parts of the TIFF overlap")  # each would be read again and again
    return fields, following


def _tiff_page(fields: dict[int, int]) -> Page:
    if fields.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise HeaderError(f"expected a TIFF compression of {_COMPRESSIONS}, found {fields[_COMPRESSION]}")
    tile = fields.get(_TILE_WIDTH, 0), fields.get(_TILE_HEIGHT, 0)
    if tile[0] % 16 or tile[1] % 16:
        raise HeaderError(f"expected tiles with sides of multiples of 16, as TIFF has it, found {tile[0]} x {tile[1]}")
    width, height = fields.get(_WIDTH, 0), fields.get(_HEIGHT, 0)
    samples, bits = fields.get(_SAMPLES, 1), fields.get(_BITS, 1)
    photometric, planes = fields.get(_PHOTOMETRIC, 1), fields.get(_PLANAR) == _PLANES
    if photometric not in _COLOURS:
        kinds = "grey values, RGB, a palette, CMYK or YCbCr"
        raise HeaderError(f"expected a TIFF of {kinds}, found photometric interpretation {photometric}")
    # of these, OpenCV writes a part of its picture, and leaves the rest to whatever the memory held
    if photometric == _RGB and samples < 3:
        raise HeaderError("the image is damaged: the TIFF has fewer than three samples of an RGB pixel")
    if planes and samples > 1 and bits > 8:
        raise HeaderError(f"expected a TIFF of {bits} bits with the colours of a pixel together, found planes")
    if photometric == _NEGATIVE and bits > 8:  # which it turns round of 8 bits only
        raise HeaderError(f"expected a TIFF of {bits} bits with 0 as black, found 0 as white")
    if samples == 2 and bits > 8:  # of which it keeps 8
        raise HeaderError(f"expected a TIFF of {bits} bits with 1, 3 or 4 samples a pixel, found 2")
    if photometric == _NEGATIVE and planes and samples > 1:  # nor of planes
        raise HeaderError("expected a TIFF with the samples of a pixel together, or 0 as black, found planes")
    if photometric in _GREY and samples > 2 and bits <= 16:  # of which it takes the first, or makes grey
        raise HeaderError(f"expected a grey TIFF of at most 2 samples a pixel, found {samples}: save colours as RGB")
    # and of these it turns each tile where it lies
    several = all(tile) and (width > tile[0] or height > tile[1])
    if fields.get(_ORIENTATION) in _TURNED and several and bits <= 8:
        raise HeaderError("expected a TIFF of strips, or one that lies as it is seen, found tiles to be turned")
    return _page(width, height, tile)


def _bmp(data: bytes) -> Iterator[Page]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header < 40:  # the colours of which OpenCV makes grey
        raise HeaderError(f"expected a BMP with a header of 40 bytes or more, found OS/2's of {header}")
    width, height = struct.unpack_from("<ii", data, 18)
    if width < 0:
        raise HeaderError("the image is damaged: its width is negative")
    if struct.unpack_from("<HI", data, 28) == (32, _BITFIELDS):
        masks = struct.unpack_from("<III", data, 54)
        if masks != (0xFF0000, 0xFF00, 0xFF):  # as which OpenCV reads any
            raise HeaderError("expected a BMP whose pixels are blue, green, red, found another order")
    yield _page(width, abs(height))  # a negative height: from top to bottom


def _webp(data: bytes) -> Iterator[Page]:
    kind = data[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        yield _page((high_width << 16 | low_width) + 1, (high_height << 16 | low_height) + 1)
    elif kind == b"VP8L":
        (sides,) = struct.unpack_from("<I", data, 21)
        yield _page((sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        yield _page(width & 0x3FFF, height & 0x3FFF)
    else:
        raise HeaderError("the image is damaged: expected a WebP's picture first")
