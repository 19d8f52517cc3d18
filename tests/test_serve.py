"""`unet-serve` as a program: it starts, answers and stops."""

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from conftest import picture, png, received, running

from service.__main__ import _listen, main
from trainer.data import sample


def test_it_starts_answers_and_stops(trained: Path) -> None:
    image, label = sample.generate(np.random.default_rng(5), 96)
    with running("--model", str(trained / "best_model.pth")) as (program, url):
        answer = httpx.post(f"{url}/segment", files={"file": png(image)}, timeout=60)
        assert answer.status_code == 200
        assert (picture(answer.content) == label).mean() > 0.9
        assert "server" not in answer.headers
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0


def test_told_to_stop_while_it_starts_it_does(tmp_path: Path) -> None:
    """Process 1 of a container does not, unless it says so: to that, a signal does nothing by itself."""
    command = [sys.executable, "-m", "service", "--port", "0", "--model", str(tmp_path / "none.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        while not caught(program.pid, signal.SIGTERM):
            assert program.poll() is None
        program.send_signal(signal.SIGTERM)
        assert program.communicate(timeout=30)[0] == ""  # it had not come to where it listens
        assert program.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_during_an_import_that_catches_everything_it_does(tmp_path: Path, number: signal.Signals) -> None:
    """As a library does that tries whether another one is there."""
    (tmp_path / "fastapi.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n    pass\nimport gone\n"
    )
    command = [sys.executable, "-m", "service", "--port", "0"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def caught(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    mask = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(mask, 16) >> number - 1 & 1)


def asking(url: str, image: np.ndarray) -> tuple[threading.Thread, list[httpx.Response]]:
    """A request under way in a thread, and where its answer will be."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/segment?tta=1", content=png(image), timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def wait_until_busy(client: httpx.Client) -> None:
    while "\nunet_in_flight 1.0\n" not in client.get("/metrics").text:
        pass


def test_told_to_stop_it_finishes_what_is_in_flight_and_refuses_the_rest(trained: Path) -> None:
    model = str(trained / "best_model.pth")
    with running("--model", model) as (program, url), httpx.Client(base_url=url) as client:
        thread, answers = asking(url, np.zeros((1200, 1200), np.uint8))
        wait_until_busy(client)
        program.send_signal(signal.SIGTERM)
        while "stopping" not in (refused := client.post("/segment", content=b"")).text:
            assert refused.status_code == 400  # the signal is still on its way
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert refused.headers["retry-after"]
        health = client.get("/health")  # so that a load balancer sends nobody any more
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        assert client.get("/health/live").status_code == 200
        thread.join()
        assert [answer.status_code for answer in answers] == [200]
        assert program.wait(timeout=30) == 0


def test_told_to_stop_it_does_not_wait_for_ever(trained: Path) -> None:
    model = str(trained / "best_model.pth")
    with (
        running("--model", model, "--grace-s", "0") as (program, url),
        httpx.Client(base_url=url) as client,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as slow,
    ):
        slow.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\n")
        wait_until_busy(client)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0
        head, _, body = received(slow).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"x-request-id" in head.lower()
        assert b"stopped before this was done" in body


@pytest.mark.parametrize("times", [2, 3])
def test_told_more_than_once_it_stops_at_once(trained: Path, times: int) -> None:
    with (
        running("--model", str(trained / "best_model.pth"), "--grace-s", "1000") as (program, url),
        httpx.Client(base_url=url) as client,
    ):
        thread, answers = asking(url, np.zeros((4000, 4000), np.uint8))
        wait_until_busy(client)
        for _ in range(times):
            program.send_signal(signal.SIGINT)
            threading.Event().wait(0.2)  # the system makes one of those that come together
        assert program.wait(timeout=5) == 0
        thread.join()
        assert [answer.status_code for answer in answers] == [503]


def asking_for_much(url: str) -> socket.socket:
    """An answer of 2 MB is under way to who has read its first bytes, and takes no more than a few at a time."""
    noise = png(np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8))
    slow = socket.socket()
    slow.settimeout(60)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    slow.connect(("127.0.0.1", httpx.URL(url).port))
    head = f"Host: x\r\nContent-Type: image/png\r\nContent-Length: {len(noise)}"
    slow.sendall(f"POST /segment?output=probability HTTP/1.1\r\n{head}\r\n\r\n".encode() + noise)
    assert slow.recv(9) == b"HTTP/1.1 "
    return slow


def wait_until_closed(url: str) -> None:
    """Until nobody is let in any more; each asks with a connection of its own."""
    with suppress(httpx.TransportError):
        while httpx.get(f"{url}/health/live").is_success:
            pass


def test_told_to_stop_it_waits_for_who_reads_slowly(trained: Path) -> None:
    with running("--model", str(trained / "best_model.pth")) as (program, url), asking_for_much(url) as slow:
        program.send_signal(signal.SIGTERM)
        wait_until_closed(url)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(timeout=2)
        head, _, body = received(slow).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}\r\n".encode() in head
        assert program.wait(timeout=30) == 0


def test_told_again_it_does_not_wait_for_who_does_not_read(trained: Path) -> None:
    limits = ["--grace-s", "1000", "--idle-s", "1000"]
    with running("--model", str(trained / "best_model.pth"), *limits) as (program, url), asking_for_much(url):
        program.send_signal(signal.SIGTERM)
        wait_until_closed(url)
        assert program.poll() is None  # the answer is still on its way
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0


def test_who_comes_while_it_ends_does_not_keep_it(tmp_path: Path) -> None:
    limits = ["--grace-s", "1000", "--idle-s", "1000"]
    with running("--model", str(tmp_path / "none.pth"), *limits) as (program, url):
        assert httpx.get(f"{url}/health/live", timeout=60).is_success
        program.send_signal(signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port)):
            program.send_signal(signal.SIGTERM)
            threading.Event().wait(0.2)  # it is told and finds the connection in one turn of its loop
            program.send_signal(signal.SIGCONT)
            assert program.wait(timeout=30) == 0


@pytest.mark.timeout(90)
def test_who_hangs_up_gives_the_place_free(trained: Path) -> None:
    model = str(trained / "best_model.pth")
    image = png(np.zeros((4000, 4000), np.uint8))
    with (
        running("--model", model, "--max-in-flight", "1", "--timeout-s", "1000") as (_, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as impatient:
            head = f"Host: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}"
            impatient.sendall(f"POST /segment?tta=1 HTTP/1.1\r\n{head}\r\n\r\n".encode() + image)
            wait_until_busy(client)
        while client.post("/segment", content=png(np.zeros((32, 32), np.uint8))).status_code == 503:
            pass
        assert '\nunet_requests_total{route="/segment",status="499"} 1.0\n' in client.get("/metrics").text


def test_a_lost_device_ends_the_process_with_an_error(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an error in a kernel of CUDA: nothing works any more until a new process is started."""
    monkeypatch.setattr("unet.Predictor.compute", lambda *_: 1 / 0)
    monkeypatch.setattr("service.engine.answers", lambda _: False)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main(["--model", str(trained / "best_model.pth"), "--port", "0"]) == 1
        assert gc.get_freeze_count() > 10_000  # what is imported is not looked through while requests wait
    finally:
        gc.unfreeze()
        for each, handler in handlers.items():
            signal.signal(each, handler)


def test_the_limits_of_connections_are_settings(tmp_path: Path) -> None:
    limits = ["--idle-s", "2", "--max-header-bytes", "2048", "--max-connections", "2"]
    with running("--model", str(tmp_path / "none.pth"), *limits) as (_, url):
        port = int(url.rpartition(":")[2])
        assert httpx.get(f"{url}/health/live", headers={"X": "x" * 1500}, timeout=60).status_code == 200
        assert httpx.get(f"{url}/health/live", headers={"X": "x" * 2048}).status_code == 431
        first, second, third = (socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3))
        with first, second, third:
            assert third.recv(1) == b""  # at once
            first.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert first.recv(999).startswith(b"HTTP/1.1 200 ")
            assert second.recv(1) == b""  # after a while, as it has asked nothing
        with socket.create_connection(("127.0.0.1", port), timeout=30) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 2048)
            assert endless.recv(99).startswith(b"HTTP/1.1 431 ")
        counted = httpx.get(f"{url}/metrics").text
        assert "unet_connections_refused_total 1.0" in counted
        assert 'unet_requests_total{route="other",status="431"} 1.0' in counted


def test_a_taken_port_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"unet-serve: error: cannot listen on 127.0.0.1:\d+: .* in use; expected .* a free port\n", printed
    )


def test_no_folder_for_temporary_files_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", Mock(side_effect=FileNotFoundError))
    assert main(["--port", "0", "--workers", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "unet-serve: error: --workers: no folder for temporary files; expected one that can be written"
    )
    assert said.count("\n") == 1


def test_an_address_that_is_none_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "127.0.0..1", "--port", "0"]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(r"unet-serve: error: cannot listen on 127.0.0..1:0: not a name; expected .*\n", printed)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_it_says_where_it_is_and_what_it_computes_on(
    host: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("service.server.serve", lambda _, listener: listener.close() or 0)
    assert main(["--host", host, "--port", "0"]) == 0
    printed = capsys.readouterr().err
    assert re.search(r"^device    \S.* \(no CUDA GPU can be used here\)$", printed, re.M)
    assert re.search(rf"^listening on http://{re.escape(shown)}:\d+$", printed, re.M)


def test_answers_are_sent_at_once() -> None:
    """Connections have what their listener has; 40 ms of every answer hang on it."""
    with _listen("127.0.0.1", 0, 1) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_no_gpu_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
