"""The page's viewer in a browser: each pixel of the mask where the image has it, at any zoom, and right numbers.

Images are black and white, masks orange.
"""

# ruff: noqa: F811  (parameters are named like the imported fixtures)

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import ndimage
from viewer_page import count, open_page, show  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from viewer_page import Open

pytestmark = pytest.mark.browser

ORANGE = (255, 138, 0)
CLASSES = [
    {"value": 10, "name": "background", "colour": [0, 0, 255]},
    {"value": 20, "name": "cell", "colour": [255, 0, 0]},
    {"value": 30, "name": "debris", "colour": [0, 255, 0]},
]


def is_orange(canvas: np.ndarray) -> np.ndarray:
    return (canvas == (*ORANGE, 255)).all(axis=2)


MASK = "viewer.showProbability(await values('map.png'))"
IMAGE_AND_MASK = f"viewer.showImage(await image('map.png')); {MASK}"


@pytest.fixture
def speckles(rng: np.random.Generator) -> np.ndarray:
    """Black and white pixels by chance."""
    return np.where(rng.random((45, 60)) < 0.4, 255, 0).astype(np.uint8)


def test_mask_covers_exactly_the_pixels_it_is_of(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 170, map=speckles)
    for zoom in (1, 1.1, 1.27, 1.5, 2.3, 5.37, 12.9):
        show(page, "viewer.showImage(null); viewer.showImage(await image('map.png')); viewer.actualSize()")
        before = show(page, f"viewer.zoomBy({zoom}); viewer.panBy(-3.4, 2.7)")
        after = show(page, MASK)
        white = (before == 255).all(axis=2)
        assert 0 < white.sum() < (before == (0, 0, 0, 255)).all(axis=2).sum()
        assert (is_orange(after) == white).all(), zoom
        assert (after[~white] == before[~white]).all()


def test_small_images_are_fitted_with_square_pixels(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(640, 480, map=speckles)
    canvas = show(page, IMAGE_AND_MASK)
    assert page.evaluate("events.view.at(-1).scale") == 10
    expected = np.pad(np.kron(speckles > 0, np.ones((10, 10), bool)), ((15, 15), (20, 20)))
    assert (is_orange(canvas) == expected).all()


@pytest.mark.parametrize(("width", "height"), [(15, 12), (26, 20)])
def test_coarse_pixels_are_as_opaque_as_their_share_of_mask(
    open_page: "Open", speckles: np.ndarray, width: int, height: int
) -> None:
    page = open_page(width, height, map=speckles)
    canvas = show(page, MASK)
    rows, columns = np.indices(speckles.shape)
    place = ((rows + 0.5) * width / 60).astype(int), ((columns + 0.5) * width / 60).astype(int)  # of centres on screen
    covered, of = np.zeros((2, height, width))
    np.add.at(covered, place, speckles > 0)
    np.add.at(of, place, 1)
    assert (canvas[..., 3] == np.floor(255 * covered / of + 0.5)).all()


@pytest.mark.parametrize("ratio", [1, 1.5, 2, 3])
def test_outlines_are_two_css_pixels_wide_and_inside(open_page: "Open", rng: np.random.Generator, ratio: float) -> None:
    blobs = np.where(ndimage.gaussian_filter(rng.normal(size=(60, 80)), 2) > 0, 255, 0).astype(np.uint8)
    page = open_page(100, 80, ratio=ratio, map=blobs)
    line = round(2 * ratio)
    inner = np.s_[line:-line, line:-line]  # what is beside the screen is part of the mask, too, but unknown here
    for zoom in (1, 1.7, 3, 5.5):
        script = f"{MASK}; viewer.style = 'fill'; viewer.fit(); viewer.zoomBy({zoom}); viewer.panBy(11, -7)"
        filled = is_orange(show(page, script))
        outlined = is_orange(show(page, "viewer.style = 'outline'"))
        expected = filled & ~ndimage.binary_erosion(filled, np.ones((2 * line + 1, 2 * line + 1)))
        assert 0 < outlined.sum() < filled.sum()
        assert (outlined[inner] == expected[inner]).all(), zoom
        assert not (outlined & ~filled).any()


@pytest.mark.parametrize("half", [100, 91])
def test_coarse_outlines_follow_partly_covered_pixels(open_page: "Open", half: int) -> None:
    disc = np.where(np.hypot(*np.mgrid[-half:half, -half:half]) < 80, 255, 0).astype(np.uint8)
    disc[4:6] = 255  # a thin line
    disc[::2, half:] = 0  # lines that are thinner than a pixel of the screen
    page = open_page(50, 50, map=disc)
    filled = show(page, MASK)[..., 3]
    outlined = show(page, "viewer.style = 'outline'")[..., 3]
    edge = ndimage.maximum_filter(filled < 255, size=3)  # pixels with another group, and one more
    edge[[0, -1]] = edge[:, [0, -1]] = True
    assert (outlined == np.where(edge, filled, 0)).all()
    assert (outlined[1] > 0).all()
    assert outlined[25, 15] == 0
    assert outlined[25, 35] > 0


def test_pixels_are_foreground_above_the_threshold(open_page: "Open") -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    page = open_page(16, 16, map=values)
    count(page, MASK)
    for threshold in (0, 0.2, 0.5, 127 / 255, 128 / 255, 0.999, 1):
        regions = count(page, f"viewer.threshold = {threshold}")
        assert sum(regions["areas"]) == (values > 255 * threshold).sum()
        assert (is_orange(show(page, "")) == (values > 255 * threshold)).all()


def test_classes_have_their_colours_and_can_be_hidden(open_page: "Open") -> None:
    values = np.array([[10, 20, 30], [20, 30, 10]], np.uint8)
    page = open_page(3, 2, map=values, sure=np.full((2, 3), 204, np.uint8))
    classes = f"viewer.showClasses(await values('map.png'), {CLASSES})"
    canvas = show(page, f"{classes}; viewer.likeliest = await values('sure.png')")
    colours = {10: (0, 0, 0, 0), 20: (255, 0, 0, 255), 30: (0, 255, 0, 255)}
    assert canvas.tolist() == [[list(colours[value]) for value in row] for row in values.tolist()]
    canvas = show(page, "viewer.setVisible(20, false)")
    assert (canvas[..., 3] > 0).tolist() == (values == 30).tolist()
    assert (show(page, "viewer.setVisible(20, true)")[..., 3] > 0).tolist() == (values > 10).tolist()
    page.mouse.move(1.5, 1.5)
    show(page, "")
    assert page.evaluate("events.pointer") == [{"x": 1, "y": 1, "probability": 0.8, "value": 30}]


def test_mixed_classes_are_the_average_of_their_colours(open_page: "Open") -> None:
    values = np.array([[20, 20, 10, 10], [30, 30, 10, 20]], np.uint8)
    page = open_page(2, 1, map=values)
    canvas = show(page, f"viewer.showClasses(await values('map.png'), {CLASSES})")
    assert canvas.tolist() == [[[128, 128, 0, 255], [255, 0, 0, 64]]]


def test_dark_classes_have_white_outlines(open_page: "Open") -> None:
    page = open_page(4, 4, map=np.full((4, 4), 20, np.uint8))
    dark = [CLASSES[0], {"value": 20, "name": "ink", "colour": [0, 0, 40]}]
    canvas = show(page, f"viewer.showClasses(await values('map.png'), {dark})")
    assert (canvas == (0, 0, 40, 255)).all()
    assert (show(page, "viewer.style = 'outline'") == 255).all()


def test_opacity_mixes_mask_and_image(open_page: "Open") -> None:
    page = open_page(2, 1, map=np.array([[0, 255]], np.uint8))
    canvas = show(page, f"{IMAGE_AND_MASK}; viewer.colour = [55, 155, 255]; viewer.opacity = 0.5")
    assert np.abs(canvas.astype(int) - [[[0, 0, 0, 255], [155, 205, 255, 255]]]).max() <= 1
    assert show(page, "viewer.opacity = 0")[0, 1].tolist() == [255, 255, 255, 255]


def test_regions_are_those_of_scipy(open_page: "Open", rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (61, 97), dtype=np.uint8)
    page = open_page(97, 61, map=noise)
    count(page, MASK)
    for threshold, smallest in ((0.3, 1), (0.5, 1), (0.5, 4), (0.7, 2), (1, 1)):
        regions = count(page, f"viewer.threshold = {threshold}; viewer.minArea = {smallest}")
        expected = areas(noise > 255 * threshold, smallest)
        assert regions == {"count": len(expected), "areas": expected, "byClass": []}


def areas(mask: np.ndarray, smallest: int = 1) -> list[int]:
    labels, _ = ndimage.label(mask)  # pixels that share a side
    found = np.bincount(labels.ravel())[1:]
    return sorted(found[found >= smallest].tolist())


def test_regions_of_each_class(open_page: "Open", rng: np.random.Generator) -> None:
    values = rng.choice(np.array([10, 20, 30], np.uint8), (40, 50))
    page = open_page(50, 40, map=values)
    regions = count(page, f"viewer.showClasses(await values('map.png'), {CLASSES})")
    cells, debris = areas(values == 20), areas(values == 30)
    assert regions["byClass"] == [
        [20, {"count": len(cells), "areas": cells}],
        [30, {"count": len(debris), "areas": debris}],
    ]
    assert regions["areas"] == sorted(cells + debris)
    assert regions["count"] == len(cells + debris)


def test_newest_threshold_and_mask_are_counted_last(open_page: "Open", rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (900, 900), dtype=np.uint8)
    page = open_page(100, 100, map=noise, dot=np.array([[0, 255]], np.uint8))
    show(page, f"{MASK}; for (let t = 0.3; t < 0.7; t += 0.02) {{ viewer.threshold = t; await drawn() }}")
    show(page, "viewer.threshold = 0.7")
    page.evaluate(f"until(() => events.regions.at(-1)?.count === {len(areas(noise > 255 * 0.7))})")
    script = "const dot = await values('dot.png'); viewer.threshold = 0.5; await drawn(); events.regions.length = 0"
    count(page, f"{script}; viewer.showProbability(dot)")  # while the other is being counted
    assert page.evaluate("events.regions.map(({ areas }) => areas)") == [[1]]


def test_wheel_zooms_towards_the_pointer(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 170, map=speckles)
    show(page, IMAGE_AND_MASK)
    page.mouse.move(61, 122)
    for n, (key, step) in enumerate([("Alt", -100), ("Control", -20), ("Control", -1000), ("Alt", 75)], 2):
        page.keyboard.down(key)
        page.mouse.wheel(0, step)
        page.keyboard.up(key)
        page.evaluate(f"until(() => events.view.length === {n})")
    show(page, "")
    assert page.evaluate("events.pointer.map(({ x, y }) => [x, y])") == [[14, 32]]
    scales = page.evaluate("events.view.map(({ scale }) => scale)")
    assert np.allclose(np.diff(np.log(scales)), [0.2, 0.2, 0.25, -0.15], atol=0.004)  # rounded, to 1/63


def test_drag_pans_and_double_click_enlarges_and_fits_again(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 180, map=speckles)  # 4 pixels for each of the image
    fitted = show(page, IMAGE_AND_MASK)
    show(page, "viewer.zoomBy(2)")
    page.mouse.move(100, 100)
    page.mouse.down()
    page.mouse.move(70, 80, steps=3)
    page.mouse.up()
    expected = np.kron(speckles > 0, np.ones((8, 8), bool))[90 + 20 : 270 + 20, 120 + 30 : 360 + 30]
    assert (is_orange(show(page, "")) == expected).all()
    page.mouse.move(0, 0)  # no longer held down
    assert (is_orange(show(page, "")) == expected).all()
    page.mouse.dblclick(100, 100)
    assert (show(page, "") == fitted).all()
    page.mouse.dblclick(0, 0)  # the corner stays where it is
    expected = np.kron(speckles > 0, np.ones((16, 16), bool))[:180, :240]
    assert (is_orange(show(page, "")) == expected).all()


def test_two_fingers_zoom_and_pan(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 180, map=speckles)
    show(page, IMAGE_AND_MASK)
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[int, int]) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    touch("Start", (80, 90))
    touch("Start", (80, 90), (160, 90))
    touch("Move", (60, 70), (220, 70))  # twice as far from each other, around (140, 70) instead of (120, 90)
    touch("End")
    touch("Start", (200, 100))
    touch("Move", (190, 100))
    touch("End")
    expected = np.kron(speckles > 0, np.ones((8, 8), bool))[110:290, 110:350]
    assert (is_orange(show(page, "")) == expected).all()
    assert page.evaluate("getComputedStyle(canvas).touchAction") == "none"
    assert page.evaluate("events.pointer.at(-1)") is None


def test_fitted_image_follows_the_size_of_the_page(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 180, map=speckles)
    show(page, IMAGE_AND_MASK)
    page.evaluate("canvas.style.width = '600px'; canvas.style.height = '500px'; until(() => canvas.width === 600)")
    large = np.kron(speckles > 0, np.ones((10, 10), bool))
    assert (is_orange(show(page, "")) == np.pad(large, ((25, 25), (0, 0)))).all()
    show(page, "viewer.zoomBy(2)")
    page.evaluate("canvas.style.width = '300px'; canvas.style.height = '200px'; until(() => canvas.width === 300)")
    expected = np.kron(speckles > 0, np.ones((20, 20), bool))[350:550, 450:750]  # the centre stays
    assert (is_orange(show(page, "")) == expected).all()


def test_image_that_comes_while_nothing_is_shown(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(120, 90, map=speckles)
    show(page, "canvas.style.display = 'none'")
    page.evaluate("until(() => canvas.width === 0)")
    assert count(page, IMAGE_AND_MASK)["count"] == len(areas(speckles > 0))
    canvas = show(page, "canvas.style.display = ''; await until(() => canvas.width === 120)")
    assert (is_orange(canvas) == np.kron(speckles > 0, np.ones((2, 2), bool))).all()


def test_pointer_names_the_pixel_under_it(open_page: "Open") -> None:
    page = open_page(40, 30, map=np.array([[0, 51], [102, 255]], np.uint8))  # 15 pixels for each, 5 beside them
    show(page, IMAGE_AND_MASK)
    for place in ((5, 0), (19, 14), (20, 14), (19, 15), (34, 29), (35, 29)):
        page.mouse.move(*place)
        show(page, "")
    pixels = [
        {"x": 0, "y": 0, "probability": 0, "value": None},
        {"x": 1, "y": 0, "probability": 0.2, "value": None},
        {"x": 0, "y": 1, "probability": 0.4, "value": None},
        {"x": 1, "y": 1, "probability": 1, "value": None},
        None,
    ]
    assert page.evaluate("events.pointer") == pixels


def test_view_stays_as_long_as_the_size_does(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 180, map=speckles, next=255 - speckles, wide=speckles[:20])
    show(page, f"{IMAGE_AND_MASK}; viewer.zoomBy(2)")
    inverse = show(page, "viewer.showImage(await image('next.png')); viewer.showProbability(null)")
    assert (inverse[..., 0] == np.kron(255 - speckles, np.ones((8, 8)))[90:270, 120:360]).all()
    show(page, "viewer.showImage(await image('wide.png'))")
    assert page.evaluate("events.view.map(({ scale }) => scale)") == [4, 8, 4]
    problem = page.evaluate(f"async () => {{ try {{ {MASK} }} catch (error) {{ return error.message }} }}")
    assert problem == "expected a mask of 60 x 20 pixels, got 60 x 45"
    assert not show(page, "viewer.showImage(null)").any()


def test_wider_than_a_canvas_can_be(open_page: "Open") -> None:
    bars = np.kron(np.arange(250) % 2 * 255, np.ones((20, 80))).astype(np.uint8)  # 20000 x 20
    page = open_page(250, 50, map=bars)
    canvas = show(page, IMAGE_AND_MASK)
    expected = np.zeros((50, 250), bool)
    expected[25, 1::2] = True
    assert (is_orange(canvas) == expected).all()
    canvas = show(page, "viewer.actualSize()")
    assert (is_orange(canvas)[20] == (bars[0, 9875:10125] > 0)).all()
