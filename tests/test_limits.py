"""Limits of requests: sizes, speed and number, at each limit and above it."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Serve, connect, drip, listening, png, received

from service import middleware
from service.app import create_app
from service.settings import ServeSettings
from trainer.data import sample
from unet import Predictor
from unet.imaging import Limits, measure, write_tiff
from unet.prediction import Piece

Make = Callable[..., Path]
IMAGE, _ = sample.generate(np.random.default_rng(99), size=64)


@contextmanager
def service(trained: Path, **settings: Any) -> Iterator[tuple[str, int]]:
    model = trained / "best_model.pth"
    app = create_app(ServeSettings(model=model, device="cpu", **settings))
    with listening(app, idle_s=settings.get("idle_s", 10)) as address:
        assert httpx.get(f"http://127.0.0.1:{address[1]}/health", timeout=60).status_code == 200
        yield address


@pytest.fixture
def address(trained: Path) -> Iterator[tuple[str, int]]:
    """A service with one place and short deadlines."""
    with service(trained, max_bytes=50_000, max_in_flight=1, idle_s=0.5) as address:
        yield address


HEAD = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def is_free(address: tuple[str, int]) -> bool:
    """Whether the one place is free: a good request gets its answer."""
    return httpx.post(f"http://127.0.0.1:{address[1]}/segment", content=png(IMAGE), timeout=60).status_code == 200


@pytest.mark.parametrize(
    "before",
    [
        b"Content-Length: 40000\r\n\r\n",
        b"Content-Length: 40000\r\n\r\n" + bytes(2000),
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    ],
    ids=["from the beginning", "after a good beginning", "in chunks"],
)
def test_408_for_a_body_that_drips(address: tuple[str, int], before: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(HEAD + before)
        answer = drip(connection, b"1\r\nx\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"expected a KiB of the body in 0.5 s" in answer
    assert is_free(address)


def test_a_slow_but_steady_body_is_read(address: tuple[str, int]) -> None:
    body = png(IMAGE) + bytes(8192)
    with connect(address) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        pause = threading.Event()
        for start in range(0, len(body), 1024):
            connection.sendall(body[start : start + 1024])
            pause.wait(0.1)
        assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_413_comes_before_the_rest_of_a_body_without_end(address: tuple[str, int]) -> None:
    with connect(address) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = drip(connection, b"2710\r\n" + bytes(10_000) + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert is_free(address)


def test_413_for_an_announced_length_before_any_of_it(address: tuple[str, int]) -> None:
    for length in (b"50001", b"9" * 18):
        with connect(address) as connection:
            connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: " + length + b"\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "lie",
    [
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1e3\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    ],
)
def test_invalid_lengths_are_refused(address: tuple[str, int], lie: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(HEAD + lie)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 501")
    assert is_free(address)


def test_a_hang_up_during_the_upload_frees_the_place(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    form = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 40000\r\n\r\n--b\r\n"
    for rest in (b"Content-Length: 40000\r\n\r\nhalf a picture", form):
        with connect(address) as connection:
            connection.sendall(HEAD + rest)
        for _ in range(100):  # until the server knows of it
            if is_free(address):
                break
        else:
            raise AssertionError("the place is still taken")
    assert not [record for record in caplog.records if record.exc_info]


def test_a_hang_up_ends_the_computation(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the piece in hand."""
    begun, go_on = threading.Event(), threading.Event()
    computed: list[int] = []
    compute = Predictor.compute

    def held(self: Predictor, pieces: Sequence[Piece]) -> None:
        computed.append(len(pieces))
        begun.set()
        assert go_on.wait(30)
        compute(self, pieces)

    monkeypatch.setattr("service.queue.MAX_THREADS", 1)
    with service(make_checkpoint().parent) as address:
        monkeypatch.setattr(Predictor, "compute", held)

        def metrics() -> str:
            return httpx.get(f"http://127.0.0.1:{address[1]}/metrics").text

        body = png(IMAGE)
        with connect(address) as connection:
            head = HEAD.replace(b"/segment", b"/segment?tta=true")  # in eight pieces
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert begun.wait(30)
        while 'unet_requests_total{route="/segment",status="499"} 1.0' not in metrics():
            pass
        assert "unet_in_flight 0.0" in metrics()
        go_on.set()
        assert [is_free(address) for _ in range(3)] == 3 * [True]
    assert computed == 4 * [1]


def test_503_when_all_places_are_taken_and_200_when_one_is_free_again(trained: Path) -> None:
    with service(trained, max_in_flight=2) as address:
        body = png(IMAGE)
        head = HEAD + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        with connect(address) as one, connect(address) as two:
            for connection in (one, two):
                connection.sendall(head)
                assert connection.recv(999).startswith(b"HTTP/1.1 100 ")  # it holds a place, and waits for the body
            refused = [httpx.post(f"http://127.0.0.1:{address[1]}/segment", content=body) for _ in range(4)]
            assert [answer.status_code for answer in refused] == [503] * 4
            # staggered, so that retries spread out
            assert [answer.headers["retry-after"] for answer in refused] == ["1", "2", "3", "1"]
            for connection in (one, two):
                connection.sendall(body)
                assert received(connection).startswith(b"HTTP/1.1 200 ")
        assert is_free(address)


def test_504_for_an_upload_that_is_steady_but_too_slow(trained: Path) -> None:
    with service(trained, timeout_s=0.5, idle_s=1) as address, connect(address) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        assert drip(connection, b"800\r\n" + bytes(2048) + b"\r\n").startswith(b"HTTP/1.1 504 ")


# ---- at, below and above each limit


def test_bytes(trained: Path, serve: Serve) -> None:
    data = png(IMAGE)
    for max_bytes, status in [(len(data) + 1, 200), (len(data), 200), (len(data) - 1, 413)]:
        with serve(model=trained / "best_model.pth", max_bytes=max_bytes) as client:
            for body in (data, iter([data[:9], data[9:]])):
                assert client.post("/segment", content=body).status_code == status


def test_bodies_of_all_requests_together(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that arrive slowly fill the memory for bodies; there is room for a third when one of them is gone."""
    monkeypatch.setattr(middleware, "MAX_BODIES", 0)
    with service(trained, max_bytes=100_000) as address:
        url = f"http://127.0.0.1:{address[1]}/segment"
        with connect(address) as first, connect(address) as second:
            for connection in (first, second):
                connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(99_000))
            refused = eventually(lambda: httpx.post(url, content=bytes(9_000)), 503)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert "large uploads" in refused.json()["detail"]
        assert eventually(lambda: httpx.post(url, content=png(IMAGE)), 200).status_code == 200


def eventually(ask: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """The first answer with this status, as the service may not have read or noticed everything yet."""
    return next(answer for answer in (ask() for _ in range(1000)) if answer.status_code == status)


def test_a_photograph_and_a_stack_are_within_the_default_limits() -> None:
    settings = ServeSettings()
    limits = Limits(settings.max_bytes, settings.max_pixels, settings.max_pages)
    photograph = np.zeros((6000, 8000, 3), np.uint8)
    assert measure(png(photograph, ".tif"), limits) == 48_000_000
    assert measure(write_tiff(np.zeros((100, 1024, 1024), np.uint16)), limits) == 100 * 2**20


def test_parts(trained: Path, serve: Serve) -> None:
    with serve(model=trained / "best_model.pth", max_parts=3) as client:

        def post(n_parts: int) -> httpx.Response:
            parts = [("tta", (None, "false")), *[("output", (None, "mask"))] * n_parts][: n_parts - 1]
            return client.post("/segment", files=[*parts, ("file", png(IMAGE))])

        assert [post(n).status_code for n in (1, 2, 3, 4, 1000)] == [200, 200, 200, 413, 413]
        assert "at most 3 parts" in post(4).text


def test_headers(serve: Serve, tmp_path: Path) -> None:
    with serve(model=tmp_path / "none.pth", max_header_bytes=2048) as client:

        def get(n_bytes: int) -> httpx.Response:
            return client.get("/health/live", headers={"X-Filler": "x" * n_bytes})

        below = next(n for n in range(2048, 0, -1) if get(n).status_code == 200)
        assert 2048 - 300 < below < 2048
        assert get(below + 1).status_code == 431
        assert get(below + 1).headers["content-type"] == "application/problem+json"
        assert get(20_000).status_code == 431
        assert client.get("/health/live", params={"x": "y" * 2048}).status_code == 431


def test_pages_and_pixels(trained: Path, serve: Serve) -> None:
    for n_pages, side, status in [(1, 10, 200), (2, 10, 200), (3, 10, 413), (1, 20, 200), (2, 15, 413), (1, 21, 413)]:
        with serve(model=trained / "best_model.pth", max_pages=2, max_pixels=400) as client:
            body = write_tiff(list(repeat(IMAGE[:side, :side], n_pages)))
            assert client.post("/segment", content=body).status_code == status


def test_too_many_waiting_large_images_are_refused(
    trained: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = png(np.zeros((1025, 1024), np.uint8))
    with serve(model=trained / "best_model.pth", max_in_flight=2) as client:
        monkeypatch.setattr(client.app.state.budget, "_max_waiting", 0)  # type: ignore[attr-defined]
        refused = client.post("/segment", content=large)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "images above 1048576 pixels are waiting already" in refused.json()["detail"]
        assert client.post("/segment", content=png(np.zeros((1024, 1024), np.uint8))).status_code == 200
        monkeypatch.undo()
        assert client.post("/segment", content=large).status_code == 200
