"""Classes of borders of objects, drawn by hand."""

import numpy as np
import pytest

from trainer.data.borders import border_classes


def drawn(text: str) -> np.ndarray:
    return np.array([[int(each) for each in line] for line in text.split()], np.int32)


def test_the_border_of_an_object_belongs_to_it() -> None:
    objects = drawn("""
        0000000
        0333330
        0333330
        0333330
        0000000
        0444440""")
    expected = drawn("""
        0000000
        0222220
        0211120
        0222220
        0000000
        0111110""")
    classes = border_classes(objects, 1)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, expected)


def test_both_sides_of_the_line_where_objects_touch_are_border() -> None:
    objects = np.repeat([[1] * 6 + [2] * 6], 5, axis=0)
    expected = [[1] * 4 + [2] * 4 + [1] * 4] * 5  # the sides of the image are no outlines
    np.testing.assert_array_equal(border_classes(objects, 2), expected)


def test_only_near_another_object() -> None:
    """Within 2 * 1 + 2 pixels of it: the far side of the square has no border."""
    objects = np.zeros((9, 16), np.int32)
    objects[1:8, 1:8], objects[1:8, 10:15] = 1, 2
    rows = border_classes(objects, 1)
    assert rows[1].tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 0, 0, 2, 2, 1, 1, 1, 0]
    assert rows[4].tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 0, 0, 2, 1, 1, 1, 1, 0]
    farther = np.concatenate([objects[:, :9], np.zeros_like(objects[:, :2]), objects[:, 9:]], axis=1)
    assert not (border_classes(farther, 1) == 2).any()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_small_objects_keep_their_inside(side: int) -> None:
    objects = np.kron(np.arange(1, 10).reshape(3, 3), np.ones((side, side), np.int32))
    classes = border_classes(np.pad(objects, 1), 3)
    np.testing.assert_array_equal(np.unique(objects[classes[1:-1, 1:-1] == 1]), np.arange(1, 10))
    assert (classes == 2).any() == (side > 2)
    np.testing.assert_array_equal(classes > 0, np.pad(objects, 1) > 0)


def test_no_object_one_object_and_large_ids() -> None:
    assert not border_classes(np.zeros((4, 5), np.int32)).any()
    assert (border_classes(np.full((4, 5), 7, np.int32)) == 1).all()
    objects = np.repeat([[1] * 3 + [2**31 - 1] * 3], 4, axis=0).astype(np.int32)
    np.testing.assert_array_equal(border_classes(objects, 1), [[1, 1, 2, 2, 1, 1]] * 4)
