"""Image files of every kind, and bytes that are none."""

import io
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
import tifffile
from conftest import png
from PIL import Image

from unet import headers
from unet import png as png_files
from unet.images import ImageError, ImageTooLargeError, count_pixels, decode, encode_png, encode_tiff

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)


def pil(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_come_back_exactly(suffix: str, image: np.ndarray) -> None:
    (page,) = decode(png(image, suffix))
    np.testing.assert_array_equal(page, image)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_sixteen_bits_stay_sixteen(suffix: str, image: np.ndarray) -> None:
    (page,) = decode(png(image.astype(np.uint16) * 257, suffix))
    np.testing.assert_array_equal(page, image.astype(np.uint16) * 257)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    smooth = cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC)
    (page,) = decode(pil(Image.fromarray(smooth), kind, quality=95))
    assert np.abs(page.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY > 100), np.where(GREY > 100, 255, 0)),
        (Image.fromarray(RGB).convert("RGBA"), RGB),
        (Image.fromarray(GREY).convert("LA"), np.repeat(GREY[..., None], 3, 2)),
    ],
    ids=["1-bit", "alpha", "grey with alpha"],
)
def test_other_png_kinds(image: Image.Image, expected: np.ndarray) -> None:
    (page,) = decode(pil(image, "PNG"))
    np.testing.assert_array_equal(page, expected)


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray((GREY > 100).astype(np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    (page,) = decode(pil(image, "PNG"))
    assert {tuple(int(v) for v in colour) for colour in page.reshape(-1, 3)} == {(10, 20, 30), (200, 100, 50)}


def test_float_tiff() -> None:
    (page,) = decode(pil(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"))
    assert page.dtype == np.float32
    np.testing.assert_allclose(page, GREY / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned a quarter clockwise
    (page,) = decode(pil(Image.fromarray(GREY), kind, exif=exif))
    assert page.shape == (12, 10)
    assert np.abs(page.astype(int) - np.rot90(GREY, -1)).max() < 12


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_planes_are_put_together_or_refused(dtype: type) -> None:
    """Of more than 8 bits, OpenCV writes the first into a third of its picture; the rest is of other people's."""
    planes, file = np.stack([np.full((20, 30), i, dtype) for i in (1, 2, 3)]), io.BytesIO()
    tifffile.imwrite(file, planes, photometric="rgb", planarconfig="separate")
    if dtype == np.uint8:
        np.testing.assert_array_equal(decode(file.getvalue())[0], planes.transpose(1, 2, 0))
    else:
        with pytest.raises(ImageError, match="colours of a pixel together, found planes"):
            decode(file.getvalue())


def test_tiles_that_would_be_turned_where_they_lie_are_refused(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (300, 500), dtype=np.uint8)
    for orientation in range(1, 9):
        file = io.BytesIO()
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(file, image, tile=(256, 256), photometric="minisblack", extratags=[tag])
        if orientation in (2, 3, 6, 7):
            with pytest.raises(ImageError, match="tiles to be turned"):
                decode(file.getvalue())
        else:
            expected = {1: image, 4: image[::-1], 5: image.T, 8: np.rot90(image)}[orientation]
            np.testing.assert_array_equal(decode(file.getvalue())[0], expected)


def test_what_would_lose_its_bits_or_be_a_negative_is_refused() -> None:
    for samples, photometric, said in ((2, "minisblack", "samples a pixel, found 2"), (1, "miniswhite", "0 as white")):
        file = io.BytesIO()
        picture = np.repeat((GREY.astype(np.uint16) * 257)[..., None], samples, 2).squeeze()
        tifffile.imwrite(file, picture, photometric=photometric, planarconfig="contig")
        with pytest.raises(ImageError, match=f"TIFF of 16 bits .*{said}"):
            decode(file.getvalue())


def test_a_bmp_of_os2_is_refused() -> None:
    """OpenCV makes grey of its colours."""
    header = struct.pack("<IHHHH", 12, 1, 1, 1, 24)
    with pytest.raises(ImageError, match="header of 40 bytes or more, found OS/2's of 12"):
        decode(b"BM" + struct.pack("<IHHI", 30, 0, 0, 26) + header + bytes(4))


@pytest.mark.parametrize(("masks", "right"), [((0xFF0000, 0xFF00, 0xFF), True), ((0xFF, 0xFF00, 0xFF0000), False)])
def test_a_bmp_whose_colours_lie_elsewhere_is_refused(masks: tuple[int, ...], right: bool) -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + struct.pack("<III", *masks)
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(header) + 4, 0, 0, 14 + len(header)) + header + bytes([1, 2, 3, 0])
    if right:
        assert decode(bmp)[0].tolist() == [[[3, 2, 1]]]
    else:
        with pytest.raises(ImageError, match="blue, green, red"):
            decode(bmp)


def test_all_pages_of_a_tiff() -> None:
    pages = [GREY, GREY + 1, GREY + 2]
    decoded = decode(encode_tiff(pages))
    np.testing.assert_array_equal(decoded, pages)


def test_encoding() -> None:
    for image in (GREY, RGB, GREY.astype(np.uint16) * 200):
        np.testing.assert_array_equal(decode(encode_png(image))[0], image)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(20), b"GIF89a" + bytes(50)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"expected an image|truncated|no page"):
        decode(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_a_truncated_file_is_refused_or_read_but_never_crashes(suffix: str) -> None:
    whole = png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8), suffix)
    for end in range(0, len(whole), 10):
        try:
            (page,) = decode(whole[:end])
        except ImageError:
            continue
        assert page.shape == (64, 64)
        assert end > 0.9 * len(whole)  # some formats end with what is no part of the picture


def test_limits_at_and_above() -> None:
    assert count_pixels(png(GREY), max_pixels=120, max_pages=1) == 120
    with pytest.raises(ImageTooLargeError, match="at most 119 pixels, found 12 x 10"):
        count_pixels(png(GREY), max_pixels=119, max_pages=1)
    two = encode_tiff([GREY, GREY])
    assert count_pixels(two, max_pixels=240, max_pages=2) == 240
    with pytest.raises(ImageTooLargeError, match="at most 1 pages, found more"):
        count_pixels(two, max_pixels=240, max_pages=1)
    with pytest.raises(ImageTooLargeError, match="239 pixels"):
        count_pixels(two, max_pixels=239, max_pages=2)


def test_an_animation_is_its_first_picture() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for kind in ("PNG", "WEBP"):
        (page,) = decode(pil(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
        np.testing.assert_array_equal(page, RGB)


def test_cmyk_jpeg() -> None:
    smooth = Image.fromarray(cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC))
    (page,) = decode(pil(smooth.convert("CMYK"), "JPEG", quality=95))
    assert page.shape == (100, 120, 3)
    assert np.abs(page.astype(int) - np.asarray(smooth)).mean() < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_thin_images(suffix: str, size: tuple[int, int]) -> None:
    (page,) = decode(png(np.full(size, 77, np.uint8), suffix))
    assert page.shape[:2] == size
    assert (page == 77).all()


def test_two_files_in_one_are_the_first() -> None:
    for first in (".png", ".jpg", ".bmp", ".webp"):
        for second in (".png", ".jpg", ".tif"):
            (page,) = decode(png(GREY, first) + png(RGB[:5], second))
            assert page.shape[:2] == GREY.shape
    with pytest.raises(ImageError, match="expected an image"):
        decode(b"<script>alert(1)</script>" + png(GREY))


# what headers claim


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
