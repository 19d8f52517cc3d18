"""Who sends little does not wait for those who send much, and nobody waits for ever."""

import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service import loop, server
from service.loop import FairSelector
from service.settings import ServeSettings

N = 20


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "AT_ONCE", 4)


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Who sends, and who reads."""
    with ExitStack() as opened:
        made = [socket.socketpair() for _ in range(N)]
        for pair in made:
            for each in pair:
                opened.enter_context(each)
        yield made


def watching(pairs: list[tuple[socket.socket, socket.socket]]) -> FairSelector:
    selector = FairSelector()
    for _, reader in pairs:
        selector.register(reader, selectors.EVENT_READ)
    return selector


def test_the_smallest_comes_first(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with watching(pairs) as selector:
        for sender, _ in pairs[:-1]:
            sender.send(bytes(1000))
        pairs[-1][0].send(b"GET /health")
        ready = [key.fileobj for key, _ in selector.select(0)]
        assert len(ready) == 4
        assert ready[0] is pairs[-1][1]


def test_who_can_be_written_to_waits_for_nobody(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with watching(pairs) as selector:
        for sender, _ in pairs[:-1]:
            sender.send(bytes(10))
        pairs[-1][0].send(bytes(1000))  # its next request, while it has not taken the last answer yet
        selector.modify(pairs[-1][1], selectors.EVENT_READ | selectors.EVENT_WRITE)
        assert selector.select(0)[0][0].fileobj is pairs[-1][1]


def test_a_turn_is_not_counted_for_a_later_connection(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Which has the same number, or is the same here."""
    with watching(pairs) as selector:
        for sender, _ in pairs[:-1]:
            sender.send(bytes(1000))
        pairs[-1][0].send(b"GET /health")
        reader = pairs[-1][1]
        assert selector.select(0)[0][0].fileobj is reader
        assert reader not in {key.fileobj for key, _ in selector.select(0)}
        selector.register(selector.unregister(reader).fileobj, selectors.EVENT_READ)
        assert selector.select(0)[0][0].fileobj is reader


def test_turns_of_a_crowd_that_is_gone_do_not_count(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with watching(pairs) as selector:
        for _ in range(2):
            for sender, _ in pairs[:-1]:
                sender.send(bytes(1000))
            pairs[-1][0].send(b"GET /health")
            assert selector.select(0)[0][0].fileobj is pairs[-1][1]
            for _, reader in pairs:
                reader.recv(2000)
            assert selector.select(0) == []


def test_the_largest_get_their_turn_among_many_small_ones(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """The small ones never end: as much as is read of them comes again."""
    small, large = pairs[:10], pairs[10:]
    with watching(pairs) as selector:
        for sender, _ in small:
            sender.send(b"GET /health")
        for sender, _ in large:
            sender.send(bytes(1000))
        waiting = {reader for _, reader in large}
        for _ in range(N):
            for key, _ in selector.select(0):
                assert isinstance(key.fileobj, socket.socket)
                if len(key.fileobj.recv(2000)) == 1000:
                    waiting.discard(key.fileobj)
                else:
                    next(sender for sender, reader in small if reader is key.fileobj).send(b"GET /health")
        assert not waiting


def test_few_come_as_they_are(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with watching(pairs) as selector:
        assert selector.select(0) == []
        for sender, _ in pairs[:4]:
            sender.send(b"x")
        assert {key.fileobj for key, _ in selector.select(1)} == {reader for _, reader in pairs[:4]}


def test_the_service_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: found.append(self.config.get_loop_factory()))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert server.serve(ServeSettings(device="cpu"), listener) == 0
    assert found == [loop.event_loop]
