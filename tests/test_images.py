"""Image files of every kind, and bytes that are none."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import png
from PIL import Image

from trainer import sample
from unet.images import ImageError, ImageTooLargeError, decode, encode_png, encode_tiff

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


def test_all_pages_of_a_tiff() -> None:
    pages = [GREY, GREY + 1, GREY + 2]
    decoded = decode(encode_tiff(pages))
    np.testing.assert_array_equal(decoded, pages)


def test_encoding() -> None:
    for image in (GREY, RGB, GREY.astype(np.uint16) * 200):
        np.testing.assert_array_equal(decode(encode_png(image))[0], image)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(20), b"GIF89a" + bytes(50)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="expected an image|truncated|no page"):
        decode(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_a_truncated_file_is_refused_or_read_but_never_crashes(suffix: str) -> None:
    whole = png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8), suffix)
    for tenth in range(10):
        with pytest.raises(ImageError):
            decode(whole[: len(whole) * tenth // 10])


def test_limits_at_and_above() -> None:
    assert decode(png(GREY), max_pixels=120)
    with pytest.raises(ImageTooLargeError, match="at most 119 pixels, found 12 x 10"):
        decode(png(GREY), max_pixels=119)
    two = encode_tiff([GREY, GREY])
    assert len(decode(two, max_pixels=240, max_pages=2)) == 2
    with pytest.raises(ImageTooLargeError, match="at most 1 pages, found more"):
        decode(two, max_pages=1)
    with pytest.raises(ImageTooLargeError, match="239 pixels"):
        decode(two, max_pixels=239)


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    with pytest.raises(ImageTooLargeError):
        decode(bomb, max_pixels=2**22)


def test_a_flat_png_holds_the_same_values_in_less_than_a_bit_per_pixel() -> None:
    _, mask = sample.generate(np.random.default_rng(0), size=256)
    plain, flat = encode_png(mask), encode_png(mask, flat=True)
    for data in (plain, flat):
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "L"  # eight bits, whatever reads it
            np.testing.assert_array_equal(np.asarray(image), mask)
    assert len(flat) < mask.size / 8
