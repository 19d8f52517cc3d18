"""A page with nothing but the viewer of the service's page, in Chromium. Has the policy of the service's pages."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from conftest import png

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    Open = Callable[..., Page]

STATIC = Path(__file__).parents[1] / "service" / "static"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; worker-src 'self'"

PAGE = {
    "": b'<!doctype html><link rel="stylesheet" href="page.css"><canvas id="canvas" width="1"></canvas>',
    "page.css": b"body { margin: 0 } canvas { display: block }",
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
  until: async (test) => { while (!test()) await drawn(); },
  counted: () => new Promise((done, fail) => {
    const plain = ({ detail }) => done({ ...detail, byClass: [...detail.byClass] });
    viewer.addEventListener("regions", plain, { once: true });
    setTimeout(fail, 20000, new Error("nothing is counted"));
  }),
});
for (const name in events) viewer.addEventListener(name, ({ detail }) => events[name].push(detail));
viewer.opacity = 1;
await until(() => canvas.width > 1);
""",
}
TYPES = {"": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


@pytest.fixture
def open_page(browser: "Browser") -> "Iterator[Open]":
    """`open_page(width, height, **images)`: a page with a viewer of this size and images to fetch. Nothing may go
    wrong on it."""
    problems: list[str] = []
    contexts = []

    def start(width: int, height: int, *, ratio: float = 1, **images: np.ndarray | bytes) -> "Page":
        files = {f"{name}.png": data if isinstance(data, bytes) else png(data) for name, data in images.items()}

        def answer(route: "Route") -> None:
            name = route.request.url.removeprefix("http://viewer.test/")
            body = (PAGE | files).get(name) or (STATIC / name).read_bytes()
            headers = {"Content-Type": TYPES[Path(name).suffix], "Content-Security-Policy": POLICY}
            route.fulfill(body=body, headers=headers)

        context = browser.new_context(device_scale_factor=ratio, has_touch=True)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.route("**/*", answer)
        page.goto("http://viewer.test/")
        page.evaluate(f"canvas.style.width = '{width}px'; canvas.style.height = '{height}px'; import('./page.js')")
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
