"""`progress.json`, the progress bar, and what a run says of its length."""

# ruff: noqa: F811  (parameters are named like the imported fixtures)

import json
import math
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_runs import (  # noqa: F401  (fixtures)
    TORCHRUN,
    AtEpoch,
    at_epoch,
    half,
    history,
    in_folder,
    runs,
    train_in,
    whole,
)

from trainer import heartbeat, learner
from trainer.folder import Progress
from trainer.heartbeat import Heartbeat
from trainer.pace import Pace, Position
from trainer.recipes import RECIPES
from trainer.report import print_length
from trainer.schedule import Schedule
from trainer.settings import TrainSettings
from unet import files

CPU = torch.device("cpu")


def progress(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "progress.json").read_text())
    return found


def wait_for(out: Path, **expected: object) -> dict[str, Any]:
    """The file as soon as it says so."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if expected.items() <= (found := progress(out)).items():
            return found
    raise AssertionError(f"{out}/progress.json never said {expected}, but {found}")


# ---- progress.json


def test_a_finished_run(whole: Path) -> None:
    found = progress(whole / "out")
    age = datetime.now(UTC) - datetime.fromisoformat(found.pop("written"))
    assert 0 <= age.total_seconds() < 3600
    assert found.pop("seconds") == pytest.approx(sum(float(row["seconds"]) for row in history(whole / "out")), abs=1)
    assert found == {
        "state": "finished",
        "epoch": 3,
        "epochs": 3,
        "done": 1,
        "seconds_left": None,
        "classes": {"0": "background", "255": "foreground"},
    }


def test_a_run_that_is_interrupted_and_goes_on(half: Path, at_epoch: AtEpoch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    out, seen = half / "out", []
    begun = progress(out)  # as it was when epoch 1 was over
    assert (begun["state"], begun["epoch"], begun["done"]) == ("running", 2, pytest.approx(1 / 3))
    at_epoch.interrupt(3)
    assert train_in(half) == 143
    assert (progress(out)["state"], progress(out)["epoch"], progress(out)["seconds_left"]) == ("stopped", 3, None)
    assert progress(out)["done"] == pytest.approx(2 / 3)

    at_epoch(3, lambda: seen.append(wait_for(out, state="running", epoch=3)))
    assert train_in(half) == 0
    assert seen[0]["seconds"] > float(history(out)[0]["seconds"])  # those before the interruption count
    assert 0 < seen[0]["seconds_left"] < seen[0]["seconds"]  # one of three epochs
    assert progress(out)["state"] == "finished"


def test_a_run_that_fails_has_stopped(half: Path, at_epoch: AtEpoch) -> None:
    at_epoch(2, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        train_in(half)
    assert progress(half / "out")["state"] == "stopped"


def test_a_command_that_trains_nothing_says_nothing(half: Path, whole: Path) -> None:
    """A finished run stays finished, and another run's files stay as they are."""
    shutil.copytree(whole, half, dirs_exist_ok=True)
    before = progress(half / "out")
    assert train_in(half) == 0
    assert train_in(half, lr=0.5) == 2
    assert progress(half / "out") == before


def test_a_run_that_starts_over_tells_nothing_of_the_one_before(
    half: Path, whole: Path, at_epoch: AtEpoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, half, dirs_exist_ok=True)
    out, seen = half / "out", []
    at_epoch(1, lambda: seen.append((progress(out), (out / "history.csv").exists())))
    assert train_in(half, "--force") == 0
    found, has_history = seen[0]
    assert (found["state"], found["epoch"], found["done"], found["seconds_left"]) == ("running", 1, 0, None)
    assert not has_history


def test_a_long_step_is_not_silence(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written while the network computes."""
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    step, written = learner.Learner.step, set[str]()

    def long_step(*arguments: Any) -> torch.Tensor:
        end = time.monotonic() + 60
        while len(written) < 3 and time.monotonic() < end:
            written.add(progress(half / "out")["written"])
        return step(*arguments)

    monkeypatch.setattr(learner.Learner, "step", long_step)
    assert train_in(half) == 0
    assert len(written) == 3


def test_a_disk_that_is_full_for_a_moment_does_not_end_an_epoch(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, write = learner.Learner.step, files.replace_atomically
    limit, refused = resource.getrlimit(resource.RLIMIT_FSIZE), threading.Event()

    def watched(path: Path, content: bytes) -> None:
        try:
            write(path, content)
        except OSError:
            assert path.name == "progress.json"
            refused.set()
            raise

    def full(*arguments: Any) -> torch.Tensor:
        if not refused.is_set():
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
            assert refused.wait(60)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        return step(*arguments)

    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    monkeypatch.setattr(files, "replace_atomically", watched)
    monkeypatch.setattr(learner.Learner, "step", full)
    assert train_in(half) == 0
    assert progress(half / "out")["state"] == "finished"


@pytest.mark.slow
def test_the_runs_of_a_curve_are_one(half: Path, at_epoch: AtEpoch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images to train on: a run with one of them, with two, and with all."""
    out, seen = half / "out", []
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    at_epoch(2, lambda: seen.append(wait_for(out, state="running", done=(len(seen) + 0.5) / 3)))
    assert train_in(half, "--force", "--curve", epochs=2) == 0
    assert [found["epoch"] for found in seen] == [None, None, 2]
    assert progress(out)["done"] == 1


def test_time_left_of_a_curve(tmp_path: Path) -> None:
    """The second of four runs of a minute each."""
    with Heartbeat(tmp_path) as beat:
        beat.runs = 1, [60, 60]
        beat.start(Position(epoch=7, epochs=None, done=0.5, seconds=30, left=30), {0: "a"})
        found = progress(tmp_path)
        beat.finish(Position(epoch=9, epochs=None, done=1, seconds=60, left=0))
    assert found["epoch"] is None
    assert (found["done"], found["seconds_left"]) == (1.5 / 4, pytest.approx(150, abs=5))
    assert progress(tmp_path)["state"] == "stopped"  # the third has not begun


@pytest.mark.slow
def test_of_two_processes_one_writes(half: Path) -> None:
    command = [*TORCHRUN, "-m", "trainer", *in_folder(half, "--force", epochs=1_000_000)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *command], **pipes) as launcher:
        assert launcher.stdout is not None
        next(line for line in launcher.stdout if line.startswith("epoch   1"))
        assert progress(half / "out")["epochs"] == 1_000_000
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate()
    assert progress(half / "out")["state"] == "stopped"


# ---- the time that is left


def pace(minutes: float | None = None, **progress: Any) -> Pace:
    """The pace of a run of ten epochs, whose steps take four times as long as their validation."""
    return Pace(Schedule(RECIPES["quick"].override(epochs=10), minutes), Progress(**progress), validation=0.25)


def test_the_first_steps_tell_how_long_a_run_takes() -> None:
    """Four steps of 10 s in an epoch, and the first takes 20 s. With validation an epoch is 50 s."""
    of_epochs, of_time = pace(), pace(minutes=5)
    assert of_epochs.step(0.25, 20) == Position(1, 10, 0.025, 20, math.inf)
    assert of_epochs.step(0.5, 30) == Position(1, 10, 0.05, 30, 470)
    assert not of_epochs.steady
    assert of_epochs.step(0.75, 40) == Position(1, 10, 0.075, 40, 460)
    assert of_epochs.steady
    of_time.step(0.25, 20)
    assert of_time.step(0.5, 30) == Position(1, None, 0.1, 30, 270)  # the five minutes end it


def test_fast_steps_are_watched_for_some_seconds() -> None:
    fast = pace()
    for i in range(1, 11):
        fast.step(i / 20, i / 2)
        assert not fast.steady
    fast.step(11 / 20, 5.5)
    assert fast.steady


def test_later_epochs_take_as_long_as_those_so_far() -> None:
    going = pace(epoch=2, elapsed=100)
    assert going.position() == Position(3, 10, 0.2, 100, 400)
    assert going.step(0.5, 120) == Position(3, 10, 0.25, 120, 380)
    assert going.step(1.0, 190) == Position(3, 10, 0.3, 190, 350)  # a long epoch: the others are not shorter for that
    assert not going.steady
    assert pace(epoch=10, elapsed=500, finished=True).position() == Position(10, 10, 1, 500, 0)
    assert pace(5, epoch=7, elapsed=301, finished=True).position() == Position(7, None, 1, 301, 0)


@pytest.mark.parametrize(
    ("settings", "recipe", "seconds", "said"),
    [
        ({}, {}, 299, ""),
        ({}, {}, 900, "about 15 minutes on this CPU (a CPU)"),
        ({}, {}, 7200, "about 2.0 h on this CPU (a CPU): --base-channels 16 --max-minutes 10 gives a usable model"),
        ({}, {"base_channels": 16}, 72000, "about 20 h on this CPU (a CPU): --max-minutes 10 gives a usable model"),
        ({"init_from": Path("m")}, {}, 72000, "about 20 h on this CPU (a CPU): --max-minutes 10 gives a usable model"),
        ({"curve": True}, {}, 7200, "about 2.0 h for this run of the curve on this CPU (a CPU)"),
        ({}, {"name": "paper"}, 7200, "about 2.0 h on this CPU (a CPU)"),
        ({"max_minutes": 120}, {"epochs": None}, 7200, ""),  # as long as somebody has asked for
    ],
)
def test_a_long_run_says_how_long_it_takes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    recipe: dict[str, Any],
    seconds: float,
    said: str,
) -> None:
    monkeypatch.setattr("trainer.report.device_name", lambda device: "a CPU")
    epochs = recipe.pop("epochs", 400)
    position = Position(1, epochs, 0.01, 100, seconds - 100)
    print_length(TrainSettings(**settings), RECIPES["default"].override(**recipe), CPU, position)
    assert capsys.readouterr().out == (f"time      {said}\n" if said else "")


# ---- on a terminal

PROGRAM = """
import sys
from trainer import pace, report
from trainer.__main__ import main
from trainer.learner import Learner
pace.STEADY_S = report.LONG_S = 0
step = Learner.step
def announced(*arguments):
    print("<a step>", flush=True)
    return step(*arguments)
Learner.step = announced
sys.exit(main())
"""


def on_terminal(*command: str) -> tuple[int, str]:
    """Exit status and output of a Python program in a pseudo-terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, *command])
    termios.tcsetwinsize(terminal, (24, 120))
    output = b""
    try:
        while data := os.read(terminal, 65536):
            output += data
    except OSError:  # its end, on Linux
        pass
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output.decode()


@pytest.mark.slow
def test_the_bar_is_there_before_the_first_step_and_a_line_does_not_tear_it(half: Path) -> None:
    status, output = on_terminal("-c", PROGRAM, *in_folder(half, "--force", epochs=1))
    assert status == 0, output
    before, _, after = output.partition("<a step>")
    assert re.search(r"\repoch 1:   0%\|.*\| 0/20 \[", before)
    lines = [line for line in after.split("\n") if "time      about 0 minutes on this CPU" in line]
    assert len(lines) == 1
    *_, last = lines[0].rstrip("\r").split("\r")
    assert re.fullmatch(r"time      about 0 minutes on this CPU \(.*\)", last)
    assert "\rvalidation:   0%|" in after


@pytest.mark.slow
def test_a_log_has_the_line_and_no_bar(half: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *in_folder(half, "--force", epochs=1)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("time      about")] == [lines[lines.index("<a step>") + 3]]
