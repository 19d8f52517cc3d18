"""POST /preview, and one page of a stack from /segment, through a real client."""

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import GREY, RGB, Serve, picture, png
from fastapi.testclient import TestClient
from httpx import Response
from roifile import ImagejRoi
from test_segment import problem

from unet import Predictor
from unet.imaging import Limits, measure, read
from unet.outputs.overlay import to_rgb

Make = Callable[..., Path]
PAGES = [np.roll(np.kron(GREY, np.ones((5, 5), np.uint8)), 11 * i, axis=1) for i in range(3)]


def stack(pages: list[np.ndarray], **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, metadata=None, **options)
    return file.getvalue()


def described(pages: list[np.ndarray], axes: str) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack(pages), imagej=True, metadata={"axes": axes}, compression="zlib")
    return file.getvalue()


def shown(answer: Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return picture(answer.content)


@pytest.fixture
def viewer(serve: Serve, tmp_path: Path) -> Any:
    """The app without a model."""
    with serve(model=tmp_path / "none.pth") as client:
        yield client


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (GREY, 1),
        (RGB, 3),
        (GREY.astype(np.uint16) * 200, 1),
        (np.where(GREY > 9, GREY / 7, np.nan).astype(np.float32), 1),
        (np.dstack([GREY, GREY + 9]).astype(np.uint16), 1),
        (np.dstack([RGB, RGB, GREY]), 3),
    ],
    ids=["grey", "RGB", "16 bits", "floats", "2 channels", "7 channels"],
)
def test_a_preview_is_what_the_overlay_draws_on(viewer: TestClient, image: np.ndarray, channels: int) -> None:
    options = {"photometric": "minisblack", "planarconfig": "contig" if image.ndim == 3 else None}
    answer = viewer.post("/preview", content=stack([image], **options))
    expected = to_rgb(image)
    np.testing.assert_array_equal(shown(answer), expected if channels == 3 else expected[..., 0])
    assert answer.headers["x-pages"] == "1"
    assert answer.headers["server-timing"].startswith("queue;dur=")


@pytest.mark.parametrize("make", [stack, lambda pages: described(pages, "ZYX")])
def test_a_preview_of_each_page(viewer: TestClient, make: Any) -> None:
    data = make(PAGES)
    for number, page in enumerate(PAGES, 1):
        for answer in (
            viewer.post(f"/preview?page={number}", content=data),
            viewer.post("/preview", files={"file": data}, data={"page": str(number)}),
        ):
            np.testing.assert_array_equal(shown(answer), page)
            assert answer.headers["x-pages"] == "3"
    np.testing.assert_array_equal(shown(viewer.post("/preview", content=data)), PAGES[0])


@pytest.mark.parametrize("route", ["/preview", "/segment"])
def test_a_page_that_is_none(make_checkpoint: Make, serve: Serve, route: str) -> None:
    with serve(model=make_checkpoint()) as client:
        said = problem(client.post(f"{route}?page=4", content=stack(PAGES)), 422)
        assert said == "page: expected 1 to 3, found 4"
        assert problem(client.post(f"{route}?page=2", content=png(GREY)), 422) == "page: expected 1, found 2"
        for page in ("0", "-1", "1.5", "one", "", "1e3"):
            assert problem(client.post(f"{route}?page={page}", content=png(GREY)), 422).startswith("page: input should")
        assert client.post(f"{route}?page=1", content=png(GREY)).status_code == 200


def test_a_preview_has_the_limits_and_errors_of_segment(serve: Serve, tmp_path: Path) -> None:
    with serve(model=tmp_path / "none.pth", max_pixels=GREY.size, api_keys=["key"]) as client:
        headers = {"X-API-Key": "key"}
        problem(client.post("/preview", content=png(GREY)), 401)
        assert client.post("/preview", content=png(GREY), headers=headers).status_code == 200
        problem(client.post("/preview", content=png(PAGES[0]), headers=headers), 413)
        problem(client.post("/preview", content=b"no image", headers=headers), 400)
        problem(client.post("/preview", content=b"{}", headers=headers | {"Content-Type": "application/json"}), 415)
        said = problem(client.post("/preview?output=mask", content=png(GREY), headers=headers), 422)
        assert said == "output: expected page, found an unknown option"
        client.app.state.admission.stopping = True  # type: ignore[attr-defined]
        problem(client.post("/preview?output=mask", content=png(GREY), headers=headers), 503)  # not even looked at


@pytest.mark.parametrize("query", ["", "&output=probability", "&tta=true", "&threshold=0.3", "&output=labels"])
def test_a_page_of_a_stack_is_segmented_as_that_page_alone(make_checkpoint: Make, serve: Serve, query: str) -> None:
    with serve(model=make_checkpoint(bilinear=False)) as client:
        alone = client.post(f"/segment?{query}", content=stack(PAGES[1:2])).content
        answer = client.post(f"/segment?page=2{query}", content=stack(PAGES))
        np.testing.assert_array_equal(shown(answer), read(alone).pages[0])
        assert client.app.state.metrics.pixels._value.get() == 2 * PAGES[0].size  # type: ignore[attr-defined]


def test_a_page_with_a_class(make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint(n_classes=3)
    expected = Predictor.load(path, device="cpu").predict(PAGES[2], "probability", class_name="12")
    with serve(model=path) as client:
        answer = client.post("/segment?page=3&output=probability&class=12", content=stack(PAGES))
    np.testing.assert_array_equal(shown(answer), expected)


@pytest.mark.parametrize("axes", ["ZYX", "TYX", None])
def test_objects_of_a_page_keep_its_number_and_place(make_checkpoint: Make, serve: Serve, axes: str | None) -> None:
    path = make_checkpoint(bilinear=False)
    data = described(PAGES, axes) if axes else stack(PAGES)
    threshold = float(np.quantile(Predictor.load(path, device="cpu")(PAGES[1]), 0.8))
    with serve(model=path) as client:

        def answer(output: str, page: str = "") -> Response:
            url = f"/segment?output={output}&threshold={threshold}{page}"
            return client.post(url, files={"file": ("cell.tif", data)})

        features, alone = (answer("geojson", page).json()["features"] for page in ("", "&page=2"))
        assert alone == [each for each in features if each["properties"]["page"] == 2]  # ids, planes, all
        assert len(alone) > 1
        lines, few = (list(csv.reader(answer("table", page).text.splitlines())) for page in ("", "&page=2"))
        assert few == [line for line in lines if line[1] in ("page", "2")]
        regions, some = (zipfile.ZipFile(io.BytesIO(answer("rois", page).content)) for page in ("", "&page=2"))
        assert some.namelist() == [name for name in regions.namelist() if name.startswith("0002-")]
        for name in some.namelist():
            assert ImagejRoi.frombytes(some.read(name)) == ImagejRoi.frombytes(regions.read(name))


def test_limits_hold_for_what_is_decoded(serve: Serve, tmp_path: Path) -> None:
    data = stack([*PAGES, np.kron(PAGES[0], np.ones((2, 2), np.uint8))], compression="zlib")
    with serve(model=tmp_path / "none.pth", max_pixels=PAGES[0].size) as client:
        np.testing.assert_array_equal(shown(client.post("/preview?page=3", content=data)), PAGES[2])
        said = problem(client.post("/preview?page=4", content=data), 413)
        assert said == "expected at most 3000 pixels (--max-pixels), found 120 x 100 on page 4"
    with serve(model=tmp_path / "none.pth", max_pages=3) as client:
        problem(client.post("/preview?page=1", content=data), 413)
    assert measure(described(PAGES, "ZYX"), Limits(), 2) == PAGES[0].size


@pytest.mark.parametrize("make", [lambda: stack(PAGES, compression="zlib"), lambda: described(PAGES, "ZYX")])
def test_a_damaged_page_spoils_no_other(make_checkpoint: Make, serve: Serve, make: Any) -> None:
    data = bytearray(make())
    start = tifffile.TiffFile(io.BytesIO(data)).pages[1].dataoffsets[0]
    data[start : start + 9] = bytes(9)
    with serve(model=make_checkpoint()) as client:
        for route in ("/preview", "/segment"):
            problem(client.post(f"{route}?page=2", content=bytes(data)), 400)
            for number in (1, 3):
                assert client.post(f"{route}?page={number}", content=bytes(data)).status_code == 200
        np.testing.assert_array_equal(shown(client.post("/preview?page=3", content=bytes(data))), PAGES[2])
        problem(client.post("/segment", content=bytes(data)), 400)


def test_too_many_objects_are_not_listed(make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint(bilinear=False)
    threshold = float(np.quantile(Predictor.load(path, device="cpu")(PAGES[1]), 0.8))
    with serve(model=path, max_objects=1) as client:
        for output in ("table", "geojson", "rois"):
            url = f"/segment?output={output}&threshold={threshold}"
            assert "at most 1 objects to list (--max-objects)" in problem(client.post(url, content=png(PAGES[1])), 413)
