"""`unet-serve` as a program: start, graceful shutdown, exit status."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import picture, png, received, running

from service.__main__ import _listen, main
from trainer.data import sample


def test_the_program_starts_answers_and_stops(trained: Path) -> None:
    image, label = sample.generate(np.random.default_rng(5), 96)
    with running("--model", str(trained / "best_model.pth")) as (program, url):
        answer = httpx.post(f"{url}/segment", files={"file": png(image)}, timeout=60)
        assert answer.status_code == 200
        assert (picture(answer.content) == label).mean() > 0.9
        assert "server" not in answer.headers
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0


def test_a_signal_during_the_start_ends_the_program(tmp_path: Path) -> None:
    """Also as process 1 of a container, for which signals have no default action."""
    command = [sys.executable, "-m", "service", "--port", "0", "--model", str(tmp_path / "none.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        while not caught(program.pid, signal.SIGTERM):
            assert program.poll() is None
        program.send_signal(signal.SIGTERM)
        assert program.communicate(timeout=30)[0] == ""  # it was not listening yet
        assert program.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_an_import_that_catches_all_exceptions_ends_the_program(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As a library that tries optional imports does."""
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
    """Starts a request in a thread; returns the thread and a list for its answer."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/segment?tta=1", content=png(image), timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def wait_until_busy(client: httpx.Client) -> None:
    while "\nunet_in_flight 1.0\n" not in client.get("/metrics").text:
        pass


def test_after_a_signal_requests_in_flight_are_finished_and_others_refused(trained: Path) -> None:
    model = str(trained / "best_model.pth")
    with running("--model", model) as (program, url), httpx.Client(base_url=url) as client:
        thread, answers = asking(url, np.zeros((1200, 1200), np.uint8))
        wait_until_busy(client)
        program.send_signal(signal.SIGTERM)
        while "stopping" not in (refused := client.post("/segment", content=b"")).text:
            assert refused.status_code == 400  # the signal is still on its way
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert refused.headers["retry-after"]
        health = client.get("/health")  # load balancers stop sending requests
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        assert client.get("/health/live").status_code == 200
        thread.join()
        assert [answer.status_code for answer in answers] == [200]
        assert program.wait(timeout=30) == 0


def test_requests_that_are_not_finished_in_the_grace_period_are_ended(trained: Path) -> None:
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


def test_a_second_signal_stops_at_once(trained: Path) -> None:
    with (
        running("--model", str(trained / "best_model.pth"), "--grace-s", "1000") as (program, url),
        httpx.Client(base_url=url) as client,
    ):
        thread, answers = asking(url, np.zeros((4000, 4000), np.uint8))
        wait_until_busy(client)
        for _ in range(2):
            program.send_signal(signal.SIGINT)
            threading.Event().wait(0.2)  # signals that arrive together count as one
        assert program.wait(timeout=5) == 0
        thread.join()
        assert [answer.status_code for answer in answers] == [503]


def asking_for_much(url: str) -> socket.socket:
    """A connection with an answer of 2 MB, of which the client has read the first bytes and takes few at a time."""
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
    """Until no new connection is accepted."""
    with suppress(httpx.TransportError):
        while httpx.get(f"{url}/health/live").is_success:
            pass


@pytest.mark.slow
def test_an_answer_that_is_read_slowly_is_finished_after_a_signal(trained: Path) -> None:
    with running("--model", str(trained / "best_model.pth")) as (program, url), asking_for_much(url) as slow:
        program.send_signal(signal.SIGTERM)
        wait_until_closed(url)
        head, _, body = received(slow).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}\r\n".encode() in head
        assert program.wait(timeout=30) == 0


def test_a_lost_device_ends_the_program_with_an_error(trained: Path, tmp_path: Path) -> None:
    """After an error in a CUDA kernel nothing works until a new process is started."""
    code = (
        "import sys, service.queue, unet; from service.__main__ import main\n"
        "unet.Predictor.compute = lambda *_: 1 / 0; service.queue.answers = lambda _: False\n"
        f"sys.exit(main(['--model', {str(trained / 'best_model.pth')!r}, '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "inference failed" in done.stdout) == (1, True)


def ends(argv: list[str]) -> object:
    """The exit status of a program that does not start."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    return stopped.value.code


def test_a_taken_port_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert ends(["--port", str(taken.getsockname()[1])]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"unet-serve: error: cannot listen on 127.0.0.1:\d+: .* in use; expected .* a free port\n", printed
    )


def test_an_invalid_address_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["--host", "127.0.0..1", "--port", "0"]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(r"unet-serve: error: cannot listen on 127.0.0..1:0: not a name; expected .*\n", printed)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_program_prints_its_address_and_device(
    host: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: None)
    monkeypatch.setattr("service.server.serve", lambda _, listener: listener.close() or 0)
    assert main(["--host", host, "--port", "0"]) == 0
    printed = capsys.readouterr().err
    assert re.search(r"^device    \S.* \(no GPU can be used here\)$", printed, re.M)
    assert re.search(rf"^listening on http://{re.escape(shown)}:\d+$", printed, re.M)


def test_answers_are_not_delayed_by_nagles_algorithm() -> None:
    """Connections inherit the option of their listener; without it an answer takes 40 ms more."""
    with _listen("127.0.0.1", 0, 1) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_of_one_line(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["--device", device]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"unet-serve: error: --device {device}: expected auto, cpu")
    assert printed.count("\n") == 1
