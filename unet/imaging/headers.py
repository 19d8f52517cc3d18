"""Checks of what decoders do not bound: chunks of a PNG, scans of a JPEG, canvas of a WebP, directories of a TIFF.

Uploads may be hostile, and decoders allocate memory and spend time on whatever a header claims.
"""

import io
import struct

from unet.imaging.picture import ImageError, ImageTooLargeError

PNG = b"\x89PNG\r\n\x1a\n"
MAX_PARTS = 100_000  # chunks of a PNG, usually of 8 or more KiB; segments of a JPEG before its first scan
MAX_SCANS = 100  # of a JPEG; ten are usual, each takes the time of a whole image and may be a few bytes
MAX_TAGS = 4096  # of a TIFF directory; libtiff's limit, too
MAX_VALUES = 2**20  # numbers in the tags of a TIFF, all pages together: most are places and sizes of strips or tiles

_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LOSSLESS, _DHT, _EOI, _SOS = 0xC3, 0xC4, 0xD9, 0xDA
# those of TIFF 6, without sub-directories; depths; GDAL's value for no data
_TIFF_TAGS = {*range(254, 348), 530, 32997, 32998, 42113} - {330}
_IMAGEJ, _DESCRIPTION = (50838, 50839), 270
MAX_IMAGEJ = 2**16  # bytes of ImageJ's names of slices, lookup tables and overlays
_STK = 33628
J2K = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream
MAX_COMPONENTS = 64  # of a JPEG 2000
_J2K_TILE, _J2K_DATA, _J2K_END = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_J2K_STYLES = {b"\xff\x52": (4, 9), b"\xff\x53": (5, 6)}  # where a segment has its flags, its number of levels
_BYTES = (2, 7)  # types of values: text, undefined


def plain_png(data: bytes) -> bytes:
    """The PNG without chunks that its first picture does not need: text, profiles, further frames, repetitions.

    libpng writes a line to stderr for each repetition. Raises ImageError for a chunk that is longer than the file.
    """
    kept, seen, end = [PNG], set(), len(PNG)
    for _ in range(MAX_PARTS):
        start, name = end, data[end + 4 : end + 8]
        end += 12 + int.from_bytes(data[start : start + 4])
        if end > len(data):
            raise ImageError("the image is truncated or damaged")
        if name in _NEEDED and (name == b"IDAT" or name not in seen):
            kept.append(data[start:end])
            seen.add(name)
        if name == b"IEND":
            return b"".join(kept)
    raise ImageError(f"expected a PNG of at most {MAX_PARTS} chunks, found more")


def jpeg_size(data: bytes, fill: bool = False) -> tuple[int, int]:
    """Size (width, height) of a JPEG; (0, 0) for tables without an image. Raises ImageError.

    `fill`: bytes FF between segments are allowed. A JPEG in a TIFF must have none: what libjpeg refuses, imagecodecs
    tries as lossless JPEG, with a decoder that reads beyond its input if Huffman tables are longer than their segment.
    """
    size, position = (0, 0), 2
    if data.count(b"\xff\xda") > MAX_SCANS:  # starts of scans; data of a scan has no such bytes
        raise ImageError(f"expected a JPEG of at most {MAX_SCANS} scans, found more")
    for _ in range(MAX_PARTS):
        while fill and data[position : position + 2] == b"\xff\xff":
            position += 1
        start, marker, length, height, width = struct.unpack(">BBHxHH", data[position : position + 9].ljust(9, b"\0"))
        if start == 0xFF and marker in (_EOI, _SOS):
            return size
        too_long = marker == _DHT and 19 + sum(data[position + 5 : position + 21]) > length
        position += 2 + length
        again = marker in _SOF and size != (0, 0)
        if start != 0xFF or length < 2 or position > len(data) or marker == _LOSSLESS or too_long or again:
            raise ImageError("the image is truncated, damaged, or a lossless JPEG")
        if marker in _SOF:
            size = width, height
    raise ImageError(f"expected a JPEG of at most {MAX_PARTS} segments, found more")


def webp_size(data: bytes) -> tuple[int, int]:
    """Size (width, height) of a WebP's canvas. (Pillow allocates it when it opens a WebP.) Raises ImageError."""
    kind, sides = data[12:16] if data[8:12] == b"WEBP" else b"", int.from_bytes(data[21:25], "little")
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise ImageError("the image is truncated or damaged")


def plain_tiff(data: bytes, max_pages: int | None) -> io.BytesIO:
    """The TIFF without tags that its pages do not need: vendors' own, EXIF, sub-directories, repetitions (but for a
    second description, which is ImageJ's or tifffile's).

    Raises ImageTooLargeError for more directories than pages may be; ImageError for directories that overlap or form a
    loop, and for tags that take more memory than the file has bytes; struct.error for places beyond the end.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    head, entry, pointer = (order + code for code in (("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")))
    ends: dict[int, int] = {}
    n_values = n_bytes = 0
    file = io.BytesIO(data)
    (start,) = struct.unpack_from(pointer, data, 8 if big else 4)
    while start and start not in ends:
        if max_pages is not None and len(ends) >= max_pages:
            raise ImageTooLargeError(f"expected at most {max_pages} pages (--max-pages), found more")
        (n_tags,) = struct.unpack_from(head, data, start)
        if n_tags > MAX_TAGS:
            raise ImageError(f"expected a TIFF directory of at most {MAX_TAGS} tags, found {n_tags}")
        first = start + struct.calcsize(head)
        end = first + n_tags * struct.calcsize(entry)
        kept: list[bytes] = []
        seen: list[int] = []
        for tag, kind, count, value in struct.iter_unpack(entry, data[first:end]):
            if tag == _STK:
                raise ImageError("MetaMorph's STK is not read: save it as a TIFF of several pages")
            needed = tag in _TIFF_TAGS or (tag in _IMAGEJ and count < MAX_IMAGEJ)
            if needed and seen.count(tag) < 1 + (tag == _DESCRIPTION):
                seen.append(tag)
                kept.append(struct.pack(entry, tag, kind, count, value))
                n_values += count * (kind not in _BYTES)
                n_bytes += count * (kind in _BYTES)
        if n_values > MAX_VALUES or n_bytes > 2 * len(data):
            raise ImageError("the image is damaged: the tags of the TIFF hold more than the file")
        following = data[end : end + struct.calcsize(pointer)]
        file.seek(start)
        file.write(struct.pack(head, len(kept)) + b"".join(kept) + following)
        ends[start], (start,) = end + len(following), struct.unpack(pointer, following)
    if start or any(end > start for end, start in zip(sorted(ends.values()), sorted(ends)[1:], strict=False)):
        raise ImageError("the image is damaged: the directories of the TIFF overlap or form a loop")
    file.seek(0)
    return file


def codestream(data: bytes) -> bytes:
    """The first codestream in the boxes of a JP2, or the data themselves if they are a bare one."""
    at = 0
    while not data.startswith(J2K, at):
        length, name, longer = struct.unpack_from(">I4sQ", data, at)
        size = {0: len(data) - at, 1: longer}.get(length, length)
        at += (16 if length == 1 else 8) if name == b"jp2c" else max(8, size)
    return data[at:] if at else data


def jpeg2000_size(data: bytes) -> tuple[int, int]:
    """Size (width, height) of a JPEG 2000 codestream. Raises ImageError or struct.error.

    OpenJPEG allocates for every tile, component and precinct that is claimed: more than are usual are refused.
    """
    x1, y1, x0, y0, tile_x, tile_y, _, _, n_components = struct.unpack_from(">8IH", data, 8)
    width, height = x1 - x0, y1 - y0
    if not data.startswith(J2K) or min(width, height, tile_x, tile_y) < 1 or not 1 <= n_components <= MAX_COMPONENTS:
        raise ImageError(f"the image is damaged, or a JPEG 2000 of more than {MAX_COMPONENTS} components")
    claimed = [-(-x1 // tile_x) * -(-y1 // tile_y)]  # tiles, and precincts for each coding style
    at, end_of_part, tiles = 2, 0, set()
    while (marker := data[at : at + 2]) not in (_J2K_END, b""):
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _J2K_TILE:
            tile, size = struct.unpack_from(">HI", data, at + 4)
            end_of_part = at + size if size else len(data)
            tiles.add(tile)
        elif marker == _J2K_DATA:
            length = end_of_part - at - 2
        elif marker in _J2K_STYLES:
            style, levels = _J2K_STYLES[marker]
            precincts = data[at + levels + 5 : at + 2 + length] if data[at + style] & 1 else b""
            for level, sides in enumerate(reversed(precincts)):
                across, down = ((side >> level >> n) + 1 for side, n in ((width, sides & 15), (height, sides >> 4)))
                claimed.append(across * down)
        if length < 2 or max(claimed) > 1000 + width * height // 1024:
            raise ImageError("the image is damaged, or a JPEG 2000 of tiles or precincts below 32 x 32 pixels")
        at += 2 + length
    if at > len(data) or len(tiles) != claimed[0]:  # OpenJPEG would leave the rest black
        raise ImageError("the image is truncated or damaged")
    return width, height
