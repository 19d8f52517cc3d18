"""Image files of every kind, and bytes that are none."""

import io
import struct

import cv2
import numpy as np
import pytest
import tifffile
from conftest import GREY, RGB, pil, png
from PIL import Image

from unet.images import ImageError, ImageTooLargeError, count_pixels, decode, encode_png, encode_tiff


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [3, 4])
def test_bands_that_are_no_colours_are_refused(dtype: type, samples: int) -> None:
    """As of satellites: OpenCV takes the first of 8 bits, and makes grey of those of 16."""
    bands, file = np.full((20, 30, samples), (10, 200, 90, 7)[:samples], dtype), io.BytesIO()
    tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match=f"grey TIFF of at most 2 samples a pixel, found {samples}"):
        decode(file.getvalue())


def test_grey_with_alpha_is_turned_round_only_where_its_samples_lie_together() -> None:
    both = np.stack([GREY, np.full_like(GREY, 255)], axis=2)
    for planes in (False, True):
        file, picture = io.BytesIO(), both.transpose(2, 0, 1) if planes else both
        tifffile.imwrite(file, picture, photometric="miniswhite", planarconfig="separate" if planes else "contig")
        if planes:
            with pytest.raises(ImageError, match="samples of a pixel together, or 0 as black"):
                decode(file.getvalue())
        else:
            np.testing.assert_array_equal(decode(file.getvalue())[0], 255 - GREY)


def test_colours_of_cielab_are_refused() -> None:
    """A grey of 128 came out as 142, 131, 115: libtiff has a white of its own."""
    with pytest.raises(ImageError, match="YCbCr, found photometric interpretation 8"):
        decode(pil(Image.new("LAB", (8, 8), (137, 0, 0)), "TIFF"))


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
