"""Several processes train as one would: two of them on this machine, over gloo."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import sample
from trainer.world import World

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


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    World(rank=0, size=2).check(4)
    with pytest.raises(ValueError, match="a multiple of the 2 processes"):
        World(rank=0, size=2).check(5)
