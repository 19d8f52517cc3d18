"""PNG files whose compression is not left to OpenCV: the pixels are the same, and what is damaged is left as it is."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from unet import png
from unet.images import ImageError, decode
from unet.png import encode_flat, inflated

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 4), dtype=np.uint8)
KINDS = {
    "1-bit": Image.fromarray(NOISE[..., 0] > 100),
    "grey": Image.fromarray(NOISE[..., 0]),
    "16-bit": Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257),
    "palette": Image.fromarray(NOISE[..., :3]).quantize(13),
    "grey with alpha": Image.fromarray(NOISE[..., 0]).convert("LA"),
    "rgb": Image.fromarray(NOISE[..., :3]),
    "alpha": Image.fromarray(NOISE),
}


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def grey(*idat: bytes, interlaced: int = 0) -> bytes:
    """A file of 3 x 2 grey pixels, in these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, interlaced))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *idat, chunk(b"IEND", b"")])


ROWS = bytes([0, 10, 20, 30, 2, 1, 1, 1])  # the second row as differences to the one above
PACKED = zlib.compress(ROWS)
PIXELS = [[10, 20, 30], [11, 21, 31]]


@pytest.mark.parametrize("kind", KINDS)
def test_inflated_it_is_the_same_picture(kind: str) -> None:
    image = KINDS[kind]
    data = saved(image)
    stored = inflated(data)
    assert stored != data
    with Image.open(io.BytesIO(stored)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED),
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
    )


def test_by_hand() -> None:
    for data in (grey(chunk(b"IDAT", PACKED)), grey(*(chunk(b"IDAT", PACKED[i : i + 5]) for i in range(0, 20, 5)))):
        stored = inflated(data)
        assert ROWS in stored
        assert stored.count(b"IDAT") == 1
        np.testing.assert_array_equal(decode(data)[0], PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a",
        grey(chunk(b"IDAT", PACKED), interlaced=1),
        grey(chunk(b"IDAT", PACKED[:8]), chunk(b"tEXt", b"between"), chunk(b"IDAT", PACKED[8:])),
        grey(chunk(b"IDAT", PACKED).replace(PACKED, PACKED[:-6] + b"??" + PACKED[-4:])),  # its checksum is wrong
        grey(chunk(b"IDAT", PACKED[:-4] + b"0000")),  # that of the pixels is
        grey(chunk(b"IDAT", PACKED[:-4])),
        grey(chunk(b"IDAT", PACKED[:6])),
        grey(chunk(b"IDAT", b"no deflate stream")),
        grey(chunk(b"IDAT", zlib.compress(ROWS[:-1]))),
        grey(chunk(b"IDAT", zlib.compress(ROWS + b"0"))),
        grey(chunk(b"IDAT", zlib.compress(bytes(2**24)))),
        grey(),
    ],
    ids=[
        *("not a png", "interlaced", "not in one piece", "crc", "adler", "no end", "truncated", "no deflate"),
        *("too few rows", "too many rows", "bomb", "no pixels"),
    ],
)
def test_what_is_unusual_or_damaged_is_left_as_it_is(data: bytes) -> None:
    assert inflated(data) is data


def test_what_is_damaged_is_refused_as_ever() -> None:
    for idat in (PACKED[:6], b"no deflate stream"):
        with pytest.raises(ImageError):
            decode(grey(chunk(b"IDAT", idat)))


def test_large_pictures_are_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(KINDS["rgb"])
    monkeypatch.setattr(png, "LARGEST", 37 * (1 + 3 * 53))
    assert inflated(data) is not data
    monkeypatch.setattr(png, "LARGEST", 37 * (1 + 3 * 53) - 1)
    assert inflated(data) is data


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (300, 200)])
def test_a_flat_png_holds_the_same_values_in_less_than_a_bit_per_pixel(shape: tuple[int, int]) -> None:
    blob = cv2.circle(np.zeros((300, 200), np.uint8), (90, 140), 60, 255, -1)
    for mask in (blob[: shape[0], : shape[1]], blob[-shape[0] :, -shape[1] :] + 7):
        data = encode_flat(mask)
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "L"  # eight bits, whatever reads it
            np.testing.assert_array_equal(np.asarray(image), mask)
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), mask)
    assert len(encode_flat(blob)) < blob.size / 8
