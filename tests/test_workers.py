"""`unet-serve --workers 2`: several processes on one port, which are one service to their clients."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import png, running, until
from prometheus_client.parser import text_string_to_metric_families

from service.__main__ import main

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes as Linux shows them")

Make = Callable[..., Path]
IMAGE = png(np.zeros((40, 30), np.uint8))


def workers(parent: int) -> set[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in command(int(pid))}


def command(pid: int) -> bytes:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def ask(url: str, image: bytes | None = None) -> httpx.Response:
    """A request on a connection of its own."""
    with httpx.Client(timeout=60, transport=httpx.HTTPTransport(retries=5)) as client:
        return client.get(url) if image is None else client.post(url, content=image)


def counted(url: str, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(ask(f"{url}/metrics").text)
    return sum(s.value for f in families for s in f.samples if s.name == name and s.labels.items() >= labels.items())


def loaded(url: str) -> float:
    """The number of processes that have become ready so far."""
    return counted(url, "unet_model_reloads_total", outcome="loaded")


@pytest.mark.slow
def test_workers_share_requests_and_metrics(make_checkpoint: Make) -> None:
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        until(lambda: loaded(url) == 2)
        for _ in range(20):
            assert ask(f"{url}/segment", IMAGE).status_code == 200
        for _ in range(4):  # whichever answers
            assert counted(url, "unet_requests_total", route="/segment", status="200") == 20
            assert counted(url, "unet_pixels_total") == 20 * 40 * 30
            assert counted(url, "unet_model_info") == 1
            assert counted(url, "unet_in_flight") == 0
        both = workers(program.pid)
        assert len(both) == 2
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 0
        assert not any(command(pid) for pid in both)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_counts_stay(make_checkpoint: Make) -> None:
    begun = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url), ExitStack() as stack:
        until(lambda: loaded(url) == 2)
        assert ask(f"{url}/segment", IMAGE).status_code == 200
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)))
        slow.sendall(begun)
        until(lambda: counted(url, "unet_in_flight") == 1)
        for n, pid in enumerate(sorted(workers(program.pid))):  # one of them holds the request
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not command(pid))
            assert ask(f"{url}/health").status_code == 200  # answered by the other one
            until(lambda n=n: loaded(url) == 3 + n)
        assert counted(url, "unet_in_flight") == 0
        assert counted(url, "unet_requests_total", route="/segment", status="200") == 1


@pytest.mark.slow
def test_requests_in_flight_are_finished_by_all_workers(make_checkpoint: Make) -> None:
    """Also when a terminal sends Ctrl-C to all processes, and the parent a signal to the workers."""
    head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(IMAGE)
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url), ExitStack() as stack:
        until(lambda: loaded(url) == 2)
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        connections = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        for connection in connections:
            connection.sendall(head + IMAGE[:9])
        until(lambda: counted(url, "unet_in_flight") == 8)
        for pid in (program.pid, *workers(program.pid)):
            os.kill(pid, signal.SIGINT)
        time.sleep(2)
        for connection in connections:
            connection.sendall(IMAGE[9:])
            assert connection.recv(99).startswith(b"HTTP/1.1 200")
        assert program.wait(30) == 0


@pytest.mark.slow
def test_workers_end_with_their_parent(make_checkpoint: Make) -> None:
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        until(lambda: loaded(url) == 2)
        left = workers(program.pid)
        program.kill()
        program.wait()
        until(lambda: not any(command(pid) for pid in left))


def test_a_port_in_use_is_not_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other, pytest.raises(SystemExit) as stopped:
        main(["--workers", "2", "--port", str(other.getsockname()[1])])
    assert stopped.value.code == 2
    assert "address already in use; expected an address of this machine and a free port" in capsys.readouterr().err
