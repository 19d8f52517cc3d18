"""PNG files that are not left to OpenCV: the pixels are the same, and what is unusual or damaged is left to it."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from unet import png
from unet.images import ImageError, decode
from unet.png import decoded, encode_flat

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 4), dtype=np.uint8)
KINDS = {
    "1-bit": Image.fromarray(NOISE[..., 0] > 100),
    "grey": Image.fromarray(NOISE[..., 0]),
    "palette": Image.fromarray(NOISE[..., :3]).quantize(13),
    "grey with alpha": Image.fromarray(NOISE[..., 0]).convert("LA"),
    "rgb": Image.fromarray(NOISE[..., :3]),
}
TURNED = Image.Exif()
TURNED[0x112] = 6


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def grey(*idat: bytes, interlaced: int = 0, size: tuple[int, int] = (3, 2)) -> bytes:
    """A file of 3 x 2 grey pixels, in these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, interlaced))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *idat, chunk(b"IEND", b"")])


ROWS = bytes([0, 10, 20, 30, 2, 1, 1, 1])  # the second row as differences to the one above
PACKED = zlib.compress(ROWS)
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
"""Of deflate: not the last, stored, of 0 bytes."""
PIXELS = [[10, 20, 30], [11, 21, 31]]


def by_opencv(data: bytes) -> npt.NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels


@pytest.mark.parametrize("kind", ["grey", "16-bit", "rgb", "16-bit rgb", "alpha", "16-bit alpha"])
def test_most_files_are_decoded_as_opencv_would(kind: str) -> None:
    pixels = NOISE[..., {"grey": 0, "rgb": slice(3), "alpha": slice(4)}.get(kind.split()[-1], 0)]
    pixels = pixels.astype(np.uint16) * 257 + 5 if kind.startswith("16") else pixels
    data = bytes(cv2.imencode(".png", pixels)[1])
    found = decoded(data)
    assert found is not None
    np.testing.assert_array_equal(found, by_opencv(data))
    assert found.dtype == pixels.dtype
    assert found.flags.c_contiguous


@pytest.mark.parametrize("filters", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_every_filter_is_undone(filters: list[int]) -> None:
    rows = b"".join(bytes([kind]) + row.tobytes() for kind, row in zip(filters, NOISE[:5, :, 0], strict=True))
    data = grey(*(chunk(b"IDAT", zlib.compress(rows)[i : i + 50]) for i in range(0, len(rows) + 50, 50)), size=(53, 5))
    found = decoded(data)
    assert found is not None
    np.testing.assert_array_equal(found, by_opencv(data))


def test_by_hand() -> None:
    for data in (grey(chunk(b"IDAT", PACKED)), grey(*(chunk(b"IDAT", PACKED[i : i + 5]) for i in range(0, 20, 5)))):
        np.testing.assert_array_equal(decoded(data), PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a",
        *(saved(KINDS[kind]) for kind in ("1-bit", "palette", "grey with alpha")),
        saved(KINDS["grey"], transparency=7),
        saved(KINDS["grey"], exif=TURNED),
        grey(chunk(b"IDAT", PACKED), interlaced=1),
        grey(chunk(b"IDAT", PACKED).replace(PACKED, PACKED[:-6] + b"??" + PACKED[-4:])),  # its checksum is wrong
        grey(chunk(b"IDAT", PACKED[:6])),
        grey(chunk(b"IDAT", b"no deflate stream")),
        grey(chunk(b"IDAT", zlib.compress(ROWS[:-1]))),
        grey(chunk(b"IDAT", PACKED[:2] + 2000 * EMPTY_BLOCK + PACKED[2:])),
        grey(),
    ],
    ids=[
        *("not a png", "1-bit", "palette", "grey with alpha", "transparent", "turned", "interlaced", "crc"),
        *("truncated", "no deflate", "too few rows", "many empty blocks", "no pixels"),
    ],
)
def test_what_is_unusual_or_damaged_is_left_to_opencv(data: bytes) -> None:
    assert decoded(data) is None


def test_a_panic_of_the_decoder_is_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3's, which is no Exception."""

    def panic(*_: object) -> None:
        raise PanicException

    monkeypatch.setitem(png._READERS, 8, panic)
    data = grey(chunk(b"IDAT", PACKED))
    assert decoded(data) is None
    np.testing.assert_array_equal(decode(data)[0], PIXELS)  # says OpenCV


def test_what_is_damaged_is_refused_as_ever() -> None:
    for idat in (PACKED[:6], b"no deflate stream"):
        with pytest.raises(ImageError):
            decode(grey(chunk(b"IDAT", idat)))


def test_nobody_waits_for_large_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(KINDS["rgb"])
    monkeypatch.setattr(png, "LARGEST", 37 * (1 + 3 * 53))
    assert decoded(data) is not None
    monkeypatch.setattr(png, "LARGEST", 37 * (1 + 3 * 53) - 1)
    assert decoded(data) is None
    assert decode(data)[0].shape == (37, 53, 3)


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
