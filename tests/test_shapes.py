"""Shapes of annotation tools as pixels."""

from pathlib import Path

import numpy as np
import pytest
from skimage.draw import polygon as skimage_polygon

from trainer.data.shapes import IGNORE, Drawing, Legend, Shape, fill
from unet.errors import UserError

LEGEND = Legend({"cell": 1, "nucleus": 2}, {"nucleus": (200, 0, 0)})


def square(x: float, y: float, side: float) -> np.ndarray:
    return np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], float)


def drawing(*shapes: Shape, size: tuple[int, int] | None = None) -> Drawing:
    return Drawing("a.json", (Path("a.json"),), list(shapes), LEGEND, size)


def test_a_square_of_3_x_3_pixels_has_9() -> None:
    """OpenCV's fillPoly, Pillow and labelme's own export paint its outline, too, and have 16."""
    expected = np.zeros((8, 8), bool)
    expected[2:5, 2:5] = True
    np.testing.assert_array_equal(fill([square(2, 2, 3)], 8, 8), expected)


def test_neighbours_share_no_pixel_and_leave_none() -> None:
    """A square cut along a slanted line: each pixel is in one part."""
    left = np.array([(0, 0), (3.3, 0), (5.1, 8), (0, 8)])
    right = np.array([(3.3, 0), (8, 0), (8, 8), (5.1, 8)])
    assert (fill([left], 8, 8) ^ fill([right], 8, 8)).all()


def test_polygons_are_those_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    for n in range(3, 60):
        ring = rng.uniform(-5, 45, (n, 2))  # crosses itself, and leaves the image
        expected = np.zeros((40, 30), bool)
        expected[skimage_polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, expected.shape)] = True
        np.testing.assert_array_equal(fill([ring], 40, 30), expected)


def test_holes_are_left_out_and_polygons_united() -> None:
    """The second polygon fills a part of the hole of the first."""
    shape = Shape("cell", [[square(1, 1, 8), square(3, 3, 4)], [square(4, 4, 1)], [square(0, 0, 2)]])
    (page,) = drawing(shape).read([(10, 10)])
    expected = np.zeros((10, 10), int)
    expected[1:9, 1:9] = 1
    expected[3:7, 3:7] = 0
    expected[4, 4] = 1
    expected[0:2, 0:2] = 1
    np.testing.assert_array_equal(page.values, expected)
    np.testing.assert_array_equal(page.objects, expected)  # one object
    assert page.names == {0: "background", 1: "cell", 2: "nucleus"}
    assert page.colours == {0: (0, 0, 0), 2: (200, 0, 0)}
    assert page.ignored is None


def test_later_shapes_are_drawn_over_earlier_ones() -> None:
    cell, nucleus = Shape("cell", [[square(0, 0, 4)]]), Shape("nucleus", [[square(1, 1, 2)]])
    (page,) = drawing(cell, nucleus).read([(4, 4)])
    inner = np.pad(np.ones((2, 2), int), 1)
    np.testing.assert_array_equal(page.values, 1 + inner)
    np.testing.assert_array_equal(page.objects, 1 + inner)


def test_background_and_ignored_shapes() -> None:
    """Background cuts out; what is drawn over ignored pixels counts."""
    shapes = [
        Shape("cell", [[square(0, 0, 4)]]),
        Shape("_background_", [[square(0, 0, 1)]]),
        Shape(IGNORE, [[square(0, 2, 2)]]),
        Shape("cell", [[square(0, 3, 1)]]),
    ]
    (page,) = drawing(*shapes).read([(4, 4)])
    assert page.ignored is not None
    assert page.ignored.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
    assert page.values.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1]]
    assert page.objects is not None
    assert page.objects.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [2, 0, 1, 1]]


def test_shapes_of_one_group_are_one_object() -> None:
    parts = [Shape(name, [[square(x, 0, 1)]], group=7) for x, name in ((0, "cell"), (2, "cell"), (4, "nucleus"))]
    (page,) = drawing(*parts).read([(1, 5)])
    assert page.objects is not None
    assert page.objects.tolist() == [[1, 0, 1, 0, 2]]


def test_bitmaps_are_placed_and_cut_at_the_edges() -> None:
    shape = Shape("cell", bitmap=lambda: np.array([[True, False], [True, True]]), corner=(-1, 1))
    (page,) = drawing(shape).read([(3, 2)])
    assert page.values.tolist() == [[0, 0], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("source", "sizes", "message"),
    [
        (drawing(Shape("cell", [[square(9, 0, 2)]])), [(4, 4)], "found a shape at x 9 to 11, y 0 to 2; expected it in"),
        (drawing(size=(4, 6)), [(6, 4)], "found shapes of an image of 6 x 4 pixels; expected 4 x 6 as its image has"),
        (drawing(), [(4, 4)] * 3, "its image has 3 pages; expected 1"),
    ],
)
def test_shapes_of_another_image_are_refused(source: Drawing, sizes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        source.read(sizes)
