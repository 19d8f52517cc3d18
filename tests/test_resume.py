"""Interrupted runs: signals, kills, and resuming to the same weights."""

# ruff: noqa: F811  (parameters are named like the imported fixtures)

import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from trainer_runs import (  # noqa: F401  (fixtures)
    TORCHRUN,
    AtEpoch,
    assert_resumes,
    assert_same_run,
    at_epoch,
    contents,
    half,
    history,
    in_folder,
    runs,
    train_in,
    whole,
)

from trainer import learner
from trainer import run as running
from trainer.__main__ import main
from trainer.folder import Progress, RunFolder
from trainer.recipes import RECIPES
from trainer.run import Trainer
from trainer.stop import Stopped
from unet import checkpoint as checkpoints
from unet import files


@pytest.mark.slow
def test_a_finished_run_stays_and_another_one_is_refused(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_in(half) == 0
    before = contents(half / "out")
    assert "going on after epoch 1, where an earlier run was interrupted" in capsys.readouterr().out
    assert train_in(half) == 0
    assert "already finished: score" in capsys.readouterr().out
    assert train_in(half, lr=0.5, batch_size=3) == 2
    assert "recipe.batch_size: was 2, is 3; recipe.lr: was 0.002, is 0.5" in capsys.readouterr().err
    assert train_in(half, val_fraction=0.2) == 2  # its default, but images are held out to the end
    assert "val_fraction: was None, is 0.2" in capsys.readouterr().err
    assert contents(half / "out") == before
    assert train_in(half, "--force", lr=0.5) == 0
    assert contents(half / "out")["best_model.pth"] != before["best_model.pth"]


def test_a_run_that_was_interrupted_after_images_joined_holds_none_out_again(
    half: Path, whole: Path, at_epoch: AtEpoch
) -> None:
    at_epoch.interrupt(3)
    assert train_in(half) == 143
    at_epoch.nothing()
    progress = checkpoints.read(half / "out" / "last.pth")[0]["progress"]
    assert (progress["epoch"], progress["joined"], progress["scored"]["epoch"]) == (2, True, 2)
    page = (half / "out" / "samples.png").read_bytes()
    assert_resumes(half, whole)
    assert (half / "out" / "samples.png").read_bytes() == page
    assert [bool(row["score"]) for row in history(half / "out")] == [True, True, False]


def test_how_often_a_run_is_saved_changes_nothing(half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "next_save", math.inf)  # only at the end
    assert_resumes(half, whole)


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.slow
def test_every_recipe_resumes_exactly(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_epoch: AtEpoch, recipe: str
) -> None:
    """EMA, dropout, momentum, border weights and augmentation all continue where they were."""
    small = RECIPES[recipe].override(base_channels=2, image_size=36 if recipe == "paper" else 32, batch_size=2)
    monkeypatch.setitem(RECIPES, recipe, replace(small, min_steps=2))
    command = ["--recipe", recipe, "--data", str(half / "data"), "--device", "cpu", "--epochs", "3", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    at_epoch.interrupt(2)
    assert main([*command, str(tmp_path / "parts")]) == 143
    at_epoch.nothing()
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_a_signal_stops_training_before_the_next_step(
    half: Path,
    whole: Path,
    at_epoch: AtEpoch,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    at_epoch(2, lambda: signal.raise_signal(number))
    before = signal.signal(number, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "step", lambda *_: pytest.fail("one step more"))
        try:
            assert train_in(half) == status
        finally:
            signal.signal(number, before)
    assert capsys.readouterr().err == (
        f"unet-train: stopped by {number.name}; the same command, without --force, goes on after epoch 1\n"
    )
    at_epoch.nothing()
    assert_resumes(half, whole)


def test_a_signal_during_a_save_waits_for_all_files(half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_atomically = files.replace_atomically

    def terminated(path: Path, content: bytes) -> None:
        if path.name == "history.csv":
            signal.raise_signal(signal.SIGTERM)
        replace_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace_atomically", terminated)
        assert train_in(half) == 143
    assert checkpoints.read(half / "out" / "last.pth")[0]["progress"]["epoch"] == 2
    assert_resumes(half, whole)


def started(*command: str) -> "subprocess.Popen[str]":
    """A Python program with its output in pipes."""
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_signal_before_the_first_epoch(half: Path) -> None:
    """As a program, where no epoch is known yet."""
    with started("-m", "trainer", *in_folder(half, "--force", epochs=1_000_000)) as program:
        assert program.stdout is not None
        next(line for line in program.stdout if line.startswith("device"))
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate()
    assert program.returncode == 143
    assert re.fullmatch(r"unet-train: stopped by SIGTERM; the same command, without --force, goes on after .*\n", said)


def test_a_run_killed_after_its_last_epoch_writes_its_report_the_next_time(
    half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trainer.report.account", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert train_in(half) == 143
    assert not (half / "out" / "report.json").exists()
    assert_resumes(half, whole)


def test_a_model_that_is_ahead_of_last_pth_is_written_again(
    half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed after it wrote best_model.pth of epoch 3 and before last.pth."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "next_save", math.inf)
        patch.setattr(RunFolder, "save_last", Mock(side_effect=[None, Stopped]))
        with pytest.raises(Stopped):
            train_in(half)
    assert checkpoints.load(half / "out" / "best_model.pth").training["epoch"] == 3
    assert checkpoints.read(half / "out" / "last.pth")[0]["progress"]["epoch"] == 1
    assert_resumes(half, whole)


def test_data_that_disappears_during_a_run_does_not_matter(half: Path, whole: Path, at_epoch: AtEpoch) -> None:
    at_epoch(2, lambda: [path.unlink() for path in (half / "data").glob("*/*.png")])
    assert_resumes(half, whole)


def test_saving_takes_a_fifth_of_the_time_at_most(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of one second, saved in two: after a save there are eight seconds of training."""
    now, saved = 100.0, []

    def train_epoch(learner: object, batches: object, epoch: int, *_: object) -> dict[str, float]:
        nonlocal now
        now += 1
        return {"epoch": epoch, "loss": 1.0, "lr": 1.0}

    def save_last(folder: RunFolder, progress: Progress, learner: object) -> None:
        nonlocal now
        now += 2
        saved.append(progress.epoch)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(running, "SAVING_SHARE", 0.2)  # conftest saves every epoch
    monkeypatch.setattr(running, "train_epoch", train_epoch)
    monkeypatch.setattr(RunFolder, "save_last", save_last)
    monkeypatch.setattr("trainer.report.account", Mock())
    assert train_in(half, "--force", epochs=20) == 0
    assert saved == [0, 1, 9, 17, 20]


@pytest.mark.slow
def test_a_killed_run_resumes_exactly_and_keeps_its_lock_until_then(
    half: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", *in_folder(half)], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        next(line for line in program.stdout if line.startswith("epoch   2/3"))
        program.send_signal(signal.SIGSTOP)
        assert train_in(half) == 2
        assert "out: another unet-train is writing there" in capsys.readouterr().err
        program.kill()
    assert program.returncode == -signal.SIGKILL
    assert_resumes(half, whole)


@pytest.mark.slow
def test_the_processes_of_one_run_stop_together(half: Path) -> None:
    with started(*TORCHRUN, "-m", "trainer", *in_folder(half, "--force", epochs=1_000_000)) as launcher:
        assert launcher.stdout is not None
        next(line for line in launcher.stdout if line.startswith("epoch   1"))
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate()
    message = "unet-train: stopped by SIGTERM; the same command, without --force, goes on after epoch"
    assert said.count(message) == 2, said
    assert "RuntimeError" not in said
    assert checkpoints.read(half / "out" / "last.pth")[0]["progress"]["epoch"] >= 1


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing() -> None:
    script = Path(__file__).parent / "benchmarks" / "kills.py"
    done = subprocess.run([sys.executable, script, "--kills", "4", "--epochs", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "final weights equal        yes" in done.stdout
