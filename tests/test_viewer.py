"""The page's viewer in a browser: each pixel of the mask where the image has it, at any zoom, and numbers that are right.

The modules alone, on a page of their own with the policy of the service's. Images are black and white, masks orange.
"""

import base64
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from conftest import png
from scipy import ndimage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    Open = Callable[..., Page]

pytestmark = pytest.mark.browser

STATIC = Path(__file__).parents[1] / "service" / "static"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; worker-src 'self'"
ORANGE = (255, 138, 0)
CLASSES = [
    {"value": 10, "name": "background", "colour": [0, 0, 255]},
    {"value": 20, "name": "cell", "colour": [255, 0, 0]},
    {"value": 30, "name": "debris", "colour": [0, 255, 0]},
]

PAGE = {
    "": b'<!doctype html><link rel="stylesheet" href="page.css"><canvas id="canvas"></canvas>'
    b'<script type="module" src="page.js"></script>',
    "page.css": b"body { margin: 0 } canvas { display: block; width: 100vw; height: 100vh }",
    "page.js": b"""
import { Viewer } from "./viewer.js";
import { decodePng } from "./png.js";

const blob = async (name) => (await fetch(name)).blob();
const drawn = () => new Promise((done) => requestAnimationFrame(done)); // after what was asked for before
const events = { pointer: [], regions: [], view: [] };
Object.assign(window, {
  viewer: new Viewer(document.getElementById("canvas")),
  events,
  image: async (name) => createImageBitmap(await blob(name)),
  values: async (name) => decodePng(await blob(name)),
  drawn,
  counted: () => new Promise((done, fail) => {
    viewer.addEventListener("regions", ({ detail }) => done({ ...detail, byClass: [...detail.byClass] }), { once: true });
    setTimeout(fail, 20000, new Error("nothing is counted"));
  }),
});
for (const name in events) viewer.addEventListener(name, ({ detail }) => events[name].push(detail));
viewer.opacity = 1;
await drawn(); // its size is known
await drawn();
window.ready = true;
""",
}
TYPES = {"": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


@pytest.fixture
def open_page(browser: "Browser") -> "Iterator[Open]":
    """`open_page(width, height, **images)`: a page of this size that is nothing but a viewer, with images to fetch.
    Nothing may go wrong on it."""
    problems: list[str] = []
    contexts = []

    def start(width: int, height: int, *, ratio: float = 1, **images: np.ndarray | bytes) -> "Page":
        files = {f"{name}.png": data if isinstance(data, bytes) else png(data) for name, data in images.items()}

        def answer(route: "Route") -> None:
            name = route.request.url.removeprefix("http://viewer.test/")
            body = (PAGE | files).get(name) or (STATIC / name).read_bytes()
            headers = {"Content-Type": TYPES[Path(name).suffix], "Content-Security-Policy": POLICY}
            route.fulfill(body=body, headers=headers)

        size: Any = {"width": width, "height": height}
        context = browser.new_context(viewport=size, device_scale_factor=ratio, has_touch=True)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.route("**/*", answer)
        page.goto("http://viewer.test/")
        page.wait_for_function("window.ready")
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []


def show(page: "Page", script: str) -> np.ndarray:
    """The canvas (H, W, 4) RGBA after this script has run and its effect is drawn."""
    url = page.evaluate(f"async () => {{ {script}; await drawn(); return canvas.toDataURL() }}")
    data = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)


def count(page: "Page", script: str) -> Any:
    """The regions that are counted because of this script."""
    return page.evaluate(f"async () => {{ {script}; return counted() }}")


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
    for zoom in (1, 1.1, 1.5, 2.3, 5.37, 12.9):
        show(page, f"viewer.showImage(null); viewer.showImage(await image('map.png')); viewer.zoomBy({zoom} / 3.7)")
        before = show(page, "viewer.panBy(-3.4, 2.7)")
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


def test_coarse_pixels_are_as_opaque_as_their_share_of_mask(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(15, 11, map=speckles[:44])
    canvas = show(page, MASK)
    share = (speckles[:44] > 0).reshape(11, 4, 15, 4).mean(axis=(1, 3))  # 4 x 4 pixels in one of the screen
    assert (canvas[..., 3] == np.floor(255 * share + 0.5)).all()


@pytest.mark.parametrize("ratio", [1, 1.5, 2])
def test_outlines_are_two_css_pixels_wide_and_inside(
    open_page: "Open", rng: np.random.Generator, ratio: float
) -> None:
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


def test_coarse_outlines_follow_partly_covered_pixels(open_page: "Open") -> None:
    disc = np.where(np.hypot(*np.mgrid[-100:100, -100:100]) < 80, 255, 0).astype(np.uint8)
    disc[20:22] = 255  # a thin line across
    page = open_page(50, 50, map=disc)
    filled = show(page, MASK)[..., 3]
    outlined = show(page, "viewer.style = 'outline'")[..., 3]
    edge = ndimage.maximum_filter(filled < 255, size=5)  # pixels with another group, and two more
    assert (outlined == np.where(edge, filled, 0)).all()
    assert (outlined[5] > 0).all()
    assert outlined[25, 25] == 0


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
    canvas = show(page, f"viewer.showClasses(await values('map.png'), {CLASSES}, await values('sure.png'))")
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
    page.wait_for_function(f"events.regions.at(-1)?.count === {len(areas(noise > 255 * 0.7))}")
    script = "const dot = await values('dot.png'); viewer.threshold = 0.5; await drawn(); events.regions.length = 0"
    count(page, f"{script}; viewer.showProbability(dot)")  # while the other is being counted
    assert page.evaluate("events.regions.map(({ areas }) => areas)") == [[1]]


def test_wheel_zooms_towards_the_pointer(open_page: "Open", speckles: np.ndarray) -> None:
    page = open_page(240, 170, map=speckles)
    show(page, IMAGE_AND_MASK)
    page.mouse.move(61, 122)
    for key, step in (("Shift", -300), ("Control", -50), ("Shift", 250)):
        page.keyboard.down(key)
        page.mouse.wheel(0, step)
        page.keyboard.up(key)
        page.wait_for_function("count => events.view.length > count", arg=page.evaluate("events.view.length - 1"))
    show(page, "")
    places = page.evaluate("events.pointer.map(({ x, y }) => [x, y])")
    scales = page.evaluate("events.view.map(({ scale }) => scale)")
    assert len(set(map(tuple, places))) == 1
    assert scales[0] < scales[1] < scales[2] > scales[3] > scales[1] - 1
