"""Faults of a run: folder, disk, damaged files, changed data, numbers and memory. One line, no traceback,
and nothing is lost."""

# ruff: noqa: F811  (parameters are named like the imported fixtures)

import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from trainer_runs import (  # noqa: F401  (fixtures)
    AtEpoch,
    assert_resumes,
    at_epoch,
    contents,
    half,
    last_weights,
    runs,
    train,
    train_in,
    whole,
)

from trainer import learner
from trainer.folder import claim
from unet import checkpoint as checkpoints


@pytest.fixture
def disk_size() -> Iterator[Callable[[int], None]]:
    """`disk_size(10_000)`: the system refuses to make files longer than this, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- flags and folders


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "{data}/gone"}, "/gone: no such folder; expected one that holds Training_Images/ and "),
        ({"data": "{data}/Training_Images/0.png"}, "/0.png: not a folder; expected one that holds"),
        ({"data": "{data}/Training_Images"}, "Nearest: the folder above has labels, too: --data "),
        ({"out": "{data}/Training_Images/0.png"}, "/0.png: cannot be written: File exists; expected a folder"),
        ({"out": "/proc/self"}, "/proc/self: cannot be written: "),  # not even by root
        ({"recipe": "paper", "image_size": 256}, "--image-size 256: expected a multiple of 16, plus 4"),
        ({"image_size": 16, "batch_size": 1}, "--image-size 16 leaves one pixel at the bottom of the network"),
        ({"device": "warp:9"}, "--device warp:9: "),
    ],
)
def test_a_mistake_of_the_user_is_reported_with_status_2(
    half: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    filled = {name: str(value).format(data=half / "data") for name, value in options.items()}
    assert train_in(half, "--force", **filled) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("unet-train: error: ")
    assert said in printed
    assert "Traceback" not in printed


def test_a_bug_keeps_its_traceback(half: Path, at_epoch: AtEpoch) -> None:
    def fail() -> None:
        raise ValueError("a bug of ours")

    at_epoch(2, fail)
    with pytest.raises(ValueError, match="a bug of ours"):
        train_in(half)


def test_a_missing_package_names_the_extra(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError("No module named 'skimage'", name="skimage")
    monkeypatch.setattr("trainer.run.run", Mock(side_effect=error))
    assert train_in(half) == 2
    assert "skimage is not installed; expected the extra: pip install '.[train]'" in capsys.readouterr().err


def test_a_folder_has_one_trainer_at_a_time(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next holder of the lock removes the temporary files of a killed run, and no others."""
    leftover, foreign = half / "out" / ".best_model.pth.a1b2c3d4.tmp", half / "out" / ".notes.tmp"
    leftover.touch()
    foreign.touch()
    with claim(half / "other"):
        pass
    assert contents(half / "other") == {}
    with claim(half / "out"):
        assert not leftover.exists()
        leftover.touch()
        before = contents(half / "out")
        assert train_in(half, "--force") == 2
        assert contents(half / "out") == before
    said = capsys.readouterr().err
    assert re.fullmatch(r"unet-train: error: .*/out: another unet-train is writing there: .*\n", said)
    assert train_in(half) == 0
    assert not leftover.exists()
    assert foreign.exists()


def test_a_sample_that_cannot_be_written(
    tmp_path: Path, disk_size: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    disk_size(1000)
    assert train(out=tmp_path / "out") == 2
    disk_size(resource.RLIM_INFINITY)
    said = rf"unet-train: error: {tmp_path}/out/sample/.*\.png: cannot be written: File too large\n"
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize("fails", ["best_model.pth", "training.png", "last.pth"])
@pytest.mark.slow
def test_a_run_stopped_by_a_full_disk_resumes_when_there_is_room(
    half: Path,
    whole: Path,
    at_epoch: AtEpoch,
    disk_size: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    before: dict[str, bytes] = {}
    with monkeypatch.context() as patch:

        def fill() -> None:
            before.update(contents(half / "out"))
            disk_size(len(before[fails]) // 2)
            if fails == "training.png":  # smaller than the others
                patch.setattr(checkpoints, "save", lambda *_: None)

        at_epoch(3, fill)
        assert train_in(half) == 2
    disk_size(resource.RLIM_INFINITY)
    at_epoch.nothing()
    assert re.fullmatch(rf"unet-train: error: .*/{fails}: cannot be written: File too large\n", capsys.readouterr().err)
    after = contents(half / "out")
    assert after.keys() == before.keys()
    assert after[fails] == before[fails]
    assert after["last.pth"] == before["last.pth"]
    checkpoints.load(half / "out" / "best_model.pth")
    assert_resumes(half, whole)


# ---- files of an earlier run

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "of another program": lambda path: path.write_bytes(b"<html>"),
    "a list": lambda path: torch.save([1, 2], path),
    "bare weights": lambda path: torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), path),
    "other values": lambda path: torch.save({"run": 3, "progress": 1}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["last.pth", "best_model.pth"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_overwritten(
    half: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    DAMAGES[damage](half / "out" / name)
    before = contents(half / "out")
    assert train_in(half) == 2
    said = capsys.readouterr().err
    assert re.match(rf"unet-train: error: \S*/out/{name}", said)
    assert "Nothing was changed: put the file back, choose another --out, or start over with --force" in said
    assert said.count("\n") == 1
    assert contents(half / "out") == before


def test_a_missing_best_model_is_reported_at_the_start(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (half / "out" / "best_model.pth").unlink()
    assert train_in(half) == 2
    assert "best_model.pth: no such file" in capsys.readouterr().err
    assert train_in(half, "--force") == 0


def test_a_best_model_of_another_run_is_not_overwritten(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoints.load(half / "out" / "best_model.pth").state_dict
    torch.save(dict(weights), half / "out" / "best_model.pth")  # such as one that somebody wants to serve
    before = contents(half / "out")
    assert train_in(half) == 2
    assert "out holds another run (best_model.pth is not the one that it has written)" in capsys.readouterr().err
    (half / "out" / "last.pth").unlink()
    assert train_in(half) == 2
    assert "best_model.pth is there, but no last.pth to go on from" in capsys.readouterr().err
    assert contents(half / "out") == {name: data for name, data in before.items() if name != "last.pth"}


def test_a_run_that_failed_in_its_first_epoch_blocks_nobody(half: Path, at_epoch: AtEpoch) -> None:
    shutil.rmtree(half / "out")
    at_epoch(1, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        train_in(half)
    assert contents(half / "out").keys() == {"last.pth", "progress.json"}
    at_epoch.nothing()
    assert train_in(half, base_channels=3) == 0


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
            "Training_Images/4.png has changed; and 5 more files)",
        ),
        (lambda data: (data / "Training_Labels" / "2.png").unlink(), "Training_Images/2.png: has no label"),
        (
            lambda data: (data / "Training_Images" / "3.png").write_bytes(b"half a file"),
            "1 problem with the data:\n  Training_Images/3.png: ",
        ),
    ],
)
def test_changed_data_is_named_before_a_run_goes_on(
    half: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], said: str
) -> None:
    change(half / "data")
    before = contents(half / "out")
    assert train_in(half) == 2
    assert said in capsys.readouterr().err
    assert contents(half / "out") == before


# ---- numbers and memory


def test_a_non_finite_loss_ends_the_run_before_the_step(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learner, "loss_of", lambda logits, *_: (logits * torch.inf).sum())
    assert train_in(half, "--force") == 2
    assert re.search(r"the loss became (nan|inf|-inf) in epoch 1, step 1; .*Lower --lr", capsys.readouterr().err)
    assert all(tensor.isfinite().all() for tensor in last_weights(half / "out").values())


def test_non_finite_probabilities_end_the_run(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as after a last step that was too long, with no further loss to tell of it."""
    out = half / "new"
    assert train_in(half, out=out, recipe="tutorial", lr=1e20, epochs=1, batch_size=128) == 2  # a single step
    assert "probabilities are no longer finite. Lower --lr" in capsys.readouterr().err
    assert not (out / "best_model.pth").exists()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("trainer.learner.loss_of", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")),
        ("trainer.run.Batches", MemoryError()),
        ("trainer.learner.Learner.load_state_dict", torch.OutOfMemoryError("busy")),  # not the file's fault
    ],
)
def test_out_of_memory_names_the_flags_to_lower(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, error: Exception
) -> None:
    monkeypatch.setattr(place, Mock(side_effect=error))
    assert train_in(half) == 2
    said = capsys.readouterr().err
    assert "cpu ran out of memory: lower --batch-size (2), --image-size (32) or --base-channels (2)" in said
    assert said.count("\n") == 1


def test_an_allocation_that_the_system_refuses(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_in(half, "--force", image_size=2**28) == 2
    assert "cpu ran out of memory: lower --batch-size (2), --image-size (268435456)" in capsys.readouterr().err
