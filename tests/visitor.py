"""A person at the page in a real browser: brings images, moves controls, and sees what the screen shows."""

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page, Route

TYPES = {".png": "image/png", ".tif": "image/tiff", ".jpg": "image/jpeg", ".txt": "text/plain"}
BRING = """({ files, kind, target }) => {
    const transfer = new DataTransfer();
    for (const { name, type, data } of files) {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
    }
    const how = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
    const kinds = kind === "paste" ? ["paste"] : ["dragenter", "dragover", "drop"];
    for (const each of kinds) {
        const event = each === "paste" ? new ClipboardEvent(each, how) : new DragEvent(each, how);
        document.querySelector(target).dispatchEvent(event);
    }
}"""


class Held(list["Route"]):
    """Requests that wait."""

    def __init__(self, page: "Page") -> None:
        self.page = page

    def expect(self, n: int) -> None:
        """Returns when there are as many."""
        while len(self) < n:
            self.page.wait_for_timeout(10)  # milliseconds in which requests are taken in


class Visitor:
    """One tab with the page. Requests to other hosts are refused; `outside` and `problems` tell what went wrong:
    an error in the console, a violation of the policy, an answer with a status that is not in `expected`."""

    def __init__(self, context: "BrowserContext", url: str) -> None:
        self.url = url.rstrip("/")
        self.outside: list[str] = []
        self.problems: list[str] = []
        self.expected: set[int] = set()
        self.context = context
        context.set_default_timeout(20_000)
        context.route(re.compile(rf"^(?!{re.escape(self.url)}/|blob:)"), self._refuse)
        self.page = self.open()

    def open(self) -> "Page":
        """Another tab."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.goto(f"{self.url}/")
        return page

    def _refuse(self, route: "Route") -> None:
        self.outside.append(route.request.url)
        route.abort()

    def _hear(self, kind: str, text: str) -> None:
        failed = re.search(r"status of (\d+)|net::(ERR_\w+)", text)
        is_expected = failed and int(failed[1] or 0) in self.expected
        is_stopped = failed and failed[2] == "ERR_CONNECTION_REFUSED"  # the test is over before the tab is closed
        if kind in ("error", "warning") and not is_expected and not is_stopped:
            self.problems.append(text)

    # what a person does

    def drop(self, *files: tuple[str, bytes], onto: str = "#stage") -> None:
        self._bring("drop", onto, files)

    def paste(self, name: str, data: bytes) -> None:
        self._bring("paste", "body", [(name, data)])

    def _bring(self, kind: str, target: str, files: Iterable[tuple[str, bytes]]) -> None:
        told = [
            {"name": name, "type": TYPES.get(Path(name).suffix, ""), "data": base64.b64encode(data).decode()}
            for name, data in files
        ]
        self.page.evaluate(BRING, {"files": told, "kind": kind, "target": target})

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def save(self, act: Callable[[], Any]) -> tuple[str, bytes]:
        """Name and bytes of the file that is downloaded when that is done."""
        with self.page.expect_download() as download:
            act()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    @contextmanager
    def held(self, path: str = "segment") -> "Iterator[Held]":
        """A slow service: requests to this path wait until the test lets them go on, or the block ends."""
        waiting = Held(self.page)
        over = False

        def hold(route: "Route") -> None:
            route.continue_() if over else waiting.append(route)

        self.page.route(f"{self.url}/{path}", hold)
        yield waiting
        over = True
        while waiting:
            waiting.pop().continue_()

    def answer(self, name: str, data: bytes, path: str = "segment", **options: Any) -> httpx.Response:
        """The API's answer, to compare with what the page does."""
        return httpx.post(f"{self.url}/{path}", params=options, files={"file": (name, data)}, timeout=60)

    # what a person sees

    def __getitem__(self, selector: str) -> "Locator":
        return self.page.locator(selector)

    def wait_for(self, state: str) -> None:
        """`done`: the image has its mask."""
        self[f'#stage[data-state="{state}"]'].wait_for()

    def wait_for_numbers(self, n: int | None = None, median: str | None = None) -> None:
        """The objects were counted by the service."""
        found = self['#result[data-state="exact"]']
        if n is not None:
            found = found.filter(has=self.exactly("#count", f"{n:,}"))
        if median is not None:
            found = found.filter(has=self.exactly("#median", median))
        found.wait_for()

    def exactly(self, selector: str, text: str) -> "Locator":
        """The element when it says just that."""
        return self.page.locator(selector, has_text=re.compile(rf"^{re.escape(text)}$"))

    def says(self, selector: str) -> str:
        return self[selector].inner_text()

    def screen(self) -> np.ndarray:
        """The canvas (H, W, 3) RGB, drawn as it is to be."""
        url = self.page.evaluate("""async () => {
            for (let i = 0; i < 3; i++) await new Promise((done) => requestAnimationFrame(done));
            return document.getElementById("canvas").toDataURL();
        }""")
        data = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def image(self, height: int, width: int) -> np.ndarray:
        """What lies over each pixel of an image of this size, which the stage has room for: (H, W, 3) RGB."""
        self["#actual"].click()
        screen = self.screen()
        top, left = ((screen.shape[i] - size + 1) // 2 for i, size in enumerate((height, width)))
        return screen[top : top + height, left : left + width]

    def mask(self, height: int, width: int) -> np.ndarray:
        """Where the screen shows the mask, (H, W) bool: pixels of its colour at full opacity."""
        colour = self.page.evaluate("""() => {
            const set = (id, value, type) => {
                const each = document.getElementById(id);
                each.value = value;
                each.dispatchEvent(new Event(type));
            };
            set("opacity", 1, "input");
            return document.getElementById("colour").value;
        }""")
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return (self.image(height, width) == wanted).all(axis=2)
