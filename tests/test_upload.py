"""Multipart forms: well-formed ones of every make, and hostile ones."""

import tempfile
import time

import httpx
import numpy as np
import pytest
from conftest import picture, png
from fastapi.testclient import TestClient

from trainer.data import sample

IMAGE, _ = sample.generate(np.random.default_rng(99), size=40)
FILE = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n'


def form(*parts: bytes, boundary: bytes = b"b", end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end


def post(client: TestClient, body: bytes, boundary: str = "boundary=b") -> httpx.Response:
    return client.post("/segment", content=body, headers={"Content-Type": f"multipart/form-data; {boundary}"})


DATA = FILE + b"\r\n" + png(IMAGE)


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (form(DATA), "boundary=b"),
        (form(DATA), 'charset=utf-8; boundary="b"'),
        (form(DATA, boundary=b"-" * 70), "boundary=" + "-" * 70),
        (form(DATA) + b"an epilogue", "boundary=b"),
        (form(b"content-disposition:form-data;name=output\r\n\r\nmask", DATA), "boundary=b"),
        (form(b"Content-Type: image/png\r\n" + DATA), "boundary=b"),
        (form(DATA.replace(b'="a.png"', b"*=utf-8''a.png")), "boundary=b"),
        (form(DATA.replace(b'; filename="a.png"', b"")), "boundary=b"),
        (form(DATA, end=b"--"), "boundary=b"),
        (form(DATA + b"\r\n--", boundary=b"b"), "boundary=b"),
    ],
    ids=[
        "plain",
        "quoted",
        "long boundary",
        "epilogue",
        "another field",
        "headers",
        "a name in UTF-8",
        "no file name",
        "no last line",
        "after the image",
    ],
)
def test_forms_that_are_right(client: TestClient, body: bytes, boundary: str) -> None:
    answer = post(client, body, boundary)
    assert answer.status_code == 200, answer.text
    assert picture(answer.content).shape == IMAGE.shape


@pytest.mark.parametrize("name", [b"", b'; filename="\xe7\xb4\xb0.png"'], ids=["none", "UTF-8"])
def test_a_header_that_hides_the_charset(client: TestClient, name: bytes) -> None:
    data = DATA.replace(b'; filename="a.png"', name).replace(png(IMAGE), "細".encode())
    assert post(client, form(data), 'boundary=b; a="').status_code == 400


@pytest.mark.parametrize(
    ("body", "boundary", "status"),
    [
        (form(DATA), "", 400),
        (form(DATA), "boundary=", 400),
        (form(DATA), "boundary=other", 400),
        (b"", "boundary=b", 400),
        (b"\0" * 1000, "boundary=b", 400),
        (form(DATA)[:-5], "boundary=b", 400),
        (form(DATA, end=b"\r\n"), "boundary=b", 400),
        (form(DATA[:-200], end=b"")[:-9], "boundary=b", 400),
        (form(png(IMAGE)), "boundary=b", 400),
        (form(FILE), "boundary=b", 400),
        (form(b"X-Filler: " + b"x" * 5000 + b"\r\n" + DATA), "boundary=b", 400),
        (form(b"\r\n" + png(IMAGE)), "boundary=b", 400),
        (form(FILE + b"\r\n"), "boundary=b", 400),
        (form(), "boundary=b", 422),
        (form(DATA.replace(b'"file"', b'"image"')), "boundary=b", 422),
        (form(DATA.replace(b'"file"', b'"fi\xff\xfe"')), "boundary=b", 422),
        (form(DATA, DATA), "boundary=b", 422),
        (form(b'Content-Type: multipart/mixed; boundary=c\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
              + form(DATA, boundary=b"c")), "boundary=b", 400),
        (form(*[DATA] * 5000), "boundary=b", 413),
    ],
    ids=[
        "no boundary", "empty boundary", "another boundary", "empty", "zeros", "no end",
        "no final end", "truncated", "no headers", "no blank line", "huge headers", "no name", "empty file", "no parts",
        "another name", "name of bytes", "two files", "nested", "thousands of parts",
    ],
)  # fmt: skip
def test_forms_that_are_not(client: TestClient, body: bytes, boundary: str, status: int) -> None:
    answer = post(client, body, boundary)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_form_is_never_written_to_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    answer = client.post("/segment", files={"file": png(IMAGE, ".bmp") + bytes(3 * 2**20)})
    assert answer.status_code == 200


@pytest.mark.parametrize("announced", [True, False], ids=["of a length", "in chunks"])
def test_a_large_body_is_put_together_in_order(client: TestClient, announced: bool) -> None:
    image = np.random.default_rng(3).integers(0, 256, (1100, 1100), dtype=np.uint8)
    body = form(FILE + b"\r\n" + png(image), end=b"--")  # without its last byte it has no end
    assert len(body) > 2**20
    pieces = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/segment", content=body if announced else pieces, headers=headers)
    assert answer.content == client.post("/segment", content=png(image)).content


def test_a_form_full_of_near_ends_takes_linear_time(client: TestClient) -> None:
    """Megabytes of what almost ends a part."""
    boundary = b"b" * 70
    near = b"\r\n--" + boundary[:-1]
    times = []
    for n in (10_000, 100_000):
        body = form(FILE + b"\r\n" + near * n, boundary=boundary)
        started = time.perf_counter()
        assert post(client, body, "boundary=" + boundary.decode()).status_code == 400
        times.append(time.perf_counter() - started)
    assert times[1] < 40 * times[0] + 1


def test_a_part_without_a_file_name_keeps_its_bytes(client: TestClient) -> None:
    """Also bytes that would be text in UTF-8."""
    image = np.full((32, 40, 3), (0x20, 0xA9, 0xC3), np.uint8)
    data = png(image, ".bmp")
    assert "é" in data.decode("utf-8")
    answer = post(client, form(FILE.replace(b'; filename="a.png"', b"") + b"\r\n" + data))
    assert answer.content == client.post("/segment", content=data).content
    assert answer.status_code == 200


def test_an_option_that_is_given_twice_is_refused(client: TestClient) -> None:
    """Only one of them would count."""
    said = "output: expected once, found twice"
    answer = client.post("/segment?output=mask&output=labels", content=png(IMAGE))
    assert (answer.status_code, answer.json()["detail"]) == (422, said)
    options = [b'Content-Disposition: form-data; name="output"\r\n\r\n' + kind for kind in (b"mask", b"labels")]
    answer = post(client, form(DATA, *options))
    assert (answer.status_code, answer.json()["detail"]) == (422, said)
    answer = client.post("/preview?page=1&page=1", content=png(IMAGE))
    assert answer.status_code == 422
