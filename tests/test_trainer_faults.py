"""What can happen to a run: signals, a full disk, damaged files, changed data. No saved epoch is lost."""

import csv
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import png

from trainer import fit as fitting
from trainer.__main__ import main
from trainer.data import sample
from trainer.folder import RunFolder, claim
from trainer.run import Throttle
from trainer.stop import Stopped
from unet import checkpoint as checkpoints

TINY = ["--recipe", "quick", "--base-channels", "2", "--image-size", "32", "--batch-size", "2", "--device", "cpu"]
TINY += ["--seed", "1"]  # every epoch is better than the one before, and so is saved as the best
EPOCHS = ["--epochs", "3"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def train(folder: Path, *more: str) -> int:
    """The same command every time: what is learned is in FOLDER/data, --out is FOLDER/out."""
    return main([*TINY, *EPOCHS, "--data", str(folder / "data"), "--out", str(folder / "out"), *more])


def command(folder: Path, *more: str) -> list[str]:
    return ["-m", "trainer", *TINY, *more, "--data", str(folder / "data"), "--out", str(folder / "out")]


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files in it, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def final(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights at the end, and those of the best model."""
    state, _ = checkpoints.read(folder / "out" / "last.pth")
    assert state["progress"]["finished"]
    return state["learner"]["network"], dict(checkpoints.load(folder / "out" / "best_model.pth").state_dict)


class Intervention:
    """Something happens at the beginning of an epoch: `happens(2, lambda: ...)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.run_epoch = fitting.run_epoch

    def __call__(self, epoch: int, what: Callable[[], object]) -> None:
        def run(*args: Any) -> dict[str, float]:
            if args[2] == epoch:
                what()
            return self.run_epoch(*args)

        self.monkeypatch.setattr(fitting, "run_epoch", run)


@pytest.fixture
def happens(monkeypatch: pytest.MonkeyPatch) -> Intervention:
    return Intervention(monkeypatch)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In `whole` an uninterrupted run, in `half` the same one as it was after the first of three epochs."""
    folder = tmp_path_factory.mktemp("runs")
    whole, half = folder / "whole", folder / "half"
    for part in ("Training_Images", "Training_Labels"):
        (whole / "data" / part).mkdir(parents=True)
    for i in range(4):
        image, label = sample.generate(np.random.default_rng(i), 40)
        (whole / "data" / "Training_Images" / f"{i}.png").write_bytes(png(image))
        (whole / "data" / "Training_Labels" / f"{i}.png").write_bytes(png(label))
    with pytest.MonkeyPatch.context() as monkeypatch:
        Intervention(monkeypatch)(2, lambda: shutil.copytree(whole, half))
        assert train(whole) == 0
    (half / "out" / ".lock").unlink()
    return folder


@pytest.fixture
def whole(runs: Path) -> Path:
    return runs / "whole"


@pytest.fixture
def half(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "half", tmp_path / "half")


def assert_goes_on(half: Path, whole: Path) -> None:
    """To the weights of the uninterrupted run, and nothing is left lying about."""
    assert train(half) == 0
    for mine, theirs in zip(final(half), final(whole), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert contents(half / "out").keys() == contents(whole / "out").keys()


# ---- told to stop


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_it_before_the_next_step(
    half: Path,
    whole: Path,
    happens: Intervention,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    happens(2, lambda: signal.raise_signal(number))
    monkeypatch.setattr(fitting.Learner, "step", lambda *_: pytest.fail("one step more"))
    before = signal.signal(number, signal.default_int_handler)  # a shell has its background jobs ignore SIGINT
    try:
        assert train(half) == status
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == (
        f"unet-train: stopped by {number.name}; the same command, without --force, goes on after epoch 1\n"
    )
    monkeypatch.undo()
    assert_goes_on(half, whole)


def test_a_signal_while_it_saves_waits_for_the_files(half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_atomically = checkpoints.replace_atomically

    def terminated(path: Path, content: bytes) -> None:
        if path.name == "history.csv":
            signal.raise_signal(signal.SIGTERM)
        replace_atomically(path, content)

    monkeypatch.setattr(checkpoints, "replace_atomically", terminated)
    assert train(half) == 143
    monkeypatch.undo()
    assert checkpoints.read(half / "out" / "last.pth")[0]["progress"]["epoch"] == 2
    assert_goes_on(half, whole)


def test_a_signal_to_the_program(half: Path) -> None:
    """Here while it reads the data, where no epoch is known yet."""
    with subprocess.Popen(
        [sys.executable, *command(half, "--epochs", "1000000", "--force")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        next(line for line in program.stdout if line.startswith("device"))
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate()
    assert program.returncode == 143
    assert re.fullmatch(r"unet-train: stopped by SIGTERM; the same command, without --force, goes on after .*\n", said)


@pytest.mark.slow
def test_processes_of_one_run_stop_together(half: Path) -> None:
    with subprocess.Popen(
        [sys.executable, *TORCHRUN, *command(half, "--epochs", "1000000", "--force")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdout is not None
        next(line for line in launcher.stdout if line.startswith("epoch   1"))
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate()
    assert said.count("unet-train: stopped by SIGTERM; the same command, without --force, goes on after epoch") == 2, (
        said
    )
    assert "RuntimeError" not in said
    assert checkpoints.read(half / "out" / "last.pth")[0]["progress"]["epoch"] >= 1


# ---- the folder


def test_a_folder_has_one_trainer(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock goes with its holder, and what a killed one left behind is removed by the next holder only."""
    ours, foreign = half / "out" / ".best_model.pth.a1b2c3d4.tmp", half / "out" / ".notes.tmp"
    ours.touch()
    foreign.touch()
    with claim(half / "other"):
        pass
    assert list((half / "other").iterdir()) == []
    with claim(half / "out"):
        assert not ours.exists()
        ours.touch()
        before = contents(half / "out")
        assert train(half, "--force") == 2
        assert contents(half / "out") == before
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"unet-train: error: .*/out: another unet-train is writing there \(process \d+ on .*\): .*\n", said
    )
    assert train(half) == 0
    assert not ours.exists()
    assert foreign.exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For root, /proc is one."""
    assert main([*TINY, "--data", str(half / "data"), "--out", "/proc/self"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"unet-train: error: /proc/self: cannot be written: .*; expected a folder .*\n", said)


def test_a_sample_that_cannot_be_written_is_one_line(
    tmp_path: Path, disk_size: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    disk_size(1000)
    assert main([*TINY, "--out", str(tmp_path / "out")]) == 2
    disk_size(resource.RLIM_INFINITY)
    said = f"unet-train: error: {tmp_path}/out/sample: cannot be written: File too large\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("name", "said"), [("gone", "no such folder"), ("file", "no folder")])
def test_a_data_folder_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (tmp_path / "file").touch()
    assert main([*TINY, "--data", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"unet-train: error: {tmp_path}/{name}: {said}; expected one that holds Training_Images/ and Training_Labels/, "
        "or 'sample', or 'isbi2012'\n"
    )


@pytest.fixture
def disk_size() -> Iterator[Callable[[int], None]]:
    """`disk_size(10_000)`: the system refuses to make files longer than this, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fails", ["best_model.pth", "training.png", "last.pth"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    half: Path,
    whole: Path,
    happens: Intervention,
    disk_size: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    before: dict[str, bytes] = {}

    def fill() -> None:
        before.update(contents(half / "out"))
        disk_size(len(before[fails]) - 1000)

    happens(2, fill)
    if fails == "training.png":  # the smallest
        monkeypatch.setattr(checkpoints, "save", lambda *_: None)
    assert train(half) == 2
    disk_size(resource.RLIM_INFINITY)
    monkeypatch.undo()
    assert re.fullmatch(rf"unet-train: error: .*/{fails}: cannot be written: File too large\n", capsys.readouterr().err)
    after = contents(half / "out")
    assert after.keys() == before.keys()
    assert after[fails] == before[fails]
    assert after["last.pth"] == before["last.pth"]
    checkpoints.load(half / "out" / "best_model.pth")
    assert_goes_on(half, whole)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "of another program": lambda path: path.write_bytes(b"<html>"),
    "a list": lambda path: torch.save([1, 2], path),
    "bare weights": lambda path: torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), path),
    "something else in place": lambda path: torch.save({"run": 3, "progress": 1}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["last.pth", "best_model.pth"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_overwritten(
    half: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    DAMAGES[damage](half / "out" / name)
    before = contents(half / "out")
    assert train(half) == 2
    said = capsys.readouterr().err
    assert re.match(rf"unet-train: error: \S*/out/{name}", said)
    assert "Nothing was changed: put the file back, choose another --out, or start over with --force" in said
    assert said.count("\n") == 1
    assert contents(half / "out") == before


def test_a_best_model_that_is_gone_is_missed_now_and_not_at_the_end(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (half / "out" / "best_model.pth").unlink()
    assert train(half) == 2
    assert "best_model.pth: no such file" in capsys.readouterr().err
    assert train(half, "--force") == 0


def test_another_best_model_is_not_overwritten(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoints.load(half / "out" / "best_model.pth").state_dict
    torch.save(dict(weights), half / "out" / "best_model.pth")  # somebody's own, to be served
    before = contents(half / "out")
    assert train(half) == 2
    assert "out holds another run (best_model.pth is not the one that it has written)" in capsys.readouterr().err
    assert contents(half / "out") == before


def test_a_run_that_has_learned_nothing_keeps_nobody_out(half: Path, happens: Intervention) -> None:
    """Such as one without memory, which is told to take less of it: another run."""
    shutil.rmtree(half / "out")
    happens(1, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        train(half)
    assert contents(half / "out").keys() == {"last.pth"}
    happens(1, lambda: None)
    assert train(half, "--base-channels", "3") == 0


def test_a_run_killed_after_its_last_epoch_still_gives_its_account(
    half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.run._account", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert train(half) == 143
    monkeypatch.undo()
    assert not (half / "out" / "report.json").exists()
    assert_goes_on(half, whole)


@pytest.mark.parametrize("last", [2, 3])
def test_report_and_history_are_of_the_model_that_is_there(
    half: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Killed after best_model.pth of epoch 3 and before its last.pth. With what time is left, the run ends before that
    epoch, or repeats it, but it is another one, and worse."""
    with monkeypatch.context() as patch:
        patch.setattr(Throttle, "due", lambda _: False)
        patch.setattr(RunFolder, "save_last", Mock(side_effect=[None, Stopped]))
        with pytest.raises(Stopped):
            train(half)
    best = checkpoints.load(half / "out" / "best_model.pth")
    assert best.training["epoch"] == 3
    monkeypatch.setattr(fitting.Schedule, "lr", lambda *_: 10.0)
    monkeypatch.setattr(fitting.Schedule, "over", lambda _, epoch, elapsed: epoch == last)
    assert train(half) == 0
    report = json.loads((half / "out" / "report.json").read_text())
    assert checkpoints.load(half / "out" / "best_model.pth").id == best.id
    assert (report["epoch"], report["score"]) == (3, best.training["score"])
    rows = list(csv.DictReader((half / "out" / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[2]["score"] == f"{report['score']:.6g}"


def test_no_memory_to_go_on_with_does_not_blame_the_file(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting.Learner, "load_state_dict", Mock(side_effect=torch.OutOfMemoryError("busy")))
    assert train(half) == 2
    said = capsys.readouterr().err
    assert "ran out of memory" in said
    assert "damaged" not in said


# ---- the data


def test_data_that_changes_during_a_run_does_not_matter_to_it(half: Path, whole: Path, happens: Intervention) -> None:
    happens(2, lambda: shutil.rmtree(half / "data"))
    assert_goes_on(half, whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda data: shutil.copy(data / "Training_Labels" / "1.png", data / "Training_Labels" / "0.png"),
            "holds another run (Training_Labels/0.png has changed):",
        ),
        (
            lambda data: [(data / part / "2.png").unlink() for part in ("Training_Images", "Training_Labels")],
            "holds another run (Training_Images/2.png is gone; Training_Labels/2.png is gone):",
        ),
        (
            lambda data: [
                shutil.copy(data / p / "2.png", data / p / "7.png") for p in ("Training_Images", "Training_Labels")
            ],
            "holds another run (Training_Images/7.png is new; Training_Labels/7.png is new):",
        ),
        (
            lambda data: [path.write_bytes(path.read_bytes() + b" ") for path in data.glob("*/*.png")],
            "Training_Labels/0.png has changed; and 3 more files)",
        ),
        (lambda data: (data / "Training_Labels" / "2.png").unlink(), "Training_Images/2.png: has no label"),
        (
            lambda data: (data / "Training_Images" / "3.png").write_bytes(b"half a file"),
            "Training_Images/3.png: cannot be read",
        ),
    ],
)
def test_data_that_changed_is_named_before_the_run_goes_on(
    half: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], said: str
) -> None:
    change(half / "data")
    before = contents(half / "out")
    assert train(half) == 2
    assert said in capsys.readouterr().err
    assert contents(half / "out") == before


# ---- memory


def test_no_memory_is_one_line(tmp_path: Path, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(half / "data"), "--out", str(tmp_path / "new"), "--device", "cpu"]
    assert main([*arguments, "--recipe", "quick", "--image-size", str(2**28)]) == 2
    said = capsys.readouterr().err
    assert said == (
        "unet-train: error: cpu ran out of memory: lower --batch-size (8), --image-size (268435456) or "
        "--base-channels (16), or cut large images into fewer: "
        "all of them are kept there, at 8 bytes for each pixel and more\n"
    )


def test_no_memory_on_a_gpu_is_too(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(fitting, "loss_of", fail)
    assert train(half) == 2
    assert "ran out of memory: lower --batch-size (2), --image-size (32)" in capsys.readouterr().err


def test_no_memory_for_the_data_is_too(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.run.Batches", Mock(side_effect=MemoryError))
    assert train(half) == 2
    assert "all of them are kept there" in capsys.readouterr().err


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing() -> None:
    script = Path(__file__).parent / "benchmarks" / "kills.py"
    done = subprocess.run([sys.executable, script, "--kills", "4", "--epochs", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "final weights equal        yes" in done.stdout
