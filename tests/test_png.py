"""Decoding of the service's PNG answers on the page: the values that OpenCV reads, or what is wrong."""

# ruff: noqa: F811  (parameters are named like the imported fixtures)

import re
import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from conftest import png
from viewer_page import open_page  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from viewer_page import Open

pytestmark = pytest.mark.browser


def grey_png(rows: list[bytes], width: int, header: bytes = b"\x08\0\0\0\0", pieces: int = 1) -> bytes:
    """A PNG of filtered rows, its data in several chunks."""
    data = zlib.compress(b"".join(rows))
    step = -(-len(data) // pieces)
    chunks = [(b"IHDR", struct.pack(">II", width, len(rows)) + header), (b"tEXt", b"Software\0a test")]
    chunks += [(b"IDAT", data[i : i + step]) for i in range(0, len(data), step)]
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in [*chunks, (b"IEND", b"")]:
        file += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return file


def filtered(image: np.ndarray) -> list[bytes]:
    """Rows of a PNG with filter 0, 1, 2, 3, 4, 0, ..., from the definitions of the specification."""
    x = image.astype(int)
    a = np.pad(x, ((0, 0), (1, 0)))[:, :-1]  # left
    b = np.pad(x, ((1, 0), (0, 0)))[:-1]  # above
    c = np.pad(x, ((1, 0), (1, 0)))[:-1, :-1]
    pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
    predicted = [0 * x, a, b, (a + b) // 2, paeth]
    return [bytes([y % 5]) + ((x - predicted[y % 5])[y] % 256).astype(np.uint8).tobytes() for y in range(len(x))]


def test_png_values_are_those_of_opencv(open_page: "Open", rng: np.random.Generator) -> None:
    images = {}
    for width, height in ((1, 1), (3, 7), (64, 64), (101, 67)):
        noise = rng.integers(0, 256, (height, width), dtype=np.uint8)
        smooth = cv2.GaussianBlur(noise, (0, 0), 4)
        images[f"noise{width}"] = grey_png(filtered(noise), width)
        images[f"smooth{width}"] = grey_png(filtered(smooth), width, pieces=3)
        images[f"opencv{width}"] = png(smooth)
    page = open_page(10, 10, **images)
    script = "async (name) => { const v = await values(`${name}.png`); return [v.width, v.height, [...v.data]] }"
    for name, data in images.items():
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert page.evaluate(script, name) == [expected.shape[1], expected.shape[0], expected.ravel().tolist()], name


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"<html>", "expected a PNG file, got 6 bytes of another kind"),
        (
            png(np.zeros((4, 4, 3), np.uint8)),
            r"expected a PNG with 8-bit grey pixels .*, got bit depth 8, colour type 2",
        ),
        (png(np.zeros((4, 4), np.uint16)), r"expected .*, got bit depth 16, colour type 0, interlace 0"),
        (grey_png(filtered(np.zeros((4, 4), np.uint8)), 4)[:60], "the PNG is damaged or incomplete"),
        (grey_png(filtered(np.zeros((4, 4), np.uint8)), 5), "expected 4 rows of 5 pixels in the PNG, got 20 bytes"),
        (grey_png([b"\5abc"], 3), "the PNG is damaged: filter 5 in row 0"),
    ],
)
def test_other_files_are_refused(open_page: "Open", data: bytes, problem: str) -> None:
    page = open_page(10, 10, file=data)
    message = page.evaluate("values('file.png').then(() => '', (error) => error.message)")
    assert re.match(problem, message), message
