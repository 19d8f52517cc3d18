"""The page for everybody: with the keyboard alone, on a phone, in the dark, without motion; and how large it is."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from bright_model import cells
from conftest import picture, png
from visitor import Visitor

Visit = Callable[..., Visitor]

pytestmark = pytest.mark.browser

CELLS = cells(1)
PNG = png(CELLS)
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
SERIOUS = ("serious", "critical")

FOCUS = """() => {
    const element = document.activeElement;
    if (element === document.body) return null;
    const drawn = (each) => each && getComputedStyle(each).outlineStyle !== "none";
    const isSlider = element.matches("input[type=range]"); // its thumb has a ring
    const isSeen = isSlider || drawn(element) || drawn(element.nextElementSibling);
    return { name: element.id || element.textContent.trim() || element.value, isSeen: Boolean(isSeen) };
}"""
CONTROLS = """() => [...document.querySelectorAll("button, a, input, [tabindex]")]
    .filter((each) => each.checkVisibility() && !each.disabled && each.type !== "file" && each.type !== "radio")
    .map((each) => each.id || each.textContent.trim() || each.value)"""
OVERFLOWING = """() => {
    const strip = document.getElementById("strip"); // scrolls by itself
    return [...document.querySelectorAll("body *")]
        .filter((each) => each.checkVisibility() && !strip.contains(each) && !each.closest(".unseen, svg"))
        .filter((each) => each.getBoundingClientRect().left < -1 || each.getBoundingClientRect().right > innerWidth + 1)
        .map((each) => each.outerHTML.slice(0, 100));
}"""
COVERED = """() => [...document.querySelectorAll("button, a, input, label")]
    .filter((each) => each.checkVisibility() && !each.disabled && each.type !== "file")
    .filter((each) => {
        const seen = each.closest("label") ?? each;
        seen.scrollIntoView({ block: "center", inline: "center", behavior: "instant" });
        const { left, top, width, height } = seen.getBoundingClientRect();
        const hit = document.elementFromPoint(left + width / 2, top + height / 2);
        return !hit || !(seen.contains(hit) || hit.contains(seen));
    })
    .map((each) => each.outerHTML.slice(0, 100))"""


def findings(visitor: Visitor) -> list[str]:
    """What axe-core calls serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(visitor.page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:120]} {node['any'][:1]}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


def reach(visitor: Visitor, name: str) -> list[str]:
    """Tab, until this control has the focus; all that had it. Each shows that it has."""
    reached: list[str] = []
    while name not in reached:
        visitor.press("Tab")
        focus = visitor.page.evaluate(FOCUS)
        assert focus is not None, f"no {name} in {reached}"
        assert focus["isSeen"], focus["name"]
        reached.append(focus["name"])
    return reached


def test_from_an_image_to_its_saved_mask_with_the_keyboard(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    with visitor.page.expect_file_chooser() as chooser:
        reach(visitor, "choose")
        visitor.press("Enter")
    chooser.value.set_files({"name": "cell.png", "mimeType": "image/png", "buffer": PNG})
    visitor.wait_for_numbers()
    assert visitor.page.evaluate(FOCUS)["name"] == "view"
    visitor.press("+", "ArrowLeft", "0", "o", "h", "h")
    threshold = reach(visitor, "threshold")[-1]
    visitor.press("ArrowRight", "ArrowRight", "PageDown")
    value = float(visitor["#threshold"].input_value())
    assert (threshold, value != 0.5) == ("threshold", True)
    reach(visitor, "save-mask")
    name, content = visitor.save(lambda: visitor.press("Enter"))
    assert name == "cell_mask.png"
    assert content == visitor.answer("cell.png", PNG, threshold=value).content


def test_tab_reaches_all_controls(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.drop(("a.png", PNG), ("b.png", PNG))
    visitor.wait_for_numbers()
    visitor["#view"].focus()
    reached = reach(visitor, "save-geojson")  # the last of the page
    visitor["#view"].focus()
    while focus := visitor.page.evaluate(FOCUS):
        reached.append(focus["name"])
        visitor.press("Shift+Tab")
    assert set(visitor.page.evaluate(CONTROLS)) - set(reached) == set()


def test_shortcuts_are_listed(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor["#example"].focus()
    visitor.press("?")
    dialog = visitor["#help-dialog"]
    dialog.get_by_text("Save the mask").wait_for()
    assert visitor.page.evaluate("document.activeElement.closest('dialog') !== null")
    visitor.press("a", "Escape")  # the shortcut behind it sleeps
    dialog.wait_for(state="hidden")
    assert visitor.page.evaluate(FOCUS)["name"] == "example"
    visitor["#help"].click()
    dialog.get_by_label("Single-key shortcuts").press("Space")
    visitor.press("Escape")
    visitor.press("?")
    assert not dialog.is_visible()


def test_on_a_phone(visit: Visit, bright: str) -> None:
    visitor = visit(bright, **PHONE)
    assert visitor.page.evaluate(OVERFLOWING) == []
    assert visitor.page.evaluate(COVERED) == []
    visitor.drop(("cell.png", PNG), ("a very long name, as microscopes give it, with all that was set.png", PNG))
    visitor.wait_for_numbers()
    visitor.press("n")
    visitor.wait_for_numbers()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") == 375
    assert visitor.page.evaluate(OVERFLOWING) == []
    assert visitor.page.evaluate(COVERED) == []
    visitor.page.evaluate("scrollTo(0, 0)")
    assert (visitor.mask(*CELLS.shape) == (CELLS > 127)).all()
    name, _ = visitor.save(visitor["#save-mask"].tap)
    assert name.endswith("_mask.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit: Visit, bright: str, scheme: str) -> None:
    visitor = visit(bright, color_scheme=scheme, reduced_motion="reduce")
    visitor.expected = {400}
    visitor.exactly("#service-text", "Ready · CPU").wait_for()
    ground = visitor.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 50) == (scheme == "dark")
    found = {"empty": findings(visitor)}
    visitor.drop(("cell.png", PNG), ("notes.txt", b"Dear diary"))
    visitor.wait_for_numbers()
    found["result"] = findings(visitor)
    visitor.press("?")
    visitor["#help-dialog"].wait_for()
    found["help"] = findings(visitor)
    visitor.press("Escape")
    visitor["#save-all"].click()
    found["zip"] = findings(visitor)
    visitor.press("Escape")
    visitor.press("n")
    visitor.wait_for("failed")
    found["error"] = findings(visitor)
    with visitor.held():
        visitor.drop(("new.png", PNG))
        visitor.wait_for("working")
        found["working"] = findings(visitor)
    visitor.wait_for_numbers()
    assert not any(found.values()), found


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_nothing_moves_where_that_is_not_wanted(visit: Visit, bright: str, motion: str) -> None:
    visitor = visit(bright, reduced_motion=motion)
    moving = "document.getAnimations().length"
    n = visitor.page.evaluate(moving)
    with visitor.held():
        visitor.drop(("cell.png", PNG))
        visitor.wait_for("working")
        assert (visitor.page.evaluate(moving) + n > 0) == (motion != "reduce")
    visitor.wait_for_numbers()


def test_the_page_is_small(visit: Visit, bright: str) -> None:
    """All files that it loads, with those of the first image, in bytes as they are sent."""
    visitor = visit(bright)
    loaded = {f"{visitor.url}/"}
    visitor.page.on("request", lambda request: loaded.add(request.url))
    visitor.page.reload()
    visitor["#example"].click()
    visitor.wait_for_numbers()
    names = {url.rpartition("/")[2] for url in loaded}
    assert {"", "app.js", "regions.js", "style.css", "example.png"} <= names
    files = loaded - {f"{visitor.url}/{name}" for name in ("health", "training", "segment")}
    assert sum(httpx.get(url).num_bytes_downloaded for url in files) < 80_000


@pytest.mark.parametrize("ratio", [1, 2])
def test_a_window_of_another_size(visit: Visit, bright: str, ratio: int) -> None:
    """The mask stays on its image when the window changes, at any density of the screen."""
    visitor = visit(bright, device_scale_factor=ratio)
    visitor.drop(("cell.png", PNG))
    visitor.wait_for_numbers()
    for width, height in ((1280, 800), (700, 900), (1900, 500)):
        visitor.page.set_viewport_size({"width": width, "height": height})
        expected = picture(visitor.answer("cell.png", PNG).content) > 0
        assert (visitor.mask(*CELLS.shape) == expected).all()
        visitor.press("0")
        assert np.ptp(visitor.screen(), axis=(0, 1)).any()
