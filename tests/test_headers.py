"""What a file's headers claim is believed before anything is decoded, or refused."""

import pickle
import re
import struct
import subprocess
import sys
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import GREY, RGB, pil, png
from PIL import Image

from unet import headers
from unet import png as png_files
from unet.images import ImageError, ImageTooLargeError, count_pixels, decode


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG of 50 KB at most, whatever it claims: black, as far as it goes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(min(height * (width + 1), 40 * 2**20)), 9))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, rows, chunk(b"IEND", b"")])


def tiff_claiming(*directory: tuple[int, int, int, int], n_pages: int = 1, data: bytes = b"") -> bytes:
    """A TIFF whose pages all say this: (tag, type, count, value)."""
    start = 8 + len(data)
    entries = b"".join(struct.pack("<HHII", *entry) for entry in sorted(directory))
    size = 6 + len(entries)
    pages = [
        struct.pack("<H", len(directory)) + entries + struct.pack("<I", start + (i + 1) * size) for i in range(n_pages)
    ]
    pages[-1] = pages[-1][:-4] + bytes(4)
    return struct.pack("<2sHI", b"II", 42, start) + data + b"".join(pages)


WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ROWS, COUNTS = 256, 257, 258, 259, 262, 273, 278, 279
TILE_WIDTH, TILE_HEIGHT = 322, 323


def tiff_of(width: int, height: int) -> list[tuple[int, int, int, int]]:
    return [(WIDTH, 4, 1, width), (HEIGHT, 4, 1, height), (BITS, 3, 1, 8), (PHOTOMETRIC, 3, 1, 1)]


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


HUGE = {
    "png": png_claiming(60000, 60000),
    "jpeg": jpeg_claiming(60000, 60000),
    "tiff": tiff_claiming(*tiff_of(60000, 60000)),
    "tiff with a tile": tiff_claiming(*tiff_of(9, 9), (TILE_WIDTH, 4, 1, 16384), (TILE_HEIGHT, 4, 1, 16384)),
    "tiff of many pages": tiff_claiming(*tiff_of(4000, 4000), n_pages=10),
    "bmp": bmp_claiming(60000, 60000),
    "bmp upside down": bmp_claiming(60000, -60000),
    "webp": webp_claiming(16000, 16000),
}
STRANGE = {
    "a PNG's chunk of 4 GB": (png(GREY)[:33] + b"\xff\xff\xff\xf0tEXt" + png(GREY)[33:], "truncated"),
    "two PNG headers": (
        png_claiming(60, 60, chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0))),
        "begins with its one header",
    ),
    "two JPEG sizes": (jpeg_claiming(9, 9)[:-2] + jpeg_claiming(600, 600)[2:], "one size"),
    "two TIFF widths": (tiff_claiming(*tiff_of(600, 600), (WIDTH, 4, 1, 9)), "twice what its tag 256"),
    "two TIFF heights": (tiff_claiming(*tiff_of(9, 9), (HEIGHT, 3, 1, 600)), "twice what its tag 257"),
    "a TIFF width of text": (tiff_claiming(*tiff_of(9, 9)[1:], (WIDTH, 2, 1, 9)), "a number as the TIFF's tag 256"),
    "two widths in one": (tiff_claiming(*tiff_of(9, 9)[1:], (WIDTH, 3, 2, 9)), "a number as the TIFF's tag 256"),
    "small tiles": (
        tiff_claiming(*tiff_of(4000, 4000), (TILE_WIDTH, 3, 1, 1), (TILE_HEIGHT, 3, 1, 1)),
        "multiples of 16",
    ),
    "an old compression": (tiff_claiming(*tiff_of(9, 9), (COMPRESSION, 3, 1, 6)), "found 6"),
    "too few colours": (
        tiff_claiming(*tiff_of(9, 9)[:2], (BITS, 3, 1, 16), (PHOTOMETRIC, 3, 1, 2)),
        "fewer than three samples",
    ),
    "a loop of pages": (tiff_claiming(*tiff_of(9, 9))[:-4] + struct.pack("<I", 8), "no end"),
    "strips without end": (tiff_claiming(*tiff_of(9, 9), (279, 1, 2**20 + 1, 0)) + bytes(2**20 + 1), "strips or tiles"),
    "no pixels": (tiff_claiming(*tiff_of(0, 9)), "found 0 x 9"),
    "no pixels in a PNG": (png_claiming(0, 9), "found 0 x 9"),
    "a side that no answer can have": (png_claiming(1_000_001, 1), "sides of at most 1000000 pixels"),
    "no pixels in a BMP": (bmp_claiming(0, 0), "found 0 x 0"),
    "less than no pixels in a BMP": (bmp_claiming(-9, 9), "width is negative"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_bomb_is_refused_by_its_header(kind: str) -> None:
    assert len(HUGE[kind]) < 50_000
    with pytest.raises(ImageTooLargeError, match="at most 16777216 pixels"):
        count_pixels(HUGE[kind], max_pixels=2**24, max_pages=64)


@pytest.mark.parametrize("kind", STRANGE)
def test_what_two_readers_could_understand_differently_is_refused(kind: str) -> None:
    data, said = STRANGE[kind]
    with pytest.raises(ImageError, match=said):
        count_pixels(data, max_pixels=2**24, max_pages=64)


def test_what_is_refused_takes_no_memory() -> None:
    """In a process of its own, whose memory is limited to what it has after its first picture, and a little."""
    code = """if True:
        import pickle, resource, sys
        import numpy as np
        from unet.images import ImageError, count_pixels, decode, encode_png

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

        files = pickle.load(sys.stdin.buffer)
        decode(encode_png(np.zeros((99, 99), np.uint8)))
        before = peak()
        for data in files:
            try:
                count_pixels(data, max_pixels=2**24, max_pages=64)
            except ImageError:
                continue
            sys.exit("read")
        print(peak() - before)
    """
    files = pickle.dumps([*HUGE.values(), *(data for data, _ in STRANGE.values())])
    ended = subprocess.run([sys.executable, "-c", code], input=files, capture_output=True, check=True)
    assert int(ended.stdout) < 4096


def test_pages_without_end_are_not_counted_to_their_end() -> None:
    endless = tiff_claiming(*tiff_of(1, 1), n_pages=300_000)
    with pytest.raises(ImageTooLargeError, match="at most 64 pages, found more"):
        count_pixels(endless, max_pixels=2**24, max_pages=64)


def scans(n: int) -> bytes:
    """A progressive JPEG with one of its scans n times more."""
    data = pil(Image.fromarray(RGB), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff", start + 2)
    while data[end + 1] == 0:
        end = data.index(b"\xff", end + 2)
    return data[:start] + data[start:end] * n + data[start:]


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_a_jpeg_is_searched_in_steps(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A marker may lie on both sides of where two of them meet."""
    data = pil(Image.fromarray(RGB), "JPEG", progressive=True)
    expected = list(headers.pages(data))
    monkeypatch.setattr(headers, "SEARCH", step)
    assert list(headers.pages(data)) == expected
    monkeypatch.setattr(headers, "MAX_SCANS", len(re.findall(rb"\xff\xda", data)))
    assert list(headers.pages(data)) == expected
    monkeypatch.setattr(headers, "MAX_SCANS", headers.MAX_SCANS - 1)
    with pytest.raises(headers.HeaderError, match="scans"):
        list(headers.pages(data))


def test_a_jpeg_of_many_scans_is_refused_before_it_takes_hours() -> None:
    n_scans = scans(0).count(b"\xff\xda")
    assert decode(scans(headers.MAX_SCANS - n_scans))
    with pytest.raises(ImageError, match="at most 100 scans"):
        decode(scans(headers.MAX_SCANS - n_scans + 1))


def test_a_png_of_many_chunks_is_refused_before_it_takes_seconds() -> None:
    with_others = [png_claiming(9, 9, *[chunk(b"teSt", b"")] * (headers.MAX_CHUNKS - n)) for n in (3, 2)]
    assert decode(with_others[0])
    with pytest.raises(ImageError, match="at most 100000 chunks"):
        decode(with_others[1])


def test_a_tiff_of_many_tags_is_refused() -> None:
    def with_others(n_tags: int) -> bytes:
        needed = tiff_of(9, 9)
        return tiff_claiming(*needed, *((40_000 + i, 3, 1, 0) for i in range(n_tags - len(needed))))

    assert count_pixels(with_others(headers.MAX_TAGS), max_pixels=99, max_pages=1) == 81
    with pytest.raises(ImageError, match="damaged"):
        count_pixels(with_others(headers.MAX_TAGS + 1), max_pixels=99, max_pages=1)


def test_strips_that_overlap_are_refused() -> None:
    """Each would be read again, from the same megabyte."""
    pixels = bytes(range(200))
    strips = struct.pack("<4I", 8, 8, 8, 8), struct.pack("<4I", 160, 160, 160, 160)
    places = [(OFFSETS, 4, 4, 8 + len(pixels)), (COUNTS, 4, 4, 8 + len(pixels) + 16), (ROWS, 3, 1, 10)]
    with pytest.raises(ImageError, match="overlap"):
        decode(tiff_claiming(*tiff_of(16, 40), *places, data=pixels + b"".join(strips)))


def test_text_profiles_and_other_frames_do_not_reach_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(30 * 2**20), 9)
    extra = [chunk(b"zTXt", b"x\0\0" + bomb), chunk(b"iCCP", b"x\0\0" + bomb), chunk(b"acTL", struct.pack(">II", 9, 0))]
    data = png_claiming(20, 20, *extra)
    assert headers.bare(data) == png_claiming(20, 20)
    given: list[bytes] = []

    def note(file: Any, *_: object) -> None:
        given.append(bytes(file))

    monkeypatch.setattr(png_files, "decoded", note)  # which leaves it to the next
    monkeypatch.setattr(cv2, "imdecode", note)
    with pytest.raises(ImageError):
        decode(data)
    assert given == 2 * [png_claiming(20, 20)]


def test_a_chunk_that_is_said_again_fills_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    """libpng writes a line for each: 2.9 MB for a file of 1.6."""
    again = 1000 * [chunk(b"tRNS", bytes(2))]
    assert decode(png_claiming(9, 9, *again))[0].shape == (9, 9)
    assert capfd.readouterr().err == ""


def test_pixels_in_several_chunks_are_all_kept() -> None:
    """Of a palette, which is read by OpenCV: most writers begin a new chunk every 8 to 64 KiB."""
    picture = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    palette = Image.fromarray(picture, "P")
    palette.putpalette([value for grey in range(256) for value in 3 * (grey,)])
    file = pil(palette, "PNG")
    assert file.count(b"IDAT") > 1
    np.testing.assert_array_equal(decode(file)[0][..., 0], picture)
