"""Hostile files: refused by their headers, before memory or time is spent on what they claim."""

import pickle
import struct
import subprocess
import sys
import time
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
from conftest import GREY, RGB, pil, png
from PIL import Image

from unet.imaging import ImageError, ImageTooLargeError, Limits, headers, measure, read
from unet.imaging.reader import RasterImage

LIMITS = Limits(max_bytes=2**26, max_pixels=2**24, max_pages=64)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG of at most 50 KB, whatever it claims: black, as far as it goes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(min(height * (width + 1), 40 * 2**20)), 9))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, rows, chunk(b"IEND", b"")])


Tag = tuple[int, int, int, int]
"""(tag, type, count, value)"""


def tiff_claiming(*directory: Tag, n_pages: int = 1, data: bytes = b"") -> bytes:
    """A TIFF whose pages all have this directory; `data` begins at byte 8."""
    start = 8 + len(data)
    entries = b"".join(struct.pack("<HHII", *entry) for entry in sorted(directory))
    size = 6 + len(entries)
    pages = [
        struct.pack("<H", len(directory)) + entries + struct.pack("<I", start + (i + 1) * size) for i in range(n_pages)
    ]
    pages[-1] = pages[-1][:-4] + bytes(4)
    return struct.pack("<2sHI", b"II", 42, start) + data + b"".join(pages)


WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, TEXT = 256, 257, 258, 259, 262, 270
OFFSETS, SAMPLES, ROWS, COUNTS = 273, 277, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
LONG, DEFLATE = 4, 8


def grey(width: int, height: int) -> list[Tag]:
    """Tags of an 8-bit grey page."""
    return [(WIDTH, LONG, 1, width), (HEIGHT, LONG, 1, height), (BITS, 3, 1, 8), (PHOTOMETRIC, 3, 1, 1)]


def strip(size: int, rows: int) -> list[Tag]:
    """Tags of a single strip at byte 8."""
    return [(OFFSETS, LONG, 1, 8), (ROWS, LONG, 1, rows), (COUNTS, LONG, 1, size)]


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(png(GREY, ".jpg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_claiming(width: int, height: int) -> bytes:
    data = bytearray(png(GREY, ".bmp"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + sizes + png(GREY, ".webp")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_claiming(width: int, height: int) -> bytes:
    data = bytearray(pil(Image.fromarray(GREY), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def j2k(**claims: int) -> bytes:
    """A JPEG 2000 codestream with other numbers in its SIZ segment."""
    data = bytearray(pil(Image.fromarray(GREY), "JPEG2000", no_jp2=True))
    places = {"width": 8, "height": 12, "tile_width": 24, "tile_height": 28}
    for name, value in claims.items():
        data[places[name] : places[name] + 4] = value.to_bytes(4)
    return bytes(data)


PLAIN_STYLE = bytes.fromhex("ff52 000c 00 00 0001 00 03 04 04 00 01")
"""Coding style of such a codestream: three levels, no precincts."""


def jp2(codestream: bytes) -> bytes:
    """Boxes around a codestream, with a smaller one where only a search would find it."""
    boxes = pil(Image.fromarray(GREY), "JPEG2000")
    at = boxes.index(b"jp2c") - 4
    decoy = b"jp2c" + boxes[at + 8 :]
    free = struct.pack(">I", 8 + len(decoy)) + b"free" + decoy
    return boxes[:at] + free + struct.pack(">I", 8 + len(codestream)) + b"jp2c" + codestream


SOF_600 = b"\xff\xc0" + struct.pack(">HBHHBBBB", 11, 8, 600, 600, 1, 1, 0x11, 0)
HUGE = {
    "png": png_claiming(60000, 60000),
    "jpeg": jpeg_claiming(60000, 60000),
    "tiff": tiff_claiming(*grey(60000, 60000), *strip(4, 60000)),
    "tiff with a tile": tiff_claiming(
        *grey(9, 9),
        *[(TILE_WIDTH, LONG, 1, 16384), (TILE_HEIGHT, LONG, 1, 16384)],
        *[(TILE_OFFSETS, LONG, 1, 8), (TILE_COUNTS, LONG, 1, 4), (COMPRESSION, 3, 1, DEFLATE)],
    ),
    "tiff of many pages": tiff_claiming(*grey(4000, 4000), *strip(4, 4000), n_pages=10),
    "tiff of many samples": tiff_claiming(*grey(4000, 4000), *strip(4, 4000), (SAMPLES, 3, 1, 65535)),
    "bmp": bmp_claiming(60000, 60000),
    "bmp from top to bottom": bmp_claiming(60000, -60000),
    "webp": webp_claiming(16000, 16000),
    "gif": gif_claiming(60000, 60000),
    "j2k": j2k(width=60000, height=60000, tile_width=60000, tile_height=60000),
    "jp2": jp2(j2k(width=60000, height=60000, tile_width=60000, tile_height=60000)),
}
STRANGE = {
    "a PNG chunk of 4 GB": (png(GREY)[:33] + b"\xff\xff\xff\xf0tEXt" + png(GREY)[33:], "truncated"),
    "two JPEG sizes": (png(GREY, ".jpg").replace(b"\xff\xc0", SOF_600 + b"\xff\xc0", 1), "damaged"),
    "a TIFF width of text": (tiff_claiming(*grey(9, 9)[1:], (WIDTH, 2, 1, 9)), "damaged"),
    "offsets of text": (tiff_claiming(*grey(9, 9), (OFFSETS, 2, 2, 0x3131), (COUNTS, LONG, 1, 81)), "damaged"),
    "two widths in one": (tiff_claiming(*grey(9, 9)[1:], (WIDTH, 3, 2, 9)), "damaged"),
    "tiles of a pixel": (
        tiff_claiming(
            *grey(200, 200),
            *[(TILE_WIDTH, 3, 1, 1), (TILE_HEIGHT, 3, 1, 1), (COMPRESSION, 3, 1, DEFLATE)],
            *[(TILE_OFFSETS, LONG, 40000, 8), (TILE_COUNTS, LONG, 40000, 8)],
            data=bytes(160_000),
        ),
        "64 pixels or more",
    ),
    "a strip of many": (tiff_claiming(*grey(9, 9), *strip(9, 1), (COMPRESSION, 3, 1, DEFLATE)), "expected 9 strips"),
    "too few colours": (
        tiff_claiming(*grey(9, 9)[:3], (PHOTOMETRIC, 3, 1, 2), *strip(81, 9), data=bytes(81)),
        "found 1 x RGB",
    ),
    "a loop of pages": (tiff_claiming(*grey(9, 9))[:-4] + struct.pack("<I", 8), "loop"),
    "pages that overlap": (tiff_claiming(*grey(9, 9))[:-4] + struct.pack("<I", 10) + bytes(4000), "overlap"),
    "many tags": (tiff_claiming(*grey(9, 9), *[(40_000, 3, 1, 0)] * 4093), "at most 4096 tags, found 4097"),
    "neither planes nor pixels": (tiff_claiming(*grey(9, 9), *strip(81, 9), (284, 3, 1, 0), data=bytes(81)), "damaged"),
    "strips without end": (
        tiff_claiming(*grey(9, 9), (COUNTS, 1, 2**20 + 1, 8), data=bytes(2**20 + 1)),
        "more than the file",
    ),
    "text without end": (
        tiff_claiming(*grey(9, 9), *strip(4, 9), (TEXT, 2, 999, 8), n_pages=9, data=bytes(999)),
        "more",
    ),
    "no pixels": (tiff_claiming(*grey(0, 9), *strip(4, 9)), "found 0 x 9"),
    "no pixels in a PNG": (png_claiming(0, 9), "found 0 x 9|damaged"),
    "a side that no answer can have": (png_claiming(1_000_001, 1), "sides of at most 1000000 pixels"),
    "no pixels in a BMP": (bmp_claiming(0, 0), "found 0 x 0|damaged"),
    "many tiles": (
        j2k(width=4000, height=4000, tile_width=1, tile_height=1),
        "tiles or precincts below",
    ),
    "tiles of no pixels": (j2k(tile_width=0), "damaged"),
    "a JPEG 2000 of no pixels": (j2k(width=0), "damaged"),
    "a JP2 without end": (jp2(j2k())[:60], "damaged"),
    "a JPEG 2000 that lost its end": (j2k()[:-9], "truncated"),
    "a JPEG 2000 that lost tiles": (j2k(width=99), "truncated"),
    "precincts of a pixel": (
        j2k(width=4000, height=4000, tile_width=4000, tile_height=4000).replace(
            PLAIN_STYLE, b"\xff\x52" + struct.pack(">HB", 16, 1) + PLAIN_STYLE[5:] + bytes(4)
        ),
        "tiles or precincts below",
    ),
    "a negative width in a BMP": (bmp_claiming(-9, 9), "expected|damaged"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_bomb_is_refused_by_its_header(kind: str) -> None:
    assert len(HUGE[kind]) < 50_000
    with pytest.raises(ImageTooLargeError, match="at most 16777216 pixels"):
        measure(HUGE[kind], LIMITS)


@pytest.mark.parametrize("kind", STRANGE)
def test_damaged_headers_are_refused(kind: str) -> None:
    data, said = STRANGE[kind]
    with pytest.raises(ImageError, match=said):
        measure(data, LIMITS)


def test_refused_files_take_no_memory() -> None:
    code = """if True:
        import pickle, resource, sys
        import numpy as np
        from unet.imaging import ImageError, Limits, measure, read, write_png, write_tiff

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

        files = pickle.load(sys.stdin.buffer)
        for write in write_png, lambda image: write_tiff([image, image]):
            read(write(np.zeros((99, 99), np.uint8)))
        before = peak()
        for data in files:
            try:
                measure(data, Limits(2**26, 2**24, 64))
            except ImageError:
                continue
            sys.exit("read")
        print(peak() - before)
    """
    files = pickle.dumps([*HUGE.values(), *(data for data, _ in STRANGE.values())])
    ended = subprocess.run([sys.executable, "-c", code], input=files, capture_output=True, check=True)
    assert int(ended.stdout) < 6144


def test_pages_without_end_are_not_counted_to_their_end() -> None:
    endless = tiff_claiming(*grey(1, 1), n_pages=300_000)
    with pytest.raises(ImageTooLargeError, match="at most 64 pages"):
        measure(endless, LIMITS)


@pytest.mark.parametrize("compression", ["jpeg", "webp"])
def test_a_strip_that_states_another_size_than_its_page(compression: str) -> None:
    """The decoder would allocate for the strip's size."""
    image = np.zeros((64, 64, 3), np.uint8)
    inner = png(image, f".{compression}")
    if compression == "jpeg":
        at = inner.index(b"\xff\xc0")
        inner = inner[: at + 5] + struct.pack(">HH", 60000, 60000) + inner[at + 9 :]
    else:
        inner = webp_claiming(16000, 16000)
    tags = [(WIDTH, LONG, 1, 64), (HEIGHT, LONG, 1, 64), (SAMPLES, 3, 1, 3), (PHOTOMETRIC, 3, 1, 2), (BITS, 3, 1, 8)]
    kind = (COMPRESSION, 3, 1, {"jpeg": 7, "webp": 50001}[compression])
    data = tiff_claiming(*tags, kind, *strip(len(inner), 64), data=inner)
    assert measure(data, LIMITS) == 64 * 64
    with pytest.raises(ImageError, match=r"tiles of \(64, 64\) pixels, found one that says"):
        read(data, LIMITS)


def test_jpeg_tables_that_hold_an_image_are_refused() -> None:
    inner = jpeg_claiming(60000, 60000)
    tables = (347, 7, len(inner), 8)
    data = tiff_claiming(*grey(12, 10), (COMPRESSION, 3, 1, 7), tables, *strip(len(inner), 10), data=inner)
    with pytest.raises(ImageError, match=r"tiles of \(12, 10\) pixels, found one that says"):
        read(data, LIMITS)


def test_a_strip_is_never_decoded_into_more_than_its_page() -> None:
    bomb = zlib.compress(bytes(50 * 2**20), 9)
    data = tiff_claiming(*grey(64, 64), (COMPRESSION, 3, 1, DEFLATE), *strip(len(bomb), 64), data=bomb)
    with pytest.raises(ImageError, match="damaged"):
        read(data, LIMITS)


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="I"><Pixels ID="P" Type="uint8" '
    'DimensionOrder="XYZCT" SizeX="9" SizeY="9" SizeZ="1" SizeC="1" SizeT="1000000000">'
    '<TiffData IFD="0" PlaneCount="1000000000"/></Pixels></Image></OME>'
)


@pytest.mark.parametrize(
    "text",
    [
        OME,
        "ImageJ=1.53\n" + "a=b\n" * 2**20,
        '{"shape": [1000000000, 9, 9]}',
        '{"shape": [' + "1, " * 10**6 + "9, 9]}",
        '{"shape": ' + "[" * 10**5,
    ],
    ids=["OME", "ImageJ", "shape", "dimensions", "depth"],
)
def test_descriptions_that_claim_more_than_there_is_cost_nothing(text: str) -> None:
    body = text.encode() + bytes(1)
    place = [(OFFSETS, LONG, 1, 8 + len(body)), (ROWS, LONG, 1, 9), (COUNTS, LONG, 1, 81)]
    data = tiff_claiming(*grey(9, 9), (TEXT, 2, len(body), 8), *place, data=body + bytes(81))
    started = time.perf_counter()
    assert [page.shape for page in read(data, LIMITS).pages] == [(9, 9)]
    assert time.perf_counter() - started < 1


def scans(n: int) -> bytes:
    """A progressive JPEG with one of its scans n times more."""
    data = pil(Image.fromarray(RGB), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff", start + 2)
    while data[end + 1] == 0:
        end = data.index(b"\xff", end + 2)
    return data[:start] + data[start:end] * n + data[start:]


def test_fill_bytes_between_the_segments_of_a_jpeg() -> None:
    plain = png(RGB, ".jpg")
    at = plain.index(b"\xff\xdb")
    filled = plain[:at] + b"\xff\xff\xff" + plain[at:]
    assert headers.jpeg_size(filled, fill=True) == (12, 10)
    np.testing.assert_array_equal(read(filled).pixels, read(plain).pixels)
    with pytest.raises(ImageError):
        headers.jpeg_size(filled)


def test_jpegs_that_would_reach_the_lossless_decoder_of_imagecodecs_are_refused() -> None:
    """It reads beyond its input if Huffman tables are longer than their segment."""
    data = png(RGB, ".jpg")
    at = data.index(b"\xff\xc4") + 5
    for damaged in (data[:at] + bytes(15) + b"\xff" + data[at + 16 :], data.replace(b"\xff\xc0", b"\xff\xc3", 1)):
        with pytest.raises(ImageError, match="damaged, or a lossless JPEG"):
            headers.jpeg_size(damaged)


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", webp_claiming(9, 9).replace(b"WEBP", b"WAVE"), b"RIFF0000WEBPALPH" + bytes(20)]
)
def test_the_size_of_a_damaged_webp(data: bytes) -> None:
    with pytest.raises(ImageError, match="damaged"):
        headers.webp_size(data)


@pytest.mark.parametrize("size", [(300, 200), (8, 8), (2000, 1500)])
def test_usual_tiles_and_precincts_of_a_jpeg_2000(size: tuple[int, int]) -> None:
    image = Image.fromarray(cv2.resize(RGB, size))
    for options in ({}, {"precinct_size": (64, 64)}, {"tile_size": (128, 128)}, {"num_resolutions": 3}):
        data = pil(image, "JPEG2000", **options)
        assert measure(data) == size[0] * size[1]
        np.testing.assert_array_equal(read(data).pixels, np.asarray(image))


def test_many_components_of_a_jpeg_2000_count_as_many_pixels() -> None:
    data = imagecodecs.jpeg2k_encode(np.zeros((20, 30, 9), np.uint8), codecformat="j2k")
    assert measure(data) == 3 * 600


def test_a_decoder_that_reads_another_size_than_the_header_is_refused() -> None:
    image = RasterImage(png(GREY))
    image.size = (9, 9)
    with pytest.raises(ImageError, match="damaged"):
        image.decode(as_stored=False)


def test_a_jpeg_of_many_scans_is_refused_before_it_takes_hours() -> None:
    n_scans = scans(0).count(b"\xff\xda")
    assert read(scans(headers.MAX_SCANS - n_scans))
    with pytest.raises(ImageError, match="at most 100 scans"):
        read(scans(headers.MAX_SCANS - n_scans + 1))


def test_a_png_of_many_chunks_is_refused_before_it_takes_seconds() -> None:
    with_others = [png_claiming(9, 9, *[chunk(b"teSt", b"")] * (headers.MAX_PARTS - n)) for n in (3, 2)]
    assert read(with_others[0])
    with pytest.raises(ImageError, match="at most 100000 chunks"):
        read(with_others[1])


def test_strips_that_overlap_are_refused() -> None:
    """Each would be read again, from the same megabyte."""
    pixels = bytes(range(200))
    strips = struct.pack("<4I", 8, 8, 8, 8), struct.pack("<4I", 200, 200, 200, 200)
    places = [(OFFSETS, LONG, 4, 8 + len(pixels)), (COUNTS, LONG, 4, 8 + len(pixels) + 16), (ROWS, 3, 1, 10)]
    with pytest.raises(ImageError, match="overlap"):
        read(tiff_claiming(*grey(16, 40), *places, data=pixels + b"".join(strips)))


def test_text_profiles_and_other_frames_do_not_reach_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(30 * 2**20), 9)
    extra = [chunk(b"zTXt", b"x\0\0" + bomb), chunk(b"iCCP", b"x\0\0" + bomb), chunk(b"acTL", struct.pack(">II", 9, 0))]
    again = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    given: list[bytes] = []
    monkeypatch.setattr(cv2, "imdecode", lambda file, _: given.append(bytes(file)))
    with pytest.raises(ImageError):
        read(png_claiming(20, 20, *extra, again))
    assert given == [png_claiming(20, 20)]


def test_tags_that_no_page_needs_do_not_reach_tifffile() -> None:
    others = [(40_000 + i, 3, 1, 0) for i in range(300)]
    needed = [*grey(9, 9), *strip(81, 9)]
    plain = headers.plain_tiff(tiff_claiming(*needed, *others, data=bytes(81)), None).getvalue()
    size = 2 + 12 * len(needed) + 4
    assert plain[: 8 + 81 + size] == tiff_claiming(*needed, data=bytes(81))


def test_the_first_of_repeated_tags_counts() -> None:
    assert measure(tiff_claiming(*grey(9, 9), (WIDTH, LONG, 1, 600), *strip(81, 9), data=bytes(81)), LIMITS) == 81


def test_a_repeated_chunk_writes_no_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """libpng writes one for each repetition: 2.9 MB for a file of 1.6."""
    again = 1000 * [chunk(b"tRNS", bytes(2))]
    assert read(png_claiming(9, 9, *again)).pixels.shape == (9, 9)
    assert capfd.readouterr().err == ""


def test_pixels_in_several_chunks_are_all_kept() -> None:
    """Most writers begin a new chunk every 8 to 64 KiB."""
    picture = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    file = pil(Image.fromarray(picture), "PNG")
    assert file.count(b"IDAT") > 1
    np.testing.assert_array_equal(read(file).pixels, picture)
