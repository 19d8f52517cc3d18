"""`unet-serve` as a program: it starts, answers and stops."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import picture, png

from service.__main__ import main
from trainer import sample


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program on a free port, and its address. It may still be loading: who asks now, waits."""
    command = [sys.executable, "-m", "service", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stderr is not None
            lines = iter(program.stderr.readline, "")
            url = next(found[1] for line in lines if (found := re.search(r"listening on (http://\S+)", line)))
            yield program, url
        finally:
            program.kill()


def test_it_starts_answers_and_stops(trained: Path) -> None:
    image, label = sample.generate(np.random.default_rng(5), 96)
    with running("--model", str(trained / "best_model.pth")) as (program, url):
        answer = httpx.post(f"{url}/segment", files={"file": png(image)}, timeout=60)
        assert answer.status_code == 200
        assert (picture(answer.content) == label).mean() > 0.9
        assert "server" not in answer.headers
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0


def test_the_limits_of_connections_are_settings(tmp_path: Path) -> None:
    limits = ["--idle-s", "1", "--max-header-bytes", "2048", "--max-connections", "2"]
    with running("--model", str(tmp_path / "none.pth"), *limits) as (_, url):
        port = int(url.rpartition(":")[2])
        assert httpx.get(f"{url}/health/live", headers={"X": "x" * 1500}, timeout=60).status_code == 200
        assert httpx.get(f"{url}/health/live", headers={"X": "x" * 2048}).status_code == 431
        silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3)]
        for connection in silent:
            with connection:
                assert connection.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 2048)
            assert endless.recv(99).startswith(b"HTTP/1.1 400 ")


def test_a_taken_port_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"unet-serve: error: cannot listen on 127.0.0.1:\d+: .* in use; expected a free port\n", printed
    )


def test_no_gpu_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
