"""The page in a browser: images come in, their masks lie right, numbers and files are those of the API."""

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bright_model
import httpx
import numpy as np
import pytest
import tifffile
from bright_model import cells
from conftest import listening, picture, pil, png
from PIL import Image
from scipy import ndimage
from visitor import Visitor

from service.app import create_app
from service.settings import ServeSettings
from unet.outputs import KINDS

Visit = Callable[..., Visitor]

pytestmark = pytest.mark.browser

CELLS = cells(1)
OTHERS = [cells(2), cells(3)]
PNG = png(CELLS)


def tiff(*pages: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, photometric="minisblack", **options)
    return file.getvalue()


STACK = tiff(CELLS, *OTHERS)


def expect_numbers(visitor: Visitor, table: httpx.Response) -> None:
    """The numbers of the page become those of this table."""
    areas = [float(row["area_px"]) for row in csv.DictReader(io.StringIO(table.text))]
    median = float(np.median(areas)) if areas else 0
    number = f"{int(median + 0.5):,}" if median >= 100 else f"{median:g}"
    visitor.wait_for_numbers(len(areas), f"{number} px" if areas else "–")


def expect_answer(visitor: Visitor, name: str, data: bytes, shape: tuple[int, int], **options: Any) -> None:
    """The screen shows the mask and the numbers of this file."""
    assert visitor.says("#caption-name") == name
    expect_numbers(visitor, visitor.answer(name, data, output="table", **options))
    expected = picture(visitor.answer(name, data, **options).content) > 0
    assert 0 < expected.sum() < expected.size
    assert (visitor.mask(*shape) == expected).all()


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_comes_in_and_its_mask_lies_on_it(visit: Visit, bright: str, way: str) -> None:
    visitor = visit(bright)
    if way == "drop":
        visitor.drop(("cell.png", PNG))
    elif way == "paste":
        visitor.paste("cell.png", PNG)
    else:
        with visitor.page.expect_file_chooser() as chooser:
            visitor["#choose"].click()
        chooser.value.set_files({"name": "cell.png", "mimeType": "image/png", "buffer": PNG})
    expect_answer(visitor, "cell.png", PNG, CELLS.shape)
    assert (visitor.mask(*CELLS.shape) == (CELLS >= 128)).all()
    assert visitor.says("#caption-size") == "170 × 150"
    visitor.press("h")  # hides the mask
    assert (visitor.image(*CELLS.shape) == CELLS[..., None]).all()


def test_pages_of_a_stack_have_their_own_masks(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.drop(("stack.tif", STACK))
    expect_answer(visitor, "stack.tif", STACK, CELLS.shape, page=1)
    for keys, page in ((["."], 2), (["End"], 3), (["ArrowLeft"], 2), ([",", ".", ".", ",", ","], 1)):
        visitor["#page"].focus()
        visitor.press(*keys)
        expect_answer(visitor, "stack.tif", STACK, CELLS.shape, page=page)
        assert visitor.says("#page-text") == f"{page} of 3"
        visitor.press("h")
        assert (visitor.image(*CELLS.shape) == [CELLS, *OTHERS][page - 1][..., None]).all()


def test_a_page_that_was_about_to_be_turned_stays_when_another_image_is_shown(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.drop(("one.tif", STACK), ("other.tif", STACK))
    for key in "np":
        visitor.wait_for_numbers()
        visitor.press(key)
    visitor.wait_for_numbers()
    visitor.page.clock.install()
    visitor.press(".", "n")
    visitor.page.clock.run_for(1000)
    assert (visitor.says("#caption-name"), visitor.says("#page-text")) == ("other.tif", "1 of 3")
    visitor.press(".")
    visitor["#close"].click()
    visitor.press(".")
    visitor["#close"].click()
    visitor.page.clock.run_for(1000)
    visitor["#choose"].wait_for()


def test_the_slider_acts_at_once_and_is_then_counted_exactly(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.drop(("cell.png", PNG))
    visitor.wait_for_numbers()
    probability = picture(visitor.answer("cell.png", PNG, output="probability").content)
    box = visitor["#threshold"].bounding_box()
    assert box

    def with_the_mouse() -> None:
        visitor.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2)
        visitor.page.mouse.down()
        visitor.page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + box["height"] / 2, steps=7)
        visitor.page.mouse.up()

    for act in (with_the_mouse, lambda: visitor.press("k", "k", "j", "k")):
        before = visitor.says("#threshold-text")
        with visitor.held() as waiting:
            act()
            threshold = float(visitor.says("#threshold-text"))
            assert threshold != float(before)
            expected = probability > 255 * threshold
            assert (visitor.mask(*CELLS.shape) == expected).all()
            visitor.exactly("#certainty", "about").wait_for()
            visitor.exactly("#count", str(ndimage.label(expected)[1])).wait_for()
            waiting.expect(1)
            assert visitor.says("#certainty") == "about"
        expect_numbers(visitor, visitor.answer("cell.png", PNG, output="table", threshold=threshold))
    visitor["#threshold-reset"].click()
    expect_answer(visitor, "cell.png", PNG, CELLS.shape)


@pytest.mark.parametrize(("name", "data", "threshold"), [("cell.png", PNG, 0.3), ("week 3.ome.tif", STACK, None)])
def test_each_kind_is_saved_as_the_api_answers(
    visit: Visit, bright: str, name: str, data: bytes, threshold: float | None
) -> None:
    visitor = visit(bright)
    visitor.drop((name, data))
    visitor.wait_for_numbers()
    options = {} if threshold is None else {"threshold": threshold}
    if threshold:
        visitor["#threshold"].fill(str(threshold))
    for kind in KINDS:
        expected = visitor.answer(name, data, output=kind, **options)
        saved, content = visitor.save(visitor[f"#save-{kind}"].click)
        assert content == expected.content, kind
        assert expected.headers["content-disposition"] == f'inline; filename="{saved}"'


def test_several_files_are_saved_as_a_zip(visit: Visit, bright: str) -> None:
    from playwright.sync_api import expect

    visitor = visit(bright)
    visitor.expected = {400}
    other = png(OTHERS[0])
    files = [("cell.png", PNG), ("notes.txt", b"Dear diary"), ("stack.tif", STACK), ("cell.png", other)]
    visitor.drop(*files)
    rows = visitor["#thumbnails li"]
    for i, state in enumerate(("done", "failed", "done", "done")):
        expect(rows.nth(i)).to_have_attribute("data-state", state)
    for i, (name, data) in enumerate(files):
        rows.nth(i).get_by_role("button", name=name).first.click()
        if i == 1:
            assert visitor.says("#problem-title") == "This file cannot be read as an image"
        else:
            expect_answer(visitor, name, data, CELLS.shape, page=1)
    visitor["#save-all"].click()
    assert visitor.says("#zip-text") == "4 images, threshold 0.50"
    for kind in ("mask", "table", "geojson"):
        visitor[f"#zip-kinds [value={kind}]"].check()
    name, content = visitor.save(visitor["#zip-start"].click)
    assert name == "segmented.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    reason = visitor["#zip-problems li"].inner_text()
    assert reason.startswith("notes.txt: This file cannot")
    assert found.pop("not saved.txt").decode() == f"{reason}\r\n"
    expected = {}
    for name, data, number in (("cell.png", PNG, ""), ("stack.tif", STACK, ""), ("cell.png", other, " (2)")):
        for kind in ("mask", "table", "geojson"):
            answer = visitor.answer(name, data, output=kind)
            stem, dot, ending = answer.headers["content-disposition"].split('"')[1].partition(".")
            expected[f"{stem}{number}{dot}{ending}"] = answer.content
    assert found == expected


def test_images_of_the_same_name_are_told_apart_in_a_zip(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    other = png(OTHERS[0])
    visitor.drop(("cell.png", PNG), ("cell.png", other))
    visitor['#thumbnails [data-state="done"]'].nth(1).wait_for()
    visitor["#save-all"].click()
    visitor["#zip-kinds [value=table]"].uncheck()
    with visitor.page.expect_download() as download, visitor.held() as waiting:
        visitor["#zip-start"].click()
        waiting.expect(2)
        waiting.pop(1).continue_()  # the second is answered first
        visitor.exactly("#zip-state", "1 of 2 files").wait_for()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.read("cell_mask.png") == visitor.answer("cell.png", PNG).content
        assert archive.read("cell_mask (2).png") == visitor.answer("cell.png", other).content


def test_classes_are_shown_and_hidden_by_name(visit: Visit, tmp_path: Path) -> None:
    about = {
        "class_values": (0, 1, 7),
        "class_names": ("background", "nucleus", "<b>membrane</b>"),
        "class_colours": ((0, 0, 0), (200, 30, 60), (20, 90, 250)),
    }
    model = bright_model.save(tmp_path / "model.pth", edges=(0.4, 0.6), **about)
    with listening(create_app(ServeSettings(model=model, device="cpu"))) as (host, port):
        visitor = visit(f"http://{host}:{port}")
        visitor.drop(("cell.png", PNG))
        visitor.wait_for_numbers()
        labels = picture(visitor.answer("cell.png", PNG).content)
        assert set(np.unique(labels)) == {0, 1, 7}
        assert not visitor["#threshold-section"].is_visible()
        visitor["#opacity"].fill("1")
        colours = {1: (200, 30, 60), 7: (20, 90, 250)}

        def expect(*seen: int) -> None:
            expected = np.repeat(CELLS[..., None], 3, axis=2)
            for value in seen:
                expected[labels == value] = colours[value]
            assert (visitor.image(*CELLS.shape) == expected).all()

        expect(1, 7)
        visitor.page.get_by_label("nucleus").uncheck()
        expect(7)
        visitor.page.get_by_label("nucleus").check()
        visitor.page.get_by_label("<b>membrane</b>").uncheck()
        expect(1)
        visitor["#classes-all"].click()
        expect(1, 7)
        table = visitor.answer("cell.png", PNG, output="table")
        classes = [row["class"] for row in csv.DictReader(io.StringIO(table.text))]
        for name in ("nucleus", "<b>membrane</b>"):
            assert visitor["#classes li"].filter(has_text=name).locator("output").inner_text() == (
                f"{classes.count(name)} objects"
            )


def test_an_unusual_image_is_warned_of(visit: Visit, bright: str, rng: np.random.Generator) -> None:
    noise = png(rng.integers(0, 255, (100, 120, 3), dtype=np.uint8))
    visitor = visit(bright)
    visitor.drop(("cell.png", PNG))
    visitor.wait_for_numbers()
    assert not visitor["#warning"].is_visible()
    visitor.drop(("noise.png", noise))
    visitor.wait_for_numbers()
    warning = visitor.answer("noise.png", noise).headers["x-input-warning"]
    assert warning[1:] in visitor.says("#warning-text")
    visitor.press("p")  # back to the first
    visitor.wait_for_numbers()
    assert not visitor["#warning"].is_visible()


RGB = np.dstack([CELLS, 255 - CELLS, CELLS // 2])
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by a quarter


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("depth.tif", tiff(CELLS.astype(np.uint16) * 200)),
        ("depth.png", png(CELLS.astype(np.uint16) * 200)),
        ("float.tif", tiff(np.where(CELLS > 250, np.nan, CELLS / np.float32(255)))),
        ("alpha.png", pil(Image.fromarray(np.dstack([RGB, CELLS])), "PNG")),
        ("palette.png", pil(Image.fromarray(RGB).quantize(16), "PNG")),
        ("clear.png", pil(Image.fromarray(RGB).quantize(16), "PNG", transparency=3)),
        ("turned.jpg", pil(Image.fromarray(RGB), "JPEG", quality=95, exif=EXIF)),
        ("sizes.tif", tiff(CELLS, CELLS[:90, :130])),
        ("image.bmp", png(RGB, ".bmp")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_image_is_shown_as_the_service_reads_it(visit: Visit, bright: str, name: str, data: bytes) -> None:
    visitor = visit(bright)
    visitor.drop((name, data))
    visitor.wait_for("done")
    n_pages = int(visitor.answer(name, data, path="preview").headers["x-pages"])
    for page in range(1, n_pages + 1):
        preview = picture(visitor.answer(name, data, path="preview", page=page).content)
        expect_answer(visitor, name, data, preview.shape[:2], page=page)
        visitor.press("h")
        seen = visitor.image(*preview.shape[:2]).astype(int)
        difference = np.abs(seen - (preview if preview.ndim == 3 else preview[..., None]))
        assert difference.max() <= (12 if name.endswith("jpg") else 0)  # JPEGs are decoded in slightly different ways
        if page < n_pages:
            visitor["#page-on"].click()


def test_late_answers_go_to_their_images(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    files = [(f"{i}.png", png(np.roll(CELLS, 37 * i, axis=1))) for i in range(4)]
    with visitor.held() as waiting:
        visitor.drop(*files)
        for key in "nnpnnpp":
            waiting.expect(1)
            visitor.press(key, "k")
            waiting.pop().continue_()
    visitor["#threshold-reset"].click()
    for i, (name, data) in enumerate(files):
        visitor["#thumbnails .thumbnail"].nth(i).click()
        expect_answer(visitor, name, data, CELLS.shape)


def test_a_picture_that_comes_late_has_no_numbers_of_another(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.drop(("cell.png", PNG))
    visitor.wait_for_numbers()
    with visitor.held("preview"), visitor.held():
        visitor.drop(("stack.tif", STACK))
        assert (visitor.says("#caption-name"), visitor.says("#count")) == ("stack.tif", "–")
        while visitor.screen().any():  # the image before goes, too
            pass
        visitor.press("k")
        assert visitor.says("#count") == "–"
    visitor["#threshold-reset"].click()
    expect_answer(visitor, "stack.tif", STACK, CELLS.shape, page=1)
    with visitor.held("preview"):
        visitor.press(".")
        visitor.exactly("#count", "–").wait_for()
        while visitor.mask(*CELLS.shape).any():
            pass
    expect_answer(visitor, "stack.tif", STACK, CELLS.shape, page=2)


def test_a_mask_that_is_decoded_late_is_not_shown_once_another_is_wanted(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.page.evaluate("""() => {
        const decode = Response.prototype.arrayBuffer;
        const gate = new Promise((open) => (window.open_gate = open));
        Response.prototype.arrayBuffer = function () { return (window.last = gate.then(() => decode.call(this))); };
    }""")
    visitor.drop(("cell.png", PNG))
    visitor.wait_for("done")
    with visitor.held() as waiting:
        visitor["#tta"].press("Space")
        waiting.expect(1)
        visitor.page.evaluate("open_gate() ?? last")
        assert not visitor.mask(*CELLS.shape).any()
        assert visitor["#stage"].get_attribute("data-state") == "working"
    visitor.wait_for_numbers()
    assert visitor.mask(*CELLS.shape).any()


def test_pictures_that_are_not_shown_take_no_memory(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.page.evaluate("""() => {
        const create = createImageBitmap;
        window.bitmaps = [];
        window.createImageBitmap = async (blob) => bitmaps[bitmaps.push(await create(blob)) - 1];
    }""")
    visitor.drop(*((f"{i}.png", PNG) for i in range(3)))
    for key in "nnp":
        visitor.wait_for_numbers()
        visitor.press(key)
    visitor.wait_for_numbers()
    while visitor.page.evaluate("bitmaps.filter((bitmap) => bitmap.width).length") != 1:  # a closed one has none
        pass
    assert visitor.page.evaluate("bitmaps.length") == 6  # four times the shown one, two thumbnails


@pytest.mark.parametrize(
    "name", ['<img src=x onerror="alert(1)">.png', "it's 100 %; a\\b.png", "細胞 🔬.png", "x" * 300 + ".png"]
)
def test_names_are_only_names(visit: Visit, bright: str, name: str) -> None:
    visitor = visit(bright)
    visitor.page.on("dialog", lambda dialog: visitor.problems.append(dialog.message))
    visitor.drop((name, PNG), ("other.png", PNG))
    visitor.wait_for("done")
    assert visitor["#caption-name"].text_content() == name
    assert visitor["#thumbnails .name"].first.text_content() == name
    saved, content = visitor.save(visitor["#save-mask"].click)
    expected = visitor.answer(name, PNG)
    assert content == expected.content
    assert visitor["#live"].text_content() == f"Saved {saved}" or saved.endswith("_mask.png")
