"""Label files are read as they are stored."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import pil, png
from PIL import Image

from trainer.data.labels import LabelFile, LabelPage
from unet.errors import UserError

SQUARE = np.pad(np.ones((4, 4), np.uint8), 3)
COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def read(path: Path, data: bytes) -> LabelPage:
    path.write_bytes(data)
    (page,) = LabelFile(path, path.name).read([SQUARE.shape])
    return page


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_gives_indices_and_colours(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(SQUARE)
    image.putpalette(COLOURS)
    page = read(tmp_path / "label", pil(image, kind))
    np.testing.assert_array_equal(page.values, SQUARE)
    assert [page.colours[i] for i in (0, 1)] == [(0, 0, 0), (128, 0, 0)]


def test_a_palette_of_all_greys_is_none(tmp_path: Path) -> None:
    image = Image.fromarray(SQUARE * np.uint8(200))
    image.putpalette([grey for grey in range(256) for _ in "rgb"])
    page = read(tmp_path / "label.png", pil(image, "PNG"))
    assert np.unique(page.values).tolist() == [0, 200]
    assert page.colours == {}


def test_white_is_zero_does_not_turn_a_label_round(tmp_path: Path) -> None:
    """tifffile stores bool so, ImageJ masks with an inverting LUT."""
    path = tmp_path / "label.tif"
    tifffile.imwrite(path, SQUARE > 0, photometric="miniswhite")
    (page,) = LabelFile(path, "label.tif").read([SQUARE.shape])
    np.testing.assert_array_equal(page.values > 0, SQUARE > 0)


def test_transparent_pixels_of_a_colour_label_keep_their_colour(tmp_path: Path) -> None:
    rgba = np.stack([SQUARE * 200, SQUARE, SQUARE, SQUARE * 9], axis=2).astype(np.uint8)
    page = read(tmp_path / "label.png", pil(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(page.values, rgba[..., :3])


def test_the_orientation_of_the_file_is_told(tmp_path: Path) -> None:
    image = Image.fromarray(SQUARE)
    exif = image.getexif()
    exif[274] = 6
    assert read(tmp_path / "a.png", pil(image, "PNG", exif=exif)).orientation == 6
    assert read(tmp_path / "b.png", png(SQUARE)).orientation == 1


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found a pipe or device; expected a file"):
        LabelFile(tmp_path, "label").read([])
