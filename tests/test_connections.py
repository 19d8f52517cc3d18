"""What a client may do with a connection, and what the parser makes of what it sends: over real ones."""

import asyncio
import gc
import json
import random
import re
import socket
import threading
import tracemalloc
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from conftest import connect, drip, listening, received
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service import connections


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with as many bytes as the path says, without reading the request."""
    body = bytes(int(scope["path"][1:] or 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def wait_for_a_place(address: tuple[str, int]) -> None:
    """Until a connection is not closed at once."""
    for _ in range(300):
        with connect(address) as connection:
            try:
                connection.sendall(b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            except ConnectionError:
                continue
            if b"200 OK" in received(connection):
                return
        threading.Event().wait(0.1)
    raise AssertionError("no place became free in half a minute")


def test_a_silent_connection_is_closed() -> None:
    with listening(echo, idle_s=0.3) as address, connect(address) as connection:
        assert received(connection) == b""


def test_a_large_body_comes_in_small_pieces() -> None:
    pieces: list[int] = []

    async def count(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            pieces.append(len(message["body"]))
            more = message["more_body"]
        await echo(scope, receive, send)

    with listening(count) as address, connect(address) as connection:
        connection.sendall(b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n" + bytes(4_000_000))
        assert connection.recv(9) == b"HTTP/1.1 "
    assert sum(pieces) == 4_000_000
    assert max(pieces) <= 2 * connections.READ_SIZE  # two reads at most, before the server has them wait


@pytest.mark.parametrize("before", [b"", b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
def test_headers_that_drip_end_the_connection(before: bytes) -> None:
    with listening(echo, idle_s=0.3) as address, connect(address) as connection:
        connection.sendall(before + b"GET / HTTP/1.1\r\nX: ")
        assert drip(connection, b"x").count(b"HTTP/1.1 200") == (1 if before else 0)


def test_an_answer_that_nobody_reads_ends_the_connection() -> None:
    with listening(echo, idle_s=0.3, max_connections=1) as address, connect(address) as connection:
        connection.sendall(b"GET /50000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_for_a_place(address)
        assert len(received(connection)) < 50_000_000


def test_a_slow_reader_gets_its_answer() -> None:
    with listening(echo, idle_s=1) as address, connect(address) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.sendall(b"GET /8000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        n_bytes, pause = 0, threading.Event()
        while piece := connection.recv(2**17):
            n_bytes += len(piece)
            pause.wait(0.02)
        assert n_bytes > 8_000_000


def test_who_goes_on_sending_after_the_answer_is_cut_off() -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(b"POST /7 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b"200 OK" in drip(connection, b"400\r\n" + bytes(1024) + b"\r\n")


def test_who_ends_its_body_after_the_answer_may_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As who is refused with 503 does: the answer comes before a large upload has been sent."""
    monkeypatch.setattr(connections, "LINGER_S", 0.1)
    half = b" HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"

    async def work(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/00":  # until the time of the request before is over
            await asyncio.sleep(2 * connections.LINGER_S)
        await echo(scope, receive, send)

    with listening(work) as address, connect(address) as connection, connect(address) as other:
        connection.sendall(b"POST /0" + half)
        assert b"200 OK" in connection.recv(999)
        connection.sendall(b"cdPOST /00" + half)  # its time is over in the middle of the next body
        assert b"200 OK" in connection.recv(999)
        connection.sendall(b"cd")  # its time is over between two requests
        other.sendall(b"GET /00 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in other.recv(999)
        connection.sendall(b"POST /0" + half)
        assert b"200 OK" in connection.recv(999)


@pytest.mark.parametrize("line", [b"/7 HTTP/1.1\r\nConnection: close", b"/7 HTTP/1.0"])
def test_who_wants_no_other_answer_gets_this_one_while_it_sends(line: bytes) -> None:
    """As a proxy does, by default. Closed at once, its connection would be reset, and the answer lost."""
    with listening(echo) as address:
        for _ in range(5):
            with connect(address) as connection:
                connection.sendall(
                    b"POST " + line + b"\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n" + bytes(8_000_000)
                )
                answer = received(connection)  # to the end
                assert answer.startswith(b"HTTP/1.1 200")
                assert answer.endswith(bytes(7))


def test_what_was_not_read_of_a_request_is_not_kept() -> None:
    """As the beginning of a refused upload, by each of many that keep their connections."""
    request = b"POST /0 HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + bytes(60_000)
    with listening(echo) as address, ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for _ in range(50):
            connection = stack.enter_context(connect(address))
            connection.sendall(request)
            assert b"200 OK" in connection.recv(999)
        assert tracemalloc.get_traced_memory()[0] < 25 * 60_000


def test_connections_at_and_above_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    refused: list[int | None] = []
    with (
        listening(echo, max_connections=2, on_refused=refused.append) as address,
        connect(address) as one,
        connect(address) as two,
    ):
        for connection in (one, two):
            connection.sendall(b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in connection.recv(999)
        for _ in range(20):
            with connect(address) as three:
                assert received(three) == b""
        assert refused == [None] * 20
        said = [record.getMessage() for record in caplog.records if record.name == "service.connections"]
        assert 1 <= len(said) < 20  # one a second
        assert said[0] == "2 connections are open, as many as may be: more are closed"
        one.close()
        wait_for_a_place(address)


def test_headers_without_end_are_refused_before_they_fill_the_memory() -> None:
    with listening(echo, max_header_bytes=4096) as address, connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        said = drip(connection, b"x" * 512)
    assert said.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in said


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /3 HTTP/1.1\r\n\r\n", 400),  # has no Host
        (b"GET /3 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),  # smuggles
        (b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),  # is TLS
        (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ],
)
def test_what_is_no_request_is_a_problem_too(request_: bytes, status: int) -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(request_)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["status"] == status


def test_a_body_that_breaks_during_its_answer_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def answer_early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with listening(answer_early) as address, connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while b"so far" not in connection.recv(999):
            pass
        connection.sendall(b"no length\r\n")
        assert received(connection) == b""
    assert not [record for record in caplog.records if record.exc_info]


def test_blanks_around_a_header_are_none_of_it() -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(b"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:  chunked \r\n\r\n0\r\n\r\n")
        assert b"200 OK" in connection.recv(999)


def test_what_follows_a_request_is_not_answered_in_its_place() -> None:
    answered = threading.Event()

    async def later(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.to_thread(answered.wait, 30)
        await echo(scope, receive, send)

    with listening(later) as address, connect(address) as connection:
        connection.sendall(b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\nno request at all\r\n\r\n")
        said = received(connection)
        answered.set()
    assert said == b""


def test_requests_that_do_not_wait_are_answered_in_turn() -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(
            b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nabGET /22 HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        connection.sendall(b"GET /333 HTTP/1.0\r\n\r\n")
        answers = received(connection).split(b"HTTP/1.1 200 OK")[1:]
    assert [len(answer.partition(b"\r\n\r\n")[2]) for answer in answers] == [1, 22, 333]


def test_requests_that_run_ahead_of_their_answers_take_no_memory() -> None:
    request, n = b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n", 20_000
    answers: list[bytes] = []
    most = 0
    with listening(echo) as address, connect(address) as connection:
        reader = threading.Thread(target=lambda: answers.append(received(connection)))
        reader.start()
        for _ in range(n // 1000):
            connection.sendall(1000 * request)
            most = max(most, sum(type(each) is RequestResponseCycle for each in gc.get_objects()))
        connection.sendall(b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        reader.join()
    assert answers[0].count(b"HTTP/1.1 200 OK") == n + 1
    assert most < 500


def test_what_follows_a_body_is_no_header_and_has_an_end() -> None:
    seen: list[Any] = []

    async def read(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            seen.append(scope["headers"])
            await echo(scope, receive, send)

    head = b"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    with listening(read, max_header_bytes=4096) as address:
        with connect(address) as connection:
            connection.sendall(head + b"X-Api-Key: k\r\n\r\n")
            assert b"200 OK" in connection.recv(999)
        with connect(address) as connection:
            connection.sendall(head)
            assert drip(connection, b"X: " + b"x" * 500 + b"\r\n").startswith(b"HTTP/1.1 431 ")
    assert seen == [[(b"host", b"x"), (b"transfer-encoding", b"chunked")]]


@pytest.mark.parametrize("pieces", [1, 2])
def test_an_upgrade_that_is_offered_is_declined(pieces: int) -> None:
    """As `curl --http2` does."""
    bodies: list[bytes] = []

    async def read(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        bodies.append(body)
        await echo(scope, receive, send)

    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    head = b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n" + offer + b"\r\n"
    with listening(read) as address, connect(address) as connection:
        for piece in ([head + b"abcd"], [head + b"ab", b"cd"])[pieces - 1]:
            connection.sendall(piece)
            threading.Event().wait(0.1)  # so that it comes by itself
        assert b"200 OK" in connection.recv(999)
        connection.sendall(b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in received(connection)
    assert bodies == [b"abcd", b""]


def test_a_thousand_offers_at_once_are_declined(caplog: pytest.LogCaptureFixture) -> None:
    offer = b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    last = b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(999 * offer + last)
        assert received(connection).count(b"HTTP/1.1 200 OK") == 1000
    assert not [record for record in caplog.records if record.exc_info]


def test_what_is_no_request_is_answered_like_one(caplog: pytest.LogCaptureFixture) -> None:
    """With what every answer has, and a line in the log."""
    refused: list[int | None] = []
    with (
        caplog.at_level("INFO"),
        listening(echo, on_refused=refused.append) as address,
        connect(address) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a b/c\r\n\r\n")
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["detail"] == "expected an HTTP/1.1 request, found: a Host header that names no host"
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers.keys() >= {b"date", b"x-request-id", b"content-length"}
    (record,) = [record for record in caplog.records if record.name == "service.connections"]
    assert record.__dict__["request_id"] == headers[b"x-request-id"].decode()
    assert record.__dict__["fields"] == {"client": "127.0.0.1", "status": 400}
    assert refused == [400]


@pytest.mark.parametrize("host", ["x", "x:80", "[::1]:80", "a-b.example", "10.0.0.1", ""])
def test_hosts_that_are_some(host: str) -> None:
    with listening(echo) as address, connect(address) as connection:
        connection.sendall(f"GET /3 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert received(connection).startswith(b"HTTP/1.1 200")


def test_requests_that_are_damaged_at_random_are_answered_or_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    requests = [
        b"GET /3?a=b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
        b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        b"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: v\r\n\r\n",
        b"POST /3 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    ]
    pieces = [b"\r\n", b"\n", b"\0", b":", b" ", b"\xff", b"%", b"CONNECT ", b"0\r\n\r\n", b"ffffffffffffffff\r\n"]
    pieces += [b"HTTP/1.1", b"Host: y\r\n", b"Content-Length: 3\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n"]

    async def three(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            await echo(scope | {"path": "/3"}, receive, send)

    rng, statuses = random.Random(0), Counter[bytes]()  # noqa: S311
    with listening(three) as address:
        for _ in range(400):
            sent = bytearray(b"".join(rng.choices(requests, k=rng.randint(1, 3))))
            for _ in range(rng.randint(0, 4)):
                at = rng.randrange(len(sent))
                sent[at : at + rng.randint(0, 9)] = rng.choice(pieces) if rng.random() < 0.8 else b""
            with connect(address) as connection, suppress(OSError):  # cut off before it was sent
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                statuses.update(re.findall(rb"HTTP/1.1 (\d+) ", received(connection)))
        assert httpx.get(f"http://127.0.0.1:{address[1]}/3").content == bytes(3)
    assert set(statuses) <= {b"100", b"200", b"400", b"501"}
    assert min(statuses[b"200"], statuses[b"400"]) > 50
    assert not [record for record in caplog.records if record.exc_info]
