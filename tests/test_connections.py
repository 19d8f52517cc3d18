"""Connections: deadlines and limits of uvicorn as `unet-serve` configures it, over real sockets."""

import asyncio
import json
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from conftest import connect, drip, listening, received


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with as many bytes as the path says, without reading the request."""
    if scope["type"] == "http":
        body = bytes(int(scope["path"][1:] or 0))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


def status(connection: socket.socket) -> int:
    """The status of the next answer, which is read to its end."""
    with connection.makefile("rb") as file:
        found = int(file.readline().split()[1])
        length = 0
        while (line := file.readline()) != b"\r\n":
            name, _, value = line.lower().partition(b": ")
            length = int(value) if name == b"content-length" else length
        assert len(file.read(length)) == length
    return found


REQUEST = b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_silent_connection_is_closed() -> None:
    with listening(echo, idle_s=0.3) as address, connect(address) as connection:
        assert received(connection) == b""


def test_a_connection_is_kept_for_the_next_request_but_not_forever() -> None:
    with listening(echo, idle_s=0.5) as address, connect(address) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            assert status(connection) == 200
        assert received(connection) == b""


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first request", "second request"])
def test_headers_that_drip_end_the_connection(before: bytes) -> None:
    with listening(echo, idle_s=0.3) as address, connect(address) as connection:
        connection.sendall(before + b"GET / HTTP/1.1\r\nX: ")
        assert drip(connection, b"x").count(b"HTTP/1.1 200") == (1 if before else 0)


def test_headers_without_end_are_refused() -> None:
    with listening(echo, max_header_bytes=1024) as address, connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 2000)
        assert received(connection).startswith(b"HTTP/1.1 400")


def test_a_client_that_sends_on_after_its_answer_is_cut_off() -> None:
    with listening(echo, idle_s=0.3) as address, connect(address) as connection:
        connection.sendall(b"POST /7 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b"200 OK" in drip(connection, b"400\r\n" + bytes(1024) + b"\r\n")


def test_a_client_that_ends_its_body_after_the_answer_may_ask_again() -> None:
    """As a client that is refused with 503: the answer comes before its upload has been sent."""
    with listening(echo, idle_s=0.5) as address, connect(address) as connection:
        for _ in range(3):
            connection.sendall(b"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
            assert status(connection) == 200
            connection.sendall(b"cd")


def test_pipelined_requests_are_answered_in_turn() -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(
            b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" + REQUEST.replace(b"/3", b"/22")
        )
        connection.sendall(b"GET /333 HTTP/1.0\r\n\r\n")
        answers = received(connection).split(b"HTTP/1.1 200")[1:]
    assert [len(answer.partition(b"\r\n\r\n")[2]) for answer in answers] == [1, 22, 333]


def test_connections_above_the_limit_are_answered_with_503() -> None:
    with listening(echo, max_connections=3) as address, ExitStack() as stack:
        connections = [stack.enter_context(connect(address)) for _ in range(3)]
        connections[0].sendall(REQUEST)
        assert status(connections[0]) == 200
        with connect(address) as one_more:
            one_more.sendall(REQUEST)
            assert status(one_more) == 503


@pytest.mark.parametrize(
    "request_",
    [
        b"no request at all\r\n\r\n",
        b"GET /3 HTTP/1.1\r\n\r\n",
        b"GET /3 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /3 HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n",
        b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    ids=["text", "no Host", "two Hosts", "header name", "two lengths", "negative length", "another coding"],
)
def test_requests_that_are_not_http_are_refused(request_: bytes) -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 501")


def test_an_offer_to_upgrade_is_declined() -> None:
    """As `curl --http2` makes one."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n" + offer + b"\r\nabcd")
        assert status(connection) == 200
        connection.sendall(REQUEST)
        assert status(connection) == 200


def test_a_slow_answer_is_waited_for() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0.6)
            await echo(scope, receive, send)

    with listening(slow, idle_s=0.2) as address:
        assert httpx.get(f"http://127.0.0.1:{address[1]}/3").content == bytes(3)


def test_a_refusal_reaches_a_client_that_closes_and_still_sends(make_checkpoint: Any) -> None:
    """As a proxy does by default. Closed at once, its connection would be reset and the answer lost."""
    from service.app import create_app
    from service.settings import ServeSettings

    app = create_app(ServeSettings(device="cpu", model=make_checkpoint(), max_bytes=9_000_000))
    head = b"POST /segment HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    with listening(app) as address:
        for _ in range(5):
            with connect(address) as connection:
                connection.sendall(head + b"Content-Length: 8000000\r\n\r\n" + bytes(8_000_000))
                answer = received(connection)
                assert answer.startswith(b"HTTP/1.1 415")
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 415
