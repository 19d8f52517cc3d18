"""Image files of every kind but TIFF (test_imaging_tiff.py), limits, and bytes that are not an image."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import GREY, RGB, pil, png
from PIL import Image

from unet.errors import UserError
from unet.imaging import ImageError, ImageTooLargeError, Limits, Picture, measure, read, write_png, write_tiff


def only(data: bytes, *, as_stored: bool = False) -> np.ndarray:
    (page,) = read(data, as_stored=as_stored).pages
    return page


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_are_read_exactly(suffix: str, image: np.ndarray) -> None:
    np.testing.assert_array_equal(only(png(image, suffix)), image)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_sixteen_bits_stay_sixteen(suffix: str, image: np.ndarray) -> None:
    deep = image.astype(np.uint16) * 257
    page = only(png(deep, suffix))
    assert page.dtype == np.uint16
    np.testing.assert_array_equal(page, deep)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_read_nearly(kind: str) -> None:
    smooth = cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC)
    page = only(pil(Image.fromarray(smooth), kind, quality=95))
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
def test_other_kinds_of_png(image: Image.Image, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(only(pil(image, "PNG")), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_is_looked_up_for_images_and_kept_as_indices_for_labels(kind: str) -> None:
    indices = (GREY > 100).astype(np.uint8)
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette([200, 100, 50, 10, 20, 30])  # index 0 is the brighter
    data = pil(image, kind)
    np.testing.assert_array_equal(only(data), np.array([(200, 100, 50), (10, 20, 30)])[indices])
    np.testing.assert_array_equal(only(data, as_stored=True), indices)


def test_grey_values_are_the_same_as_image_and_as_label() -> None:
    for suffix in (".png", ".tif", ".bmp", ".webp", ".jpg"):
        data = png(GREY, suffix)
        np.testing.assert_array_equal(only(data), only(data, as_stored=True))


def test_a_grey_gif_is_grey() -> None:
    np.testing.assert_array_equal(only(pil(Image.fromarray(GREY), "GIF")), GREY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    upright = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY.T[::-1, ::-1],
        8: np.rot90(GREY),
    }[orientation]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    page = only(pil(Image.fromarray(GREY), kind, exif=exif, **lossless))
    page = page[..., 0] if page.ndim == 3 else page  # WebP has no grey
    assert page.shape == upright.shape
    assert np.abs(page.astype(int) - upright).max() < 12


def test_a_palette_is_turned_as_well() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.fromarray(GREY // 100, "L").convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    np.testing.assert_array_equal(only(pil(image, "PNG", exif=exif), as_stored=True), np.rot90(GREY // 100, -1))


def test_an_animation_is_its_first_picture() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for kind in ("PNG", "WEBP", "GIF"):
        page = only(pil(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
        np.testing.assert_array_equal(page, RGB)


def test_cmyk_jpeg() -> None:
    smooth = Image.fromarray(cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC))
    page = only(pil(smooth.convert("CMYK"), "JPEG", quality=95))
    assert page.shape == (100, 120, 3)
    assert np.abs(page.astype(int) - np.asarray(smooth)).mean() < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_thin_images(suffix: str, size: tuple[int, int]) -> None:
    page = only(png(np.full(size, 77, np.uint8), suffix))
    assert page.shape[:2] == size
    assert (page == 77).all()


def test_a_bmp_with_the_header_of_os2() -> None:
    """OpenCV makes grey of its colours."""
    header = struct.pack("<IHHHH", 12, 1, 1, 1, 24)
    data = b"BM" + struct.pack("<IHHI", 30, 0, 0, 26) + header + bytes([1, 2, 3, 0])
    assert only(data).tolist() == [[[3, 2, 1]]]


@pytest.mark.parametrize(
    ("masks", "pixel"), [((0xFF0000, 0xFF00, 0xFF), [3, 2, 1]), ((0xFF000000, 0xFF0000, 0xFF00), [0, 3, 2])]
)
def test_a_bmp_whose_masks_order_its_colours(masks: tuple[int, ...], pixel: list[int]) -> None:
    """OpenCV takes any order for blue, green, red."""
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + struct.pack("<III", *masks)
    data = b"BM" + struct.pack("<IHHI", 14 + len(header) + 4, 0, 0, 14 + len(header)) + header + bytes([1, 2, 3, 0])
    assert only(data).tolist() == [[pixel]]


def test_two_files_in_one_are_the_first() -> None:
    for first in (".png", ".jpg", ".bmp", ".webp"):
        for second in (".png", ".jpg", ".tif"):
            assert only(png(GREY, first) + png(RGB[:5], second)).shape[:2] == GREY.shape
    with pytest.raises(ImageError, match="expected an image"):
        read(b"<script>alert(1)</script>" + png(GREY))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(20), b"GIF89a", b"RIFF", b"BM"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"expected an image|truncated|no page"):
        read(data)
    assert issubclass(ImageError, UserError)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_a_truncated_file_is_refused_unless_the_picture_is_complete(suffix: str) -> None:
    whole = png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8), suffix)
    for end in range(0, len(whole), 10):
        try:
            page = only(whole[:end])
        except ImageError:
            continue
        assert page.shape == (64, 64)
        assert end > 0.9 * len(whole)  # some formats end with more than the picture


@pytest.mark.parametrize("encoded", [png(GREY), png(RGB, ".jpg"), png(GREY, ".tif"), pil(Image.fromarray(RGB), "GIF")])
def test_pages_can_be_written_to(encoded: bytes) -> None:
    """torch.from_numpy warns of arrays that are read-only, and refuses negative strides."""
    page = only(encoded)
    assert page.flags.writeable
    assert page.flags.c_contiguous


def test_a_path_is_read_and_a_missing_one_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(GREY))
    picture = read(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, GREY)
    assert (picture.axes, picture.metadata.resolution) == ("YX", None)
    assert read(str(tmp_path / "a.png")).axes == "YX"
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "b.png")


def test_pixels_of_several_pages_are_stacked() -> None:
    assert Picture([GREY, GREY], "ZYX").pixels.shape == (2, *GREY.shape)


def test_limits_at_and_above() -> None:
    data = png(GREY)
    assert measure(data) == measure(data, Limits(len(data), 120, 1)) == 120
    with pytest.raises(ImageTooLargeError, match=r"at most 119 pixels \(--max-pixels\), found 12 x 10"):
        measure(data, Limits(max_pixels=119))
    with pytest.raises(ImageTooLargeError, match=rf"at most {len(data) - 1} bytes \(--max-bytes\)"):
        measure(data, Limits(max_bytes=len(data) - 1))
    two = write_tiff([GREY, GREY])
    assert measure(two, Limits(max_pixels=240, max_pages=2)) == 240
    with pytest.raises(ImageTooLargeError, match=r"at most 1 pages \(--max-pages\), found more"):
        measure(two, Limits(max_pages=1))
    with pytest.raises(ImageTooLargeError, match="239 pixels"):
        read(two, Limits(max_pixels=239))


def test_no_more_of_a_file_is_read_than_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageTooLargeError, match="at most 1000 bytes"):
        read(tmp_path / "sparse.png", Limits(max_bytes=1000))


def test_writing_png() -> None:
    for image in (GREY, RGB, GREY.astype(np.uint16) * 200):
        np.testing.assert_array_equal(only(write_png(image)), image)


def test_a_mask_of_two_values_stays_eight_bits() -> None:
    with Image.open(io.BytesIO(write_png(np.where(GREY > 100, 255, 0).astype(np.uint8)))) as image:
        assert image.mode == "L"


def test_imaging_and_outputs_load_no_torch() -> None:
    code = "import sys, unet.imaging, unet.outputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
