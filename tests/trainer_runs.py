"""Short training runs for the tests of the trainer, and fixtures to import.

The folder of a run holds `data/`, its images and labels, and `out/`, its results.
"""

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import png

from trainer import run as running
from trainer.__main__ import main
from trainer.data import sample
from unet import checkpoint as checkpoints

TINY = {"recipe": "quick", "base_channels": 2, "image_size": 32, "batch_size": 2, "device": "cpu", "epochs": 1}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

Weights = dict[str, torch.Tensor]


def arguments(*flags: str, **options: object) -> list[str]:
    """Command line of a tiny run: `arguments("--force", epochs=2)`."""
    given = {**TINY, **options}
    return [*flags, *(text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value)))]


def train(*flags: str, **options: object) -> int:
    """A tiny run in this process; returns the exit status."""
    return main(arguments(*flags, **options))


def in_folder(folder: Path, *flags: str, **options: object) -> list[str]:
    """Command line of three epochs in a folder, the same every time. One of five images is held out in the first two
    epochs, and learned from in the third."""
    return arguments(*flags, **{"data": folder / "data", "out": folder / "out", "epochs": 3, "seed": 1, **options})


def train_in(folder: Path, *flags: str, **options: object) -> int:
    """The run of `in_folder`, in this process; returns the exit status."""
    return main(in_folder(folder, *flags, **options))


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, without the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def history(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "history.csv").read_text().splitlines()))


def last_weights(out: Path) -> Weights:
    """The network at the end of the last saved epoch."""
    weights: Weights = torch.load(out / "last.pth", weights_only=True)["learner"]["network"]
    return weights


def averaged_weights(out: Path) -> Weights:
    """The moving average of the weights then; the weights themselves if the recipe has no average."""
    learner = torch.load(out / "last.pth", weights_only=True)["learner"]
    average = learner["averaged"] or {f"module.{name}": tensor for name, tensor in learner["network"].items()}
    return {name.removeprefix("module."): each for name, each in average.items() if name.startswith("module.")}


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_run(one: Path, other: Path) -> None:
    """Two --out folders hold the same weights to the bit, and the same model with the same score."""
    assert same(last_weights(one), last_weights(other))
    first, second = (checkpoints.load(out / "best_model.pth") for out in (one, other))
    for name in ("epoch", "score"):
        assert first.training[name] == second.training[name]
    assert first.threshold == second.threshold
    assert same(dict(first.state_dict), dict(second.state_dict))
    assert same(dict(first.state_dict), averaged_weights(one))


def assert_resumes(half: Path, whole: Path) -> None:
    """The same command ends with the weights of the uninterrupted run, and leaves no other files behind."""
    assert train_in(half) == 0
    assert_same_run(half / "out", whole / "out")
    assert checkpoints.read(half / "out" / "last.pth")[0]["progress"]["finished"]
    assert contents(half / "out").keys() == contents(whole / "out").keys()


class AtEpoch:
    """`at_epoch(2, action)`: the action is called at the start of that epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.train_epoch = running.train_epoch

    def __call__(self, number: int, action: Callable[[], object]) -> None:
        def train_epoch(learner: Any, batches: Any, epoch: int, *rest: Any) -> dict[str, float]:
            if epoch == number:
                action()
            return self.train_epoch(learner, batches, epoch, *rest)

        self.monkeypatch.setattr(running, "train_epoch", train_epoch)

    def interrupt(self, number: int) -> None:
        """SIGTERM comes at the start of that epoch."""
        self(number, lambda: signal.raise_signal(signal.SIGTERM))

    def nothing(self) -> None:
        """From here on no action is called."""
        self.monkeypatch.setattr(running, "train_epoch", self.train_epoch)


@pytest.fixture
def at_epoch(monkeypatch: pytest.MonkeyPatch) -> AtEpoch:
    return AtEpoch(monkeypatch)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In `whole` an uninterrupted run, in `half` the same one as it was after the first of three epochs."""
    folder = tmp_path_factory.mktemp("runs")
    whole, half = folder / "whole", folder / "half"
    for part in ("Training_Images", "Training_Labels"):
        (whole / "data" / part).mkdir(parents=True)
    for i in range(5):
        image, label = sample.generate(np.random.default_rng(i), 40)
        (whole / "data" / "Training_Images" / f"{i}.png").write_bytes(png(image))
        (whole / "data" / "Training_Labels" / f"{i}.png").write_bytes(png(label))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(running, "SAVING_SHARE", 1.0)
        monkeypatch.setattr("trainer.heartbeat.EVERY_S", 1000)
        AtEpoch(monkeypatch)(2, lambda: shutil.copytree(whole, half))
        assert train_in(whole) == 0
    (half / "out" / ".lock").unlink()
    return folder


@pytest.fixture
def whole(runs: Path) -> Path:
    return runs / "whole"


@pytest.fixture
def half(runs: Path, tmp_path: Path) -> Path:
    """A copy, for a test to spoil."""
    return shutil.copytree(runs / "half", tmp_path / "half")
