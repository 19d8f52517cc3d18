"""GET /training."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from fastapi.testclient import TestClient
from trainer_runs import arguments

from service.routes import training

NONE = {
    "state": "none",
    "epoch": None,
    "epochs": None,
    "done": None,
    "seconds": None,
    "seconds_left": None,
    "finishes_at": None,
    "score": None,
    "scores": {},
    "history": [],
}
HISTORY = """epoch,loss,score,score_error,dice_0,dice_255,seconds
1,1.2,0.6,nan,0.5,0.7,10
2,0.9,0.8,nan,0.75,0.85,11.5
3,0.8,,,,,9
"""


def progress(age: float = 0, **changes: Any) -> bytes:
    """`progress.json` of a run in its fourth epoch, written `age` seconds ago."""
    written = datetime.now(UTC) - timedelta(seconds=age)
    found = {
        "state": "running",
        "epoch": 4,
        "epochs": 10,
        "done": 0.35,
        "seconds": 35.5,
        "seconds_left": 70.0,
        "classes": {"0": "background", "255": "nucleus"},
        "written": written.isoformat(),
    }
    return json.dumps(found | changes).encode()


@pytest.fixture
def answer(tmp_path: Path, serve: Serve) -> Callable[..., dict[str, Any]]:
    """`answer(progress(), HISTORY)`: that of a service whose model's folder has these two files."""

    def ask(running: bytes | None = None, rows: str | None = None) -> dict[str, Any]:
        for name, content in (("progress.json", running), ("history.csv", rows and rows.encode())):
            if content is not None:
                (tmp_path / name).write_bytes(content)
        with serve(model=tmp_path / "best_model.pth") as client:
            answer = client.get("/training")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    return ask


def test_the_run_that_made_the_served_model_is_finished(client: TestClient, trained: Path) -> None:
    found = client.get("/training").json()
    model = client.get("/health").json()["model"]
    assert (found["state"], found["epoch"], found["epochs"], found["done"]) == ("finished", 4, 4, 1)
    assert (found["seconds_left"], found["finishes_at"]) == (None, None)
    assert found["score"] == pytest.approx(model["score"], abs=1e-5)
    assert found["scores"].keys() == {"background", "foreground"}
    assert [row["epoch"] for row in found["history"]] == [1, 2, 3, 4]
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["history"]), abs=5)


def test_a_run_that_goes_on(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(progress(age=2), HISTORY)
    finishes = datetime.fromisoformat(found.pop("finishes_at")) - datetime.now(UTC)
    assert found.pop("seconds_left") == pytest.approx(68, abs=10)
    assert finishes.total_seconds() == pytest.approx(68, abs=10)
    assert found == {
        "state": "running",
        "epoch": 4,
        "epochs": 10,
        "done": 0.35,
        "seconds": 35.5,
        "score": 0.8,
        "scores": {"background": 0.75, "nucleus": 0.85},
        "history": [
            {"epoch": 1, "seconds": 10, "loss": 1.2, "score": 0.6},
            {"epoch": 2, "seconds": 11.5, "loss": 0.9, "score": 0.8},
            {"epoch": 3, "seconds": 9, "loss": 0.8, "score": None},  # learns from all images by now
        ],
    }


def test_before_the_first_epoch_is_over(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(progress(epoch=1, seconds_left=None))
    assert found | {"done": None, "seconds": None} == NONE | {"state": "running", "epoch": 1, "epochs": 10}


@pytest.mark.parametrize(
    ("age", "state", "found"),
    [
        (60, "running", "running"),  # a network file system may be a minute late
        (91, "running", "stopped"),  # killed: it could not say so
        (-91, "running", "stopped"),  # from a clock that nothing is known of
        (0, "stopped", "stopped"),
        (10**6, "finished", "finished"),
    ],
)
def test_who_is_silent_has_stopped(answer: Callable[..., dict[str, Any]], age: float, state: str, found: str) -> None:
    told = answer(progress(age, state=state), HISTORY)
    assert (told["state"], told["seconds_left"] is None) == (found, found != "running")
    assert told["score"] == 0.8


def test_the_history_beside_the_first_runs_of_a_curve_is_not_theirs(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(progress(epoch=None, epochs=None), HISTORY)
    assert (found["state"], found["history"], found["score"], found["scores"]) == ("running", [], None, {})


def test_classes_of_the_same_name_are_told_apart(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(progress(classes={"0": "cell", "255": "cell", "3": "in no label"}), HISTORY)
    assert found["scores"] == {"cell (0)": 0.75, "cell (255)": 0.85}


@pytest.mark.parametrize("n", [300, 301, 1000, 12345])
def test_a_long_history_is_thinned(answer: Callable[..., dict[str, Any]], n: int) -> None:
    rows = "".join(f"{i},{1 / i},{0.5 + i / 1e5}\n" for i in range(1, n + 1))
    found = answer(progress(), f"epoch,loss,score\n{rows}")
    epochs = [row["epoch"] for row in found["history"]]
    assert (len(epochs), epochs[0], epochs[-1]) == (300, 1, n)
    assert epochs == sorted(set(epochs))
    assert found["score"] == pytest.approx(0.5 + n / 1e5)


def test_of_a_history_that_is_too_large_the_end_is_read(
    answer: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST_HISTORY", 30)
    found = answer(progress(), "epoch,loss,score\n" + "".join(f"{i},0.5,0.{i}\n" for i in range(10, 20)))
    assert [row["epoch"] for row in found["history"]] == [18, 19]
    assert found["score"] == 0.19


@pytest.mark.parametrize(
    ("rows", "epochs", "score"),
    [
        ("", [], None),
        ("epoch", [], None),
        ("epoch,loss,score\n1,2,0.5\n2,1,0.", [1], 0.5),  # half a row
        ("epoch,loss,score\nx,1,0.2\n2,,0.3\n3,nan,0.4\n4,1,0.5\n5,1,inf\n", [4], None),
        ("epoch,loss,score\n1,1,0.5,7,8\n2,1\n", [1, 2], 0.5),
        ("loss,epoch\n0.5,1\n", [1], None),
        ("<html>\n\n\0\n", [], None),
        ("\udcff\n", [], None),
    ],
)
def test_damaged_rows_are_left_out(
    answer: Callable[..., dict[str, Any]], tmp_path: Path, rows: str, epochs: list[int], score: float | None
) -> None:
    (tmp_path / "history.csv").write_bytes(rows.encode(errors="surrogateescape"))
    found = answer(progress())
    assert [row["epoch"] for row in found["history"]] == epochs
    assert found["score"] == score


@pytest.mark.parametrize(
    "content",
    [
        b"",
        progress()[:-9],
        b"[1, 2]",
        b"null",
        b"\xff\xfe",
        b'{"state": "running"}',
        b"[" * 100_000,
        b" " * 2**20 + progress(),
        progress(state="none"),
        progress(done=float("nan")),
        progress(seconds_left=float("inf")),
        progress(epoch=-1),
        progress(epoch=10**400),
        progress(classes=["a"]),
        progress(classes={"0": "\udcff"}),
        progress(written="yesterday"),
        progress(written="2026-01-01T00:00:00"),
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_a_file_that_is_no_progress_tells_nothing(answer: Callable[..., dict[str, Any]], content: bytes) -> None:
    assert answer(content, HISTORY) == NONE


def test_times_beyond_the_calendar(answer: Callable[..., dict[str, Any]]) -> None:
    found = answer(progress(seconds_left=1e15))
    assert (found["state"], found["finishes_at"]) == ("running", None)
    for written in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        assert answer(progress(written=written))["state"] == "stopped"


def test_folders_pipes_and_links(answer: Callable[..., dict[str, Any]], tmp_path: Path, serve: Serve) -> None:
    for name in ("progress.json", "history.csv"):
        file = tmp_path / name
        file.mkdir()
        assert answer() == NONE
        file.rmdir()
        os.mkfifo(file)
        assert answer() == NONE
        file.unlink()
        for target in ("/dev/zero", "/etc/passwd", "nowhere", name):
            file.symlink_to(target)
            assert answer() == NONE
            file.unlink()
        file.touch()
    for path in (
        tmp_path / "gone" / "model.pth",
        tmp_path / "progress.json" / "model.pth",
        tmp_path / ("x" * 300) / "m",
    ):
        with serve(model=path) as client:
            assert client.get("/training").json() == NONE


def test_head_and_keys(tmp_path: Path, serve: Serve) -> None:
    with serve(model=tmp_path / "best_model.pth", api_keys=["secret"]) as client:
        head = client.head("/training")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == client.get("/training").headers["content-length"]
    with serve(model=tmp_path / "best_model.pth", api_keys=["secret"], keys_everywhere=True) as client:
        assert client.get("/training").status_code == 401
        assert client.get("/training", headers={"X-API-Key": "secret"}).json() == NONE


@pytest.mark.slow
def test_a_service_that_waits_for_its_model_follows_the_training(
    data: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed, looks alive until its silence is noticed, is started again, and finishes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "trainer", *arguments(data=data, out=out, epochs=20)]
    with serve(model=out / "best_model.pth", watch_s=1000) as client:

        def state() -> str:
            return str(client.get("/training").json()["state"])

        assert (state(), client.get("/health").json()["status"]) == ("none", "waiting")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            next(line for line in program.stdout if line.startswith("epoch   1/20"))
            while not ((found := client.get("/training").json())["history"] and found["epoch"] > 1):
                pass
            program.kill()
        assert (found["state"], found["epochs"]) == ("running", 20)
        assert 0 < found["done"] < 1
        assert found["scores"].keys() == {"background", "foreground"}
        assert state() == "running"
        with monkeypatch.context() as patch:
            patch.setattr(training, "SILENCE_S", 0)
            assert state() == "stopped"
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = client.get("/training").json()
        assert (found["state"], found["epoch"], len(found["history"])) == ("finished", 20, 20)
        client.app.state.slot.refresh()  # type: ignore[attr-defined]
        assert client.get("/health").json()["model"]["epoch"] == 20
