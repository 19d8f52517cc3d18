"""Checks of what decoders do not bound: chunks of a PNG, scans of a JPEG, canvas of a WebP, directories of a TIFF.

Uploads may be hostile, and decoders allocate memory and spend time on whatever a header claims.
"""

import re
import struct

from unet.imaging.picture import ImageError, ImageTooLargeError

PNG = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000
"""Chunks of a PNG, which usually has one for 8 or more KiB."""
MAX_SCANS = 100
"""Scans of a progressive JPEG, which has about ten. Each takes the time of a whole image, and may be a few bytes."""
MAX_MARKERS = 10_000
"""Marker segments of a JPEG."""
MAX_TAGS = 4096
"""Tags of a TIFF directory; libtiff's limit, too."""
MAX_STRIPS = 2**20
"""Offsets and byte counts of strips and tiles, of all pages of a TIFF together."""

_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # neither data nor a restart
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_EOI, _SOS = 0xD9, 0xDA
_STEP = 2**18
"""Bytes of one search for a marker, which holds up other threads: milliseconds at most."""
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value, by TIFF's data types."""
_STRIPS = (273, 279, 324, 325)
"""Tags: offsets and byte counts of strips, of tiles."""


def plain_png(data: bytes) -> bytes:
    """The PNG without chunks that its first picture does not need: text, profiles, further frames, repetitions.

    libpng writes a line to stderr for each repetition. Raises ImageError for a chunk that is longer than the file.
    """
    kept, seen, end = [PNG], set(), len(PNG)
    for _ in range(MAX_CHUNKS):
        if len(data) < end + 12:
            raise ImageError("the image is truncated or damaged")
        start = end
        length, name = struct.unpack_from(">I4s", data, start)
        end += 12 + length
        if end > len(data):
            raise ImageError("the image is truncated or damaged")
        if name in _NEEDED and (name == b"IDAT" or name not in seen):
            kept.append(data[start:end])
            seen.add(name)
        if name == b"IEND":
            return b"".join(kept)
    raise ImageError(f"expected a PNG of at most {MAX_CHUNKS} chunks, found more")


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG; (0, 0) for tables without an image. Raises ImageError for too many scans."""
    size, scans, position = (0, 0), 0, 2
    for _ in range(MAX_MARKERS):
        found = None
        for start in range(position, len(data), _STEP):
            if found := _MARKER.search(data, start, start + _STEP + 1):  # a marker has two bytes
                break
        if found is None or found[1][0] == _EOI or found.end() + 7 > len(data):
            return size
        marker, position = found[1][0], found.end()
        length, height, width = struct.unpack_from(">HxHH", data, position)
        position += max(2, length)
        if marker in _SOF:
            if size != (0, 0):
                raise ImageError("the image is damaged: a JPEG has one size")
            size = width, height
        scans += marker == _SOS
        if scans > MAX_SCANS:
            raise ImageError(f"expected a JPEG of at most {MAX_SCANS} scans, found more")
    raise ImageError(f"expected a JPEG of at most {MAX_MARKERS} marker segments, found more")


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a WebP's canvas. (Pillow allocates the canvas when it opens a WebP.)"""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 6)
    return width & 0x3FFF, height & 0x3FFF


def check_tiff(data: bytes, max_directories: int | None) -> None:
    """Raises ImageError for directories in a loop, and for tags that take more memory than the file has bytes.

    ImageTooLargeError for more than `max_directories`.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    head, entry, pointer = ("Q", "HHQ8x", "Q") if big else ("H", "HHI4x", "I")
    size, pointed, strips, seen = struct.calcsize(order + entry), 0, 0, set()
    try:
        (position,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
        while position:
            if position in seen:
                raise ImageError("the image is damaged: the directories of the TIFF form a loop")
            seen.add(position)
            if max_directories is not None and len(seen) > max_directories:
                raise ImageTooLargeError(f"expected a TIFF of at most {max_directories} directories, found more")
            (n_tags,) = struct.unpack_from(order + head, data, position)
            position += struct.calcsize(order + head)
            if n_tags > MAX_TAGS:
                raise ImageError(f"expected a TIFF directory of at most {MAX_TAGS} tags, found {n_tags}")
            tags = data[position : position + n_tags * size]
            for tag, kind, count in struct.iter_unpack(order + entry, tags):
                pointed += count * _TAG_SIZES.get(kind, 0)
                strips += count if tag in _STRIPS else 0
            if pointed > 2 * len(data) or strips > MAX_STRIPS:  # tags that share their values are read again and again
                raise ImageError("the image is damaged: the tags of the TIFF hold more than the file")
            (position,) = struct.unpack_from(order + pointer, data, position + n_tags * size)
    except (struct.error, OverflowError) as error:  # a position beyond the end
        raise ImageError("the image is truncated or damaged") from error
    if not seen:
        raise ImageError("the image is damaged: the TIFF has no page")
