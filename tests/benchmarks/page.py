"""How long the page's viewer takes to draw:  python tests/benchmarks/page.py [--sides 512 2048] [--screen 1400 900]

Needs Chromium, and playwright from the extra `test`. A synthetic probability map, whole and at 1:1, filled and
outlined. Prints milliseconds, median and largest of 50: from a move of the threshold, and a step of the zoom, until the
canvas is drawn; between frames while the threshold moves in each; until regions are counted. And how long an answer
takes to decode.
"""

import argparse
import shutil
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from playwright.sync_api import Route, sync_playwright

STATIC = Path(__file__).parents[2] / "service" / "static"

PAGE = """<!doctype html><style>body { margin: 0 } canvas { display: block; width: 100vw; height: 100vh }</style>
<canvas></canvas><script type="module">
import { Viewer } from "/viewer.js";
import { decodePng } from "/png.js";
const canvas = document.querySelector("canvas");
const frame = window.requestAnimationFrame.bind(window);
const once = (name) => new Promise((done) => viewer.addEventListener(name, done, { once: true }));
const read = () => canvas.getContext("2d").getImageData(0, 0, 1, 1); // waits until all is drawn
window.viewer = new Viewer(canvas);

window.open = async (url) => {
  const blob = await (await fetch(url)).blob();
  viewer.showImage(await createImageBitmap(blob));
  const started = performance.now();
  const map = await decodePng(blob);
  const decoded = performance.now() - started;
  viewer.showProbability(map);
  await once("regions");
  return decoded;
};
const thresholds = Array.from({ length: 50 }, (_, i) => 0.3 + 0.008 * i);

/** Of drawing alone: what waits for a frame is done at once. */
window.drawn = async (move) => {
  window.requestAnimationFrame = queueMicrotask;
  const times = [];
  for (const [i, threshold] of thresholds.entries()) {
    const started = performance.now();
    if (move === "threshold") viewer.threshold = threshold;
    else viewer.zoomBy(i % 2 ? 1.02 : 1 / 1.02);
    await null;
    read();
    times.push(performance.now() - started);
    if (move === "threshold") await once("regions");
    else await new Promise((done) => setTimeout(done, 20));
  }
  window.requestAnimationFrame = frame;
  return times;
};
window.frames = async () => {
  const times = [];
  let before = await new Promise(frame);
  for (const threshold of thresholds) {
    viewer.threshold = threshold;
    const now = await new Promise(frame);
    times.push(now - before);
    before = now;
  }
  return times;
};
window.counted = async () => {
  await new Promise((done) => setTimeout(done, 500));
  const times = [];
  for (const threshold of thresholds) {
    const started = performance.now();
    viewer.threshold = threshold;
    await once("regions");
    times.push(performance.now() - started);
  }
  return times;
};
window.ready = true;
</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--screen", type=int, nargs=2, default=[1400, 900], metavar=("WIDTH", "HEIGHT"))
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        width, height = arguments.screen
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: print(error))
        page.route("**/*", answer)
        page.goto("http://page.test/")
        page.wait_for_function("window.ready")
        for side in arguments.sides:
            decoded = page.evaluate("url => open(url)", f"/{side}.png")
            print(f"{side} x {side}: decoded in {decoded:.0f} ms")
            for view in ("fit", "actualSize"):
                for style in ("fill", "outline"):
                    page.evaluate(f"viewer.{view}(); viewer.style = '{style}'")
                    rows = {
                        "threshold": page.evaluate("drawn('threshold')"),
                        "zoom": page.evaluate("drawn('zoom')"),
                        "frames": page.evaluate("frames()"),
                    }
                    print(f"  {view:10} {style:8}", *(f"{name} {summary(times)}" for name, times in rows.items()))
            print(f"  regions {summary(page.evaluate('counted()'))}")
        browser.close()


def answer(route: Route) -> None:
    name = route.request.url.removeprefix("http://page.test/")
    if name.endswith(".png"):
        route.fulfill(body=cv2.imencode(".png", blobs(int(name[:-4])))[1].tobytes(), content_type="image/png")
    elif name:
        route.fulfill(path=STATIC / name)
    else:
        route.fulfill(body=PAGE, content_type="text/html")


def blobs(side: int) -> np.ndarray:
    """Smooth noise whose spots are about 30 pixels wide, stretched to 0..255."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 8)
    return np.clip(128 + 60 * noise / noise.std() + rng.normal(0, 2, noise.shape), 0, 255).astype(np.uint8)


def summary(times: list[float]) -> str:
    return f"{median(times):6.1f} {max(times):6.1f}"


if __name__ == "__main__":
    main()
