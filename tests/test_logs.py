"""The log."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Serve, png
from fastapi.testclient import TestClient

from service.logs import JsonLines, PlainLines, Style, configure
from unet import Predictor

Make = Callable[..., Path]
IMAGE = png(np.zeros((40, 30), np.uint8))


@contextmanager
def written(formatter: logging.Formatter | None = None) -> Iterator[Callable[[], list[str]]]:
    """Yields a function that returns the lines logged since, in the program's format."""
    file = StringIO()
    handler = logging.StreamHandler(file)
    handler.setFormatter(formatter or JsonLines())
    logger = logging.getLogger("service")
    before = logger.level
    logger.setLevel(logging.INFO)  # as in the program
    logger.addHandler(handler)
    try:
        yield lambda: file.getvalue().splitlines()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.mark.parametrize(("style", "begins"), [("json", '{"time": '), ("plain", "20")])
def test_the_format_is_a_setting(style: Style, begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)  # or it would be closed
    try:
        configure(style)
        root.info("hello")
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
    line = capsys.readouterr().out
    assert line.startswith(begins)
    assert "hello" in line


def test_one_line_for_a_request(client: TestClient) -> None:
    with written() as lines:
        answer = client.post("/segment?tta=false", content=IMAGE, headers={"X-Request-Id": "mine-1"})
    (line,) = map(json.loads, lines())
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(line.pop("time")) < timedelta(minutes=1)
    stages, ms = line.pop("stages_ms"), line.pop("ms")
    assert set(stages) == {"decode", "queue", "infer", "encode"}
    assert 0 < stages["infer"] <= ms
    assert line.pop("message").startswith("POST /segment 200 ")
    assert line == {
        "level": "info",
        "logger": "service.telemetry",
        "request_id": "mine-1",
        "client": "testclient",
        "method": "POST",
        "path": "/segment",  # without its query
        "status": 200,
        "bytes_in": len(IMAGE),
        "bytes_out": len(answer.content),
        "model_id": answer.headers["x-model-id"],
    }


def test_refusals_are_logged_and_probes_are_not(tmp_path: Path, serve: Serve) -> None:
    with serve(model=tmp_path / "none.pth", max_bytes=10) as client, written() as lines:
        for path in ("/health", "/health/live", "/metrics"):
            client.get(path)
        given = [
            client.get("/nothing"),
            client.post("/segment", content=b"x" * 11),
            client.post("/segment", content=b"x"),
        ]
    entries = [json.loads(line) for line in lines()]
    assert [(e["status"], e["level"]) for e in entries] == [(404, "info"), (413, "info"), (503, "warning")]
    assert [e["request_id"] for e in entries] == [answer.headers["x-request-id"] for answer in given]


@pytest.mark.parametrize("formatter", [JsonLines(), PlainLines()])
def test_no_request_can_break_a_line(client: TestClient, formatter: logging.Formatter) -> None:
    forged = "/%0A%0D%1B[2J%E2%80%A8%7B%22level%22:%22error%22%7D%00" + 2000 * "a"
    with written(formatter) as lines:
        answer = client.get(forged, headers={b"X-Request-Id": b"a\tb\x1b[2J"})
    assert len(answer.headers["x-request-id"]) == 32  # a new one
    (line,) = lines()
    assert line.isprintable()
    assert "\\r" in line
    assert "\\u001b" in line or "\\x1b" in line
    assert len(line) < 1500


def test_an_inference_error_is_logged_with_its_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread that computes for all requests."""

    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(Predictor, "compute", fail)
    with written() as lines:
        client.post("/segment", content=IMAGE, headers={"X-Request-Id": "mine-2"})
    failure, account = map(json.loads, lines())
    assert (failure["level"], failure["message"], failure["request_id"]) == ("error", "inference failed", "mine-2")
    assert failure["exception"].endswith("MemoryError: no memory")
    assert (account["level"], account["status"], account["request_id"]) == ("warning", 503, "mine-2")


def test_a_bug_is_logged_with_its_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.segment.decode", lambda *_, **__: {}["a\nmistake"])
    with written(PlainLines()) as lines:
        answer = client.post("/segment", content=IMAGE, headers={"X-Request-Id": "mine-3"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-3")
    assert lines()[0].endswith("ERROR   a bug in the service [mine-3]")
    assert lines()[1] == "    Traceback (most recent call last):"
    assert "    KeyError: 'a\\nmistake'" in lines()
    assert "POST /segment 500 " in lines()[-1]


def test_a_missing_model_file_is_logged_once(make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint()
    with serve(model=path, watch_s=1000) as client, written() as lines:
        path.unlink()
        for _ in range(3):
            client.app.state.slot.refresh()  # type: ignore[attr-defined]
    assert [json.loads(line)["message"] for line in lines()] == ["not served: best_model.pth: no such file"]


def test_a_client_that_goes_away_is_499(client: TestClient) -> None:
    messages: list[Any] = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)  # the client is gone

    scope = {"type": "http", "method": "POST", "path": "/segment", "query_string": b"", "headers": []}
    with written() as lines:
        asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    (line,) = map(json.loads, lines())
    assert (line["status"], line["bytes_in"], line["bytes_out"]) == (499, 4, 0)


def test_the_body_of_an_answer_to_head_is_not_counted(client: TestClient) -> None:
    with written() as lines:
        assert client.head("/nothing").status_code == 404
    assert json.loads(lines()[0])["bytes_out"] == 0


def test_a_long_client_name_from_a_proxy_is_cut(client: TestClient) -> None:
    """Lines above 4096 bytes of several processes would mix."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/nothing",
        "query_string": b"",
        "headers": [],
        "client": ("x" * 9999, 0),
    }

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    with written() as lines:
        asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert len(lines()[0]) < 1000


def test_the_program_writes_nothing_but_json_to_stdout(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--port", "0", "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        program = subprocess.Popen(
            [*command, "--model", str(trained / "best_model.pth")], stdout=log, stderr=subprocess.PIPE, text=True
        )
    try:
        assert program.stderr is not None
        url = next(line for line in program.stderr if "listening" in line).split()[-1]
        answer = httpx.post(f"{url}/segment", content=IMAGE, headers={"X-Request-Id": "mine-4"}, timeout=60)
        assert answer.status_code == 200
        program.send_signal(signal.SIGTERM)
        _, stderr = program.communicate(timeout=30)
    finally:
        program.kill()
    assert stderr == ""
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(entry.get("request_id") == "mine-4" for entry in entries) == 1
    said = [entry["message"] for entry in entries]
    assert any(text.startswith("serving model ") for text in said)
    assert "Application shutdown complete." in said  # uvicorn
    assert len({entry["time"] for entry in entries}) > 1


def test_plain_lines() -> None:
    record = logging.LogRecord("service", logging.WARNING, "", 0, "not served: %s", ("x.pth",), None)
    record.created = time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1))
    assert PlainLines().format(record) == "2026-01-31 12:00:00 WARNING not served: x.pth"
