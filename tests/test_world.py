"""Two processes on this machine, over gloo, train the same as one."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_runs import TORCHRUN, history, last_weights

from trainer import world
from trainer.data import DataError, sample
from trainer.run import run
from trainer.settings import TrainSettings
from unet.errors import UserError

# The paper's network has no batch norm, which on CPUs sees only the share of one process, and dropout is off: nothing
# random is left that the processes do not share.
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
    return [float(row[name]) for row in history(out)]


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_and_weights_of_one(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    sample.write(tmp_path / "data")
    for path in (tmp_path / "data").glob("*/*.png"):
        if path.stem > "02":
            path.unlink()
    arguments = ["--recipe", "paper", "--data", str(tmp_path / "data"), "--epochs", "3", "--lr", "0.01"]
    printed = {}
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        command = [sys.executable, *launcher, str(tmp_path / "program.py"), *arguments, "--device", "cpu"]
        command += ["--out", str(tmp_path / name)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-5000:]
        printed[name] = done.stdout
    one, two = column("loss", tmp_path / "one"), column("loss", tmp_path / "two")
    assert column("crops", tmp_path / "one") == column("crops", tmp_path / "two")
    assert one[2] < one[1] < one[0]
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert len(re.findall(r"^epoch", printed["two"], re.M)) == 3  # only the first process prints
    weights = [last_weights(tmp_path / name) for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, *TORCHRUN, "-m", "trainer", "--device", "cpu", "--data", str(tmp_path / "missing")]
    command += ["--out", str(tmp_path / "out")]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200).stderr
    lines = [line for line in said.splitlines() if line.startswith("unet-train: ")]
    assert sum("missing: no such folder" in line for line in lines) == 1
    assert [line for line in lines if "another process of this run has ended" in line or "stopped by SIGTERM" in line]
    assert "RuntimeError" not in said


def test_a_run_that_restarts_cannot_be_forced_to_start_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match=r"^--force: every restart would start over; expected it without"):
        run(TrainSettings(data=str(tmp_path / "missing"), out=tmp_path, force=True))


def test_other_errors_are_not_blamed_on_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with (
        pytest.raises(UserError, match=r"has ended; its own message may say why \(.gloo/pair.cc. Connection closed\)"),
        world.join("cpu"),
    ):
        raise RuntimeError("[gloo/pair.cc] Connection closed\nand a stack")
    with pytest.raises(torch.OutOfMemoryError), world.join("cpu"):
        raise torch.OutOfMemoryError("no memory")


def test_each_process_needs_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="found 1 GPUs for 2 processes: expected --nproc_per_node=1"):
        world.claim_gpu("auto")
    with pytest.raises(UserError, match="--device cuda:0: expected cuda or cpu"):
        world.claim_gpu("cuda:0")
    with pytest.raises(DataError):  # on a CPU any number of processes may train
        run(TrainSettings(data=str(tmp_path), out=tmp_path / "out", device="cpu"))
