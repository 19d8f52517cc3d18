"""Label pages become class indices; values that cannot be classes are refused."""

import re

import numpy as np
import pytest

from trainer.data.labels import Classes
from unet.errors import UserError

HALVES = np.repeat([[0] * 15 + [255] * 15], 20, axis=0).astype(np.uint8)
"""(20, 30): 0 on the left, 255 on the right."""


def with_colour(*colour: int) -> np.ndarray:
    """RGB, with `colour` on the right half."""
    return (HALVES > 0)[:, :, None] * np.uint8(colour)


def read(*pages: np.ndarray, lossy: bool = False) -> tuple[Classes, list[np.ndarray]]:
    """Labels a, b, c, ..."""
    classes = Classes()
    return classes, [classes.read(page, "abc"[i], lossy=lossy) for i, page in enumerate(pages)]


@pytest.mark.parametrize("pair", [(0, 1), (0, 255), (7, 9), (0, 65535)])
def test_any_two_values_are_background_and_foreground(pair: tuple[int, int]) -> None:
    classes, (values,) = read(np.where(HALVES > 0, pair[1], pair[0]).astype(np.uint16))
    assert classes.values == pair
    assert classes.problems() == []
    np.testing.assert_array_equal(classes.indices(values), HALVES // 255)


def test_more_values_are_one_class_each() -> None:
    three = HALVES.copy()
    three[:5] = 100
    classes, pages = read(HALVES, three)
    assert classes.values == (0, 100, 255)
    assert [np.unique(classes.indices(page)).tolist() for page in pages] == [[0, 2], [0, 1, 2]]


def test_a_grey_label_saved_as_rgb_is_grey() -> None:
    assert read(np.repeat(HALVES[:, :, None], 3, axis=2))[0].values == (0, 255)


def test_a_label_in_colour_is_read_by_its_luminance() -> None:
    assert read(with_colour(255, 0, 0))[0].values == (0, 76)


def test_colours_of_equal_luminance_are_refused() -> None:
    """Classes 1, 2 and 16 of PASCAL VOC: the first and the third are equally bright."""
    maroon, green, dark = with_colour(128, 0, 0), with_colour(0, 128, 0), with_colour(0, 64, 0)
    classes, _ = read(maroon, green)
    assert (classes.values, classes.problems()) == ((0, 38, 75), [])
    assert read(maroon, green, dark)[0].problems() == [
        "c: the colour (0, 64, 0) is as bright as (128, 0, 0) in a, so both would be class 38; "
        "expected one grey value per class"
    ]


def test_colours_of_equal_luminance_in_one_label_are_refused() -> None:
    page = with_colour(10, 0, 5)
    page[:5] = (8, 1, 6)
    (problem,) = read(page)[0].problems()
    assert problem.startswith("a: the colour (10, 0, 5) is as bright as (8, 1, 6) in a")


def test_a_grey_value_as_bright_as_a_colour_is_refused() -> None:
    (problem,) = read(with_colour(128, 0, 0), np.where(HALVES > 0, 38, 0).astype(np.uint8))[0].problems()
    assert "(38, 38, 38) is as bright as (128, 0, 0)" in problem


def test_one_label_may_hold_one_class_but_a_data_set_may_not() -> None:
    assert read(HALVES, 0 * HALVES)[0].problems() == []
    assert read(0 * HALVES)[0].problems() == [
        "labels: found only the value 0 in all labels; expected at least two values"
    ]


def test_a_foreground_of_1_in_one_label_and_255_in_another_is_not_a_third_class() -> None:
    assert read(0 * HALVES, HALVES // 255, HALVES)[0].problems() == [
        "labels: the foreground is 1 in b and 255 in c; expected one value per class: save all as 0 and 255, "
        "or as 0, 1 and 2 if these are three classes"
    ]
    both = HALVES.copy()
    both[:5] = 1
    assert read(HALVES // 255, both)[0].problems() == []


def test_class_values_beyond_8_bits_are_refused() -> None:
    three = HALVES.astype(np.float32)
    three[:5] = -1
    assert read(HALVES, three)[0].problems() == [
        "b: class values are -1 to 255 in all; expected 0 to 255, since masks have 8 bits"
    ]
    (problem,) = read(HALVES, HALVES.astype(np.uint16) * 2)[0].problems()
    assert problem.startswith("b: class values are 0 to 510")


def test_too_many_values_in_a_data_set_are_refused() -> None:
    pages = [np.arange(start, start + 50, dtype=np.uint8).reshape(5, 10) for start in (0, 50)]
    (problem,) = read(*pages)[0].problems()
    assert problem.startswith("labels: found 100 different values in all; expected 2 to 64: JPEG, WebP")


@pytest.mark.parametrize(
    ("page", "lossy", "message"),
    [
        (np.arange(100, dtype=np.uint8).reshape(10, 10), False, "found 100 different values; expected 2"),
        (np.arange(3, dtype=np.uint8).reshape(1, 3), True, "found 3 different values; expected 2"),
        (HALVES / np.float32(510), False, "found values that are not whole numbers"),
        (np.full((4, 4), np.nan, np.float32), False, "found values that are not whole numbers"),
        (np.zeros((4, 4, 5), np.uint8), False, "found 5 channels; expected grey or RGB"),
    ],
)
def test_pages_that_cannot_be_labels_are_refused(page: np.ndarray, lossy: bool, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read(page, lossy=lossy)
