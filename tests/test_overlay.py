"""Kind `overlay`: where outlines lie, in which colours, and what images of other types look like."""

import io

import cv2
import numpy as np
import pytest
import tifffile

from unet.imaging import Metadata, Picture, read
from unet.outputs import KINDS, Legend, Results
from unet.outputs.overlay import draw, outline, to_rgb

ORANGE, GREEN, WHITE = (255, 138, 0), (0, 153, 6), (255, 255, 255)
GREY = np.full((12, 20), 100, np.uint8)


def legend(*colours: tuple[int, int, int], objects: bool = False, min_area: int = 1) -> Legend:
    values = tuple(range(1 + len(colours)))
    names = tuple(map(str, values))
    colours = ((0, 0, 0), *colours)
    return Legend(
        threshold=0.5,
        class_values=values,
        class_names=names,
        class_colours=colours,
        objects=objects,
        min_area=min_area,
    )


def where(drawn: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (drawn == colour).all(axis=-1)


def test_two_pixels_of_the_object_itself_all_around_it() -> None:
    probability = np.zeros(GREY.shape, np.float32)
    probability[2:9, 3:10] = 0.9
    expected = probability > 0
    expected[4:7, 5:8] = False
    drawn = draw(GREY, probability, legend(ORANGE))
    np.testing.assert_array_equal(where(drawn, ORANGE), expected)
    assert (drawn[~expected] == 100).all()


def test_at_the_edge_of_the_image_an_outline_is_closed_and_thin_regions_are_all_outline() -> None:
    regions = np.ones((6, 9), np.uint8)
    regions[:, 6] = regions[:, 8] = 0
    assert (
        outline(regions)[:, :6].tolist()
        == [[True] * 6] * 2 + [[True, True, False, False, True, True]] * 2 + [[True] * 6] * 2
    )
    assert outline(regions)[:, 6:].tolist() == [[False, True, False]] * 6
    assert outline(np.ones((1, 1), np.uint8)).all()
    assert not outline(np.zeros((5, 5), np.uint8)).any()


def test_objects_that_touch_each_have_an_outline() -> None:
    """A rectangle of 10 x 12 pixels that is two objects of 6 columns."""
    result = np.zeros((2, 12, 14), np.float32)
    result[0, 1:11, 1:13] = 1
    result[1, 3:9, 3:11] = [0.9, 0.9, 0.9, 0.3, 0.3, 0.9, 0.9, 0.9]
    expected = result[0] > 0
    expected[3:9, 3:5] = expected[3:9, 9:11] = False
    drawn = draw(GREY[:12, :14], result, legend(ORANGE, objects=True))
    np.testing.assert_array_equal(where(drawn, ORANGE), expected)
    assert not where(draw(GREY[:12, :14], result, legend(ORANGE, objects=True, min_area=61)), ORANGE).any()


def test_without_learned_borders_the_mask_is_outlined_as_it_is() -> None:
    """A dumbbell, which output=labels cuts, and a pixel below the smallest area."""
    mask = np.zeros((40, 80), np.uint8)
    for x in (20, 56):
        cv2.circle(mask, (x, 20), 15, 1, -1)
    mask[16:25, 20:56] = 1
    mask[2, 2] = 1
    drawn = draw(np.zeros_like(mask), mask.astype(np.float32), legend(ORANGE, min_area=1000))
    line = where(drawn, ORANGE)
    assert line[2, 2]
    assert line[16:18, 38].all()
    assert not line[18:23, 20:57].any()


def test_classes_have_their_colours_on_their_side_of_a_common_border_and_black_is_shown_as_white() -> None:
    likeliest = np.zeros((12, 20), np.intp)
    likeliest[2:10, 2:8], likeliest[2:10, 8:14], likeliest[4:6, 16:18] = 1, 2, 3
    result = np.moveaxis(np.eye(4, dtype=np.float32)[likeliest], 2, 0)
    drawn = draw(GREY, result, legend(ORANGE, GREEN, (20, 0, 30)))
    assert drawn[5, 5:11].tolist() == [[100] * 3, *[list(ORANGE)] * 2, *[list(GREEN)] * 2, [100] * 3]
    np.testing.assert_array_equal(where(drawn, WHITE), likeliest == 3)
    assert (drawn[likeliest == 0] == 100).all()


NAN, INF = np.nan, np.inf
RAMP = np.arange(101)[None]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.uint8([[0, 7]]), [[0] * 3, [7] * 3]),  # as it is, dark or not
        (np.uint8([[[1, 2, 3]]]), [[1, 2, 3]]),
        (np.uint8([[[1, 2, 3, 4]]]), [[1, 2, 3]]),
        (np.uint8([[[1, 2]]]), [[1] * 3]),
        (np.uint8([[[1]]]), [[1] * 3]),
        (np.uint16([[500, 500]]), [[0] * 3] * 2),
        (np.float32([[NAN, NAN]]), [[0] * 3] * 2),
        (np.float32([[NAN, 0, 1]]), [[0] * 3, [0] * 3, [255] * 3]),
        (np.float32([[-INF, 1, 2, INF]]), [[0] * 3, [0] * 3, [255] * 3, [255] * 3]),
        (np.float64([[-1e308, 1e308]]), [[0] * 3] * 2),  # too far apart for a float
        (np.int8([[-100, 100]]), [[0] * 3, [255] * 3]),
        (np.uint32([[4_000_000_000, 4_000_000_100]]), [[0] * 3, [255] * 3]),
        (np.array([[False, True]]), [[0] * 3, [255] * 3]),
        (np.uint16([[[0, 0, 100, 9], [500, 60000, 100, 9]]]), [[0] * 3, [255, 255, 0]]),  # channels by themselves
    ],
)  # fmt: skip
def test_images_of_all_types(image: np.ndarray, expected: list[list[int]]) -> None:
    rgb = to_rgb(image)
    assert rgb.dtype == np.uint8
    assert rgb[0].tolist() == expected


def test_the_window_is_from_the_1st_to_the_99th_percentile() -> None:
    rgb = to_rgb(np.uint16(600 * RAMP))
    assert rgb[0, [0, 1, 50, 99, 100], 0].tolist() == [0, 0, 127, 255, 255]
    sparse = np.zeros((100, 100), np.float32)  # less than a hundredth is bright
    sparse[50, 50:60] = 0.2
    np.testing.assert_array_equal(to_rgb(sparse)[..., 0] == 255, sparse > 0)


def test_a_large_image_is_stretched_in_strips() -> None:
    image = np.linspace(0, 60000, 2500).astype(np.uint16)[:, None].repeat(3, axis=1)
    rgb = to_rgb(image)[:, 0, 0]
    np.testing.assert_allclose(rgb, ((image[:, 0] / 60000 - 0.01) / 0.98).clip(0, 1) * 255, atol=1)


def test_one_page_is_a_png_and_a_stack_a_tiff_with_its_calibration() -> None:
    page = np.zeros(GREY.shape, np.float32)
    page[4:6, 4:6] = 1
    answer = KINDS["overlay"].encode(Results([page], Picture([GREY], "YX"), legend(ORANGE)))
    assert answer.media_type == "image/png"
    np.testing.assert_array_equal(where(read(answer.body).pages[0], ORANGE), page > 0)
    metadata = Metadata((2, 2), "um", 0.5, stack={"Z": 2})
    picture = Picture([GREY, np.uint16(GREY)], "ZYX", metadata, tiff=True)
    answer = KINDS["overlay"].encode(Results([page, 1 - page], picture, legend(ORANGE)))
    assert answer.media_type == "image/tiff"
    assert tifffile.TiffFile(io.BytesIO(answer.body)).series[0].axes == "ZYXS"
    assert read(answer.body).metadata == metadata
