"""Several processes train as one would: two of them on this machine, over gloo."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data import DataError, sample
from trainer.run import run
from trainer.settings import TrainSettings
from trainer.world import World, WorldError, claim_gpu

# The paper's network has no batch norm, which on CPUs sees only a process's own share; without drop-out nothing is left
# to chance that is not shared.
PROGRAM = """
import sys
from trainer.__main__ import main
from trainer.recipes import RECIPES
from dataclasses import replace
RECIPES["paper"] = replace(
    RECIPES["paper"],
    dropout=0.0,
    loss="ce+dice+cldice",
    mixed_precision=False,
    min_steps=4,
    image_size=68,
    batch_size=4,
    base_channels=2,
)
sys.exit(main())
"""


def column(name: str, out: Path) -> list[float]:
    return [float(row[name]) for row in csv.DictReader((out / "history.csv").read_text().splitlines())]


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    sample.write(tmp_path / "data")
    for path in (tmp_path / "data").glob("*/*.png"):
        if path.stem > "02":
            path.unlink()
    arguments = [
        "--recipe",
        "paper",
        "--data",
        str(tmp_path / "data"),
        "--epochs",
        "3",
        "--lr",
        "0.01",
        "--device",
        "cpu",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    printed = {}
    for name, how in (("one", []), ("two", launch)):
        command = [sys.executable, *how, str(tmp_path / "program.py"), *arguments, "--out", str(tmp_path / name)]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert run.returncode == 0, run.stderr[-5000:]
        printed[name] = run.stdout
    one, two = column("loss", tmp_path / "one"), column("loss", tmp_path / "two")
    assert column("crops", tmp_path / "one") == column("crops", tmp_path / "two")
    assert one[2] < one[1] < one[0]
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert printed["two"].count("finished: best score") == 1  # the first process speaks
    weights = [torch.load(tmp_path / n / "last.pth", weights_only=True)["learner"]["network"] for n in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


def test_who_is_left_alone_says_so_in_a_line(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "trainer", "--device", "cpu"]
    command = [sys.executable, *launch, "--data", str(tmp_path / "missing"), "--out", str(tmp_path / "out")]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200).stderr
    lines = sorted(line for line in said.splitlines() if line.startswith("unet-train: error: "))
    assert len(lines) == 2
    assert "another process of this run has ended" in lines[1] or "another process of this run has ended" in lines[0]
    assert "missing" in "".join(lines)
    assert "RuntimeError" not in said


def test_what_else_goes_wrong_is_not_another_process() -> None:
    said = r"has ended, and says why if it could \(.gloo/pair.cc. Connection closed\)"
    with pytest.raises(WorldError, match=said), World(0, 2).together():
        raise RuntimeError("[gloo/pair.cc] Connection closed\nand a stack")
    with pytest.raises(torch.OutOfMemoryError), World(0, 2).together():
        raise torch.OutOfMemoryError("no memory")


def test_processes_without_a_gpu_each_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(WorldError, match="found 1 GPUs for 2 processes: expected --nproc_per_node=1"):
        claim_gpu()
    with pytest.raises(DataError):  # on a CPU there may be as many as one likes
        run(TrainSettings(data=str(tmp_path), out=tmp_path / "out", device="cpu"))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    World(rank=0, size=2).check(4)
    with pytest.raises(ValueError, match="a multiple of the 2 processes"):
        World(rank=0, size=2).check(5)
