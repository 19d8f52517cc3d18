"""`unet-serve --workers 2`: several processes on one port, which are one service to those who ask."""

import os
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import png, running
from prometheus_client.parser import text_string_to_metric_families

from service.__main__ import main

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="processes are counted as Linux shows them"
)

Make = Callable[..., Path]


def workers(parent: int) -> set[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in command(int(pid))}


def command(pid: int) -> bytes:
    """Empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until


def ask(url: str, image: bytes | None = None) -> httpx.Response:
    """On a connection of its own, patiently."""
    with httpx.Client(timeout=60, transport=httpx.HTTPTransport(retries=5)) as client:
        return client.get(url) if image is None else client.post(url, content=image)


def counted(url: str, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(ask(f"{url}/metrics").text)
    return sum(s.value for f in families for s in f.samples if s.name == name and s.labels.items() >= labels.items())


def loaded(url: str) -> float:
    """How many processes have become ready so far."""
    return counted(url, "unet_model_reloads_total", outcome="loaded")


def test_they_share_the_requests_and_count_together(make_checkpoint: Make) -> None:
    image = png(np.zeros((40, 30), np.uint8))
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        wait_until(lambda: loaded(url) == 2)
        for _ in range(20):
            assert ask(f"{url}/segment", image).status_code == 200
        for _ in range(4):  # whoever answers
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
def test_what_is_in_flight_at_one_is_known_to_all_until_it_dies(make_checkpoint: Make) -> None:
    begun = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url), ExitStack() as stack:
        wait_until(lambda: loaded(url) == 2)
        one = stack.enter_context(httpx.Client(timeout=60))  # a connection that is kept: the same one answers
        for _ in range(16):  # they are dealt out: each has some
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)))
            slow.sendall(begun)
        wait_until(lambda: "unet_in_flight 16.0" in one.get(f"{url}/metrics").text)
        both = workers(program.pid)
        os.kill(min(both), signal.SIGKILL)
        wait_until(lambda: len(workers(program.pid) - {min(both)}) == 2)
        assert 0 < counted(url, "unet_in_flight") < 16


@pytest.mark.slow
def test_one_that_dies_is_replaced_and_what_it_counted_stays(make_checkpoint: Make) -> None:
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        wait_until(lambda: loaded(url) == 2)
        before = workers(program.pid)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(workers(program.pid) - {killed}) == 2)  # it was reaped before: its sockets are closed
        for _ in range(16):
            assert ask(f"{url}/health").status_code == 200
        assert loaded(url) == 2  # nobody has waited for the new one
        wait_until(lambda: loaded(url) == 3)
        assert len(before & workers(program.pid)) == 1
        assert counted(url, "unet_requests_total", route="/health", status="200") == 16


@pytest.mark.slow
def test_all_may_die_and_the_files_of_their_counts_may_be_swept_away(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        wait_until(lambda: loaded(url) == 2)
        before = workers(program.pid)
        assert list(temporary.glob("unet-serve-*/*.db"))
        shutil.rmtree(temporary)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(workers(program.pid) - before) == 2)
        assert ask(f"{url}/health").status_code == 200
        wait_until(lambda: loaded(url) == 2)


@pytest.mark.slow
def test_one_that_is_stuck_does_not_keep_it_from_ending(make_checkpoint: Make) -> None:
    with running("--workers", "2", "--grace-s", "0", "--model", str(make_checkpoint())) as (program, url):
        wait_until(lambda: loaded(url) == 2)
        both = workers(program.pid)
        os.kill(min(both), signal.SIGSTOP)
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 0
        assert not any(command(pid) for pid in both)


@pytest.mark.slow
def test_what_cannot_be_started_is_tried_again(make_checkpoint: Make) -> None:
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        wait_until(lambda: loaded(url) == 2)
        files = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (8, files[1]))
        killed = min(workers(program.pid))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not command(killed))
        threading.Event().wait(2.5)  # in which it fails
        assert program.poll() is None
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, files)
        wait_until(lambda: len(workers(program.pid)) == 2)


@pytest.mark.slow
@pytest.mark.parametrize("ready", [False, True])
def test_they_do_not_outlive_it(make_checkpoint: Make, ready: bool) -> None:
    with running("--workers", "2", "--model", str(make_checkpoint())) as (program, url):
        wait_until(lambda: loaded(url) == 2 if ready else len(workers(program.pid)) == 2)
        left = workers(program.pid)
        program.kill()
        program.wait()
        wait_until(lambda: not any(command(pid) for pid in left))


def test_a_port_of_others_is_not_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        assert main(["--workers", "2", "--port", str(other.getsockname()[1])]) == 2
    assert "address already in use; expected an address of this machine and a free port" in capsys.readouterr().err
