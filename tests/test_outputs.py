"""Kinds of answers: one page is a PNG, several are a TIFF with the picture's resolution; objects as ids."""

import io

import numpy as np
import pytest
import tifffile
from conftest import GREY, LEGEND

from unet.imaging import Metadata, Picture, read
from unet.outputs import KINDS, SUFFIXES, Answer, Results
from unet.outputs.labels import find_objects, separate

MASK = np.where(GREY > 100, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("name", ["mask", "probability"])
def test_one_page_is_a_png(name: str) -> None:
    answer = KINDS[name].encode(Results([MASK], Picture([GREY], "YX"), LEGEND))
    assert answer.media_type == "image/png"
    assert answer.body.startswith(b"\x89PNG")
    np.testing.assert_array_equal(read(answer.body).pixels, MASK)


@pytest.mark.parametrize("name", ["mask", "probability"])
def test_several_pages_are_a_tiff_with_the_resolution_of_the_picture(name: str) -> None:
    picture = Picture([GREY, GREY], "ZYX", Metadata((4, 4), "um", 0.5, stack={"Z": 2}))
    answer = KINDS[name].encode(Results([MASK, 255 - MASK], picture, LEGEND))
    assert answer.media_type == "image/tiff"
    again = read(answer.body)
    np.testing.assert_array_equal(again.pixels, [MASK, 255 - MASK])
    assert again.metadata == picture.metadata
    assert tifffile.TiffFile(io.BytesIO(answer.body)).imagej_metadata["unit"] == "um"


def test_pages_of_different_sizes() -> None:
    picture = Picture([GREY, GREY[:4]], "IYX", Metadata((4, 4), "um"))
    answer = KINDS["mask"].encode(Results([MASK, MASK[:4]], picture, LEGEND))
    assert [page.shape for page in read(answer.body).pages] == [MASK.shape, MASK[:4].shape]


def test_the_registry() -> None:
    """What the service and the programs list comes from here: every kind has a file of its own kind."""
    picture = Picture([GREY], "YX")
    for name, kind in KINDS.items():
        assert kind.name == name
        result = MASK if kind.wants in ("mask", "probability") else np.float32(MASK / 255)
        answer = kind.encode(Results([result], picture, LEGEND, "cell.png"))
        assert isinstance(answer, Answer)
        assert answer.media_type in SUFFIXES


def discs(*places: tuple[int, int, int]) -> np.ndarray:
    """Discs (y, x, radius) of probability 0.9 on a ground of 0.1, (60, 90)."""
    y, x = np.mgrid[0:60, 0:90]
    inside = np.any([(y - b) ** 2 + (x - a) ** 2 <= r**2 for b, a, r in places], axis=0)
    return np.where(inside, 0.9, 0.1).astype(np.float32)


def test_ids_in_reading_order_of_the_first_pixels() -> None:
    ids = separate(discs((30, 20, 8), (20, 50, 12), (50, 60, 5)), None, 0.5, 1)
    assert ids.dtype == np.int32
    assert (ids[20, 50], ids[30, 20], ids[50, 60], ids[0, 0], ids.max()) == (1, 2, 3, 0, 3)


def test_objects_below_the_smallest_area_and_the_threshold_are_left_out() -> None:
    probability = discs((30, 20, 8), (50, 60, 3))
    assert separate(probability, None, 0.5, 30).max() == 1
    assert separate(probability, None, 0.5, 29).max() == 2  # a disc of radius 3 has 29 pixels
    assert not separate(probability, None, 0.9, 1).any()


def test_without_borders_a_neck_divides_objects() -> None:
    """Two discs that overlap a little are two; two that overlap by half are one, as is an ellipse."""
    two = separate(discs((30, 30, 12), (30, 50, 12)), None, 0.5, 1)
    assert two.max() == 2
    assert (two[30, 20:39] == 1).all()
    assert (two[30, 42:60] == 2).all()
    assert separate(discs((30, 30, 12), (30, 38, 12)), None, 0.5, 1).max() == 1
    y, x = np.mgrid[0:60, 0:90]
    ellipse = ((y - 30) / 8) ** 2 + ((x - 45) / 30) ** 2 < 1
    assert separate(ellipse.astype(np.float32), None, 0.5, 1).max() == 1


def test_with_borders_their_insides_divide_objects() -> None:
    """One rectangle, two insides: the line where they are least certain is the border. A part without an inside is an
    object, too."""
    foreground = np.zeros((30, 60), np.float32)
    foreground[5:15, 5:45] = foreground[20:23, 10:13] = 1
    inside = np.zeros((30, 60), np.float32)
    inside[7:13, 7:43] = 0.9
    inside[7:13, 24:29] = [0.4, 0.3, 0.2, 0.3, 0.4]
    ids = separate(foreground, inside, 0.5, 1)
    assert ids.max() == 3
    np.testing.assert_array_equal(ids > 0, foreground > 0)
    assert (ids[7:13, 5:26] == 1).all()
    assert (ids[7:13, 27:45] == 2).all()
    assert (ids[20:23, 10:13] == 3).all()
    joined = separate(foreground, np.where(foreground > 0, 0.9, 0).astype(np.float32), 0.5, 1)
    assert joined.max() == 2


def test_nothing_found_and_everything_found() -> None:
    nothing, everything = np.zeros((7, 5), np.float32), np.ones((7, 5), np.float32)
    for inside in (None, nothing):
        assert not separate(nothing, inside, 0.5, 1).any()
        assert (separate(everything, inside, 0.5, 1) == 1).all()
    assert (separate(everything, everything, 0.5, 36) == 0).all()


def test_each_class_but_the_first_has_objects() -> None:
    one, other = discs((20, 20, 8), (50, 80, 4)), discs((20, 34, 8))
    result = np.stack([np.full_like(one, 0.2), one, other * 0.95])
    ids = find_objects(result, LEGEND)
    assert (ids[20, 20], ids[20, 34], ids[50, 80], ids.max()) == (1, 2, 3, 3)


def test_a_net_of_vessels_stays_whole() -> None:
    """Lines of a varying width that cross: without the rule for nets it has 21 parts."""
    net = np.zeros((200, 200), np.float32)
    for k in (40, 100, 160):
        for x in range(200):
            half = 3 if (x // 20) % 2 else 5
            net[k - half : k + half, x] = net[x, k - half : k + half] = 1
    assert separate(net, None, 0.5, 1).max() == 1


def test_labels_are_16_bit_images_or_32_bit_tiffs() -> None:
    picture = Picture([GREY], "YX", Metadata((4, 4), "um"))
    many = np.zeros((600, 600), np.float32)
    many[::2, ::2] = 1  # 90,000 objects
    two = discs((30, 30, 12), (30, 50, 12))
    answer = KINDS["labels"].encode(Results([two], picture, LEGEND))
    assert answer.media_type == "image/png"
    ids = read(answer.body).pixels
    assert (ids.dtype, ids.max()) == (np.uint16, 2)
    np.testing.assert_array_equal(ids, separate(two, None, 0.5, 1))
    answer = KINDS["labels"].encode(Results([two, two], picture, LEGEND))
    assert answer.media_type == "image/tiff"
    np.testing.assert_array_equal(read(answer.body).pixels, [ids, ids])
    answer = KINDS["labels"].encode(Results([many], picture, LEGEND))
    assert answer.media_type == "image/tiff"
    large = tifffile.imread(io.BytesIO(answer.body))
    assert (large.dtype, large.max()) == (np.uint32, 90_000)
    assert (np.diff(large[::2, ::2].ravel()) == 1).all()


def test_a_tall_image() -> None:
    """Components are grown some rows at a time: 200 pairs of touching objects, and one component as tall as all."""
    foreground, inside = np.zeros((2, 200, 13, 40), np.float32)
    foreground[:, :, 30:34] = 1
    foreground[:, 2:11, 2:16] = 1
    inside[:, 2:11, 2:16] = [1] * 6 + [0.4, 0.2, 0.3] + [1] * 5
    inside[:, :, 31:33] = 1
    ids = separate(foreground.reshape(2600, 40), inside.reshape(2600, 40), 0.5, 1)
    np.testing.assert_array_equal(ids > 0, foreground.reshape(2600, 40) > 0)
    assert (ids[:, 30:34] == 1).all()
    pairs = ids.reshape(200, 13, 40)[:, 2:11, 2:16] - 2 * np.arange(200)[:, None, None]
    assert (pairs == [2] * 8 + [3] * 6).all()
