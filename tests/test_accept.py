"""Content negotiation, gzip, and names of answers."""

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from typing import Any

import numpy as np
import pytest
from conftest import GREY, Make, Serve, pil, png
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.exceptions import HTTPException
from test_segment import problem

from service.accept import choose, takes_gzip, weights
from service.routes.segment import answer_name, disposition
from unet.imaging import read, write_tiff
from unet.outputs import KINDS, Answer

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOX_IMAGE = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
GENERATED = "application/geo+json"  # openapi-generator: the first type of all answers that has json in its name


@pytest.fixture
def client(make_checkpoint: Make, serve: Serve) -> Iterator[TestClient]:
    """A model that finds several objects in `IMAGE`."""
    with serve(model=make_checkpoint(bilinear=False)) as client:
        yield client


IMAGE = np.kron(GREY, np.ones((5, 5), np.uint8))


@pytest.mark.parametrize(
    ("header", "kind", "tiff"),
    [
        # what clients send without being told to
        *[("*/*", "mask", None), ("", "mask", None), (CHROME, "mask", None), (FIREFOX_IMAGE, "mask", False)],
        ("image/avif,image/webp,image/*,*/*;q=0.8", "mask", None),
        ("application/json, text/plain, */*", "mask", None),  # axios, Angular
        ("application/json, text/javascript, */*; q=0.01", "geojson", None),  # jQuery, dataType: "json"
        (GENERATED, "geojson", None),
        # what people ask for
        *[("application/json", "geojson", None), ("Application/JSON; charset=utf-8", "geojson", None)],
        *[("text/csv", "table", None), ("text/*", "table", None), ("application/zip", "rois", None)],
        *[("image/png", "mask", False), ("image/tiff", "mask", True), ("image/*", "mask", None)],
        ("image/png, image/tiff;q=0.9", "mask", False),
        ("image/png, application/problem+json", "mask", False),
        *[("application/octet-stream", "mask", None), ("application/octet-stream;q=0.5, text/csv", "table", None)],
        ("application/octet-stream, image/png, image/tiff, application/geo+json, text/csv", "mask", None),
        ("application/problem+json", "mask", None),
        ("text/csv;q=0.2, application/json;q=0.3", "geojson", None),
        ("text/csv;q=0.3, application/json;q=0.3, image/*;q=0.1", "geojson", None),
        ("application/json;q=0, application/*", "rois", None),
        ("image/*;q=0, */*", "geojson", None),
        ("text/html, text/csv;q=0.001", "table", None),
        # what nobody should send
        *[(",;,q=1,;q=0", "mask", None), ("json", "mask", None)],
        *[("text/csv;q=high, image/png;q=0.9", "table", False), ("text/csv;q=9, image/png;q=1.0", "mask", False)],
    ],
)
def test_accept_chooses_where_no_output_is_given(header: str, kind: str, tiff: bool | None) -> None:
    assert choose(header, None) == (KINDS[kind], tiff)


@pytest.mark.parametrize("header", ["*/*", "text/html, */*;q=0.1", "application/octet-stream", GENERATED, ""])
@pytest.mark.parametrize("output", KINDS)
def test_an_output_is_answered_to_whoever_takes_all_or_json(header: str, output: str) -> None:
    assert choose(header, output) == (KINDS[output], None)


@pytest.mark.parametrize(
    ("header", "output"),
    [
        *[("text/html", None), ("image/webp", None), ("*/*;q=0", None), ("application/json;q=0", None)],
        *[("text/csv", "mask"), ("image/png", "geojson"), ("application/json, text/csv", "mask")],
        *[("application/json, image/png;q=0", "mask"), ("application/json;q=0", "mask"), ("image/*;q=0,*/*", "mask")],
    ],
)
def test_406_where_nothing_fits(header: str, output: str | None) -> None:
    with pytest.raises(HTTPException) as refused:
        choose(header, output)
    assert refused.value.status_code == 406
    assert refused.value.detail == (
        "Accept: expected image/png or image/tiff (output=mask or probability or labels or overlay), text/csv "
        "(output=table), application/geo+json (output=geojson), application/zip (output=rois), found "
        f"{header!r}" + (f" with output={output}" if output else "")
    )


@given(st.text(st.characters(max_codepoint=255)), st.sampled_from([None, *KINDS]))
@settings(max_examples=500, deadline=None)
def test_any_header_is_an_answer_or_406(header: str, output: str | None) -> None:
    assert all(0 <= weight <= 1 for weight in weights(header).values())
    assert choose(f"{header}, */*", output)[0].name == (output or choose(f"{header}, */*", None)[0].name)
    with suppress(HTTPException):
        assert choose(header, output)[0].name in KINDS


def test_the_answers_that_accept_asks_for(client: TestClient) -> None:
    def post(accept: str, query: str = "") -> Any:
        return client.post(f"/segment{query}", content=png(IMAGE), headers={"Accept": accept})

    assert post("application/json").json()["type"] == "FeatureCollection"
    assert post("application/json").headers["content-type"] == "application/geo+json"
    table = post("text/csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert next(csv.reader(table.text.splitlines()))[:2] == ["file", "page"]
    assert zipfile.ZipFile(io.BytesIO(post("application/zip").content)).testzip() is None
    assert post("image/png").content == post("*/*").content
    assert post("application/json", "?output=mask").content == post("*/*").content
    assert "found 'text/html'" in problem(post("text/html"), 406)
    assert "with output=table" in problem(post("image/png", "?output=table"), 406)
    form = client.post("/segment", files={"file": png(IMAGE)}, data={"output": "table"}, headers={"Accept": "image/*"})
    assert "with output=table" in problem(form, 406)
    for answer in (post("*/*"), table):
        assert answer.headers["vary"] == "Accept, Accept-Encoding"


def test_accept_chooses_the_file_of_an_image_where_either_holds_it(client: TestClient) -> None:
    one, three = write_tiff([IMAGE]), write_tiff([IMAGE] * 3)
    mask = read(client.post("/segment", content=png(IMAGE)).content).pixels
    for data, query, accept, expected in (
        (png(IMAGE), "", "image/tiff", "image/tiff"),
        (one, "", "*/*", "image/tiff"),
        (one, "", FIREFOX_IMAGE, "image/png"),
        (one, "?output=labels", "image/png", "image/png"),
        (three, "", "image/png", "image/tiff"),  # a PNG has no pages
        (three, "?page=2", "image/png", "image/png"),
        (three, "?page=2", "image/tiff", "image/tiff"),
    ):
        answer = client.post(f"/segment{query}", content=data, headers={"Accept": accept})
        assert answer.headers["content-type"] == expected
        assert Image.open(io.BytesIO(answer.content)).get_format_mimetype() == expected
        if "output" not in query:
            np.testing.assert_array_equal(read(answer.content).pages[0], mask)


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        *[("gzip", True), ("gzip, deflate, br", True), ("*", True), ("GZIP;q=0.1", True), ("identity, *;q=0.5", True)],
        *[("", False), ("identity", False), ("gzip;q=0", False), ("gzip;q=0, *", False), ("br", False)],
    ],
)
def test_which_clients_take_gzip(header: str, taken: bool) -> None:
    assert takes_gzip(header) == taken


@pytest.mark.parametrize(
    ("output", "compressed"), [("geojson", True), ("table", True), ("rois", False), ("mask", False)]
)
def test_gzip_for_text_where_the_client_takes_it(client: TestClient, output: str, compressed: bool) -> None:
    def post(accept: str) -> tuple[str | None, bytes]:
        headers, url = {"Accept-Encoding": accept}, f"/segment?output={output}"
        with client.stream("POST", url, content=png(IMAGE), headers=headers) as answer:
            body = b"".join(answer.iter_raw())
        assert int(answer.headers["content-length"]) == len(body)
        return answer.headers.get("content-encoding"), body

    encoding, plain = post("identity")
    assert encoding is None
    encoding, body = post("br, gzip")
    assert encoding == ("gzip" if compressed else None)
    assert (gzip.decompress(body) if compressed else body) == plain


@pytest.mark.parametrize(
    ("upload", "kind", "media_type", "part", "expected"),
    [
        ("cell.tif", "mask", "image/tiff", None, "cell_mask.tif"),
        ("cell.png", "labels", "image/png", None, "cell_labels.png"),
        ("cell.ome.tif", "geojson", "application/geo+json", None, "cell.geojson"),
        ("cell.tif", "table", "text/csv", None, "cell_table.csv"),
        ("cell.tif", "rois", "application/zip", None, "cell_rois.zip"),
        ("cell.tif", "mask", "image/png", (7, 30), "cell_page7_mask.png"),
        ("cell.png", "mask", "image/png", (1, 1), "cell_mask.png"),
        ("../../etc/passwd", "mask", "image/png", None, "passwd_mask.png"),
        (r"C:\Users\me\a b.png", "mask", "image/png", None, "a b_mask.png"),
        ("a\r\nSet-Cookie: b.png", "mask", "image/png", None, "a__Set-Cookie: b_mask.png"),
        ("gnp\u202e.png", "mask", "image/png", None, "gnp__mask.png"),
        ("x" * 999 + ".png", "mask", "image/png", None, "x" * 200 + "_mask.png"),
        *[(name, "mask", "image/png", (2, 3), "") for name in ("", "folder/")],
    ],
)
def test_names_are_those_of_unet_segment(
    upload: str, kind: str, media_type: str, part: tuple[int, int] | None, expected: str
) -> None:
    assert answer_name(upload, KINDS[kind], Answer(b"", media_type), part) == expected


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("cell_mask.png", 'inline; filename="cell_mask.png"'),
        ("a b_mask.png", 'inline; filename="a b_mask.png"'),
        ('a"b_mask.png', "inline; filename=\"a_b_mask.png\"; filename*=UTF-8''a%22b_mask.png"),
        ("Zelle ü_mask.png", "inline; filename=\"Zelle __mask.png\"; filename*=UTF-8''Zelle%20%C3%BC_mask.png"),
        ("100%.geojson", "inline; filename=\"100_.geojson\"; filename*=UTF-8''100%25.geojson"),
    ],
)
def test_names_in_a_header(name: str, header: str) -> None:
    assert disposition(name) == header
    parsed = Message()
    parsed["Content-Disposition"] = header
    assert parsed.get_filename() in (name, re.sub(r"; filename\*.*", "", header)[18:-1])


@given(st.text())
@settings(max_examples=500, deadline=None)
def test_no_name_breaks_the_header(upload: str) -> None:
    name = answer_name(upload, KINDS["mask"], Answer(b"", "image/png"), None)
    assert not name or re.fullmatch(r'inline; filename="[^"\\]+"(; filename\*=UTF-8\'\'[\w.~%-]+)?', disposition(name))
    assert disposition(name).isascii()
    assert disposition(name).isprintable()


def test_the_name_of_an_upload(client: TestClient) -> None:
    def named(name: str, query: str = "") -> str | None:
        answer = client.post(f"/segment{query}", files={"file": (name, png(IMAGE))})
        return answer.headers.get("content-disposition")

    assert named("cell.png") == 'inline; filename="cell_mask.png"'
    assert named("cell.png", "?output=geojson&page=1") == 'inline; filename="cell.geojson"'
    assert named("日本.png", "?output=table").endswith("filename*=UTF-8''%E6%97%A5%E6%9C%AC_table.csv")  # type: ignore[union-attr]
    assert "content-disposition" not in client.post("/segment", content=png(IMAGE)).headers


def test_pages_may_read_the_headers(make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=make_checkpoint(), cors_origins=["https://a.org"]) as client:
        gif = pil(Image.fromarray(GREY), "GIF")
        answer = client.post("/preview", content=gif, headers={"Origin": "https://a.org"})
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"X-Pages", "Content-Disposition"} <= set(exposed)
