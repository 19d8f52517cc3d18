"""Width and length of a run that the flags leave open."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import muon, plan
from trainer.data import DataSet, Sample
from trainer.plan import Plan, begun, choose, is_open
from trainer.recipes import RECIPES
from trainer.settings import TrainSettings
from unet import checkpoint as checkpoints
from unet.files import replace_atomically

CPU = torch.device("cpu")
BEGUN = {"progress": {"epoch": 1}}
RECIPE = RECIPES["default"].override(epochs=1000)


def chosen(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], **settings: Any) -> Plan:
    """The plan on a device that takes so many seconds for a step of each width, of which an epoch has 20."""
    monkeypatch.setattr(plan, "time_step", lambda recipe, *_: (seconds[recipe.base_channels], 20))
    return choose(TrainSettings(**settings), RECIPE, DataSet([], (0, 255), {}), [], CPU)


def test_a_slow_machine_takes_the_narrowest_network_for_half_an_hour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(monkeypatch, {16: 0.4, 32: 1.2}) == Plan(16, 28)
    said = capsys.readouterr().out
    assert "base 16 for 28 minutes: about 4200 steps" in said
    assert "about 36 hours: --base-channels 64 --epochs 1000" in said  # 20,000 steps of 0.4 s; 16 times the arithmetic


def test_a_faster_machine_takes_the_widest_network_that_makes_enough_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {16: 0.1, 32: 0.4, 64: 1.5}) == Plan(32, 28)


def test_a_machine_that_is_fast_enough_does_all_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(monkeypatch, {16: 0.003, 32: 0.01, 64: 0.03}) == Plan(64, None)
    assert "all 1000 epochs: about 10 minutes" in capsys.readouterr().out


def test_the_user_s_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {16: 0.1, 32: 0.4, 64: 1.7}, max_minutes=120) == Plan(64, 120)


def test_what_a_flag_says_is_not_chosen() -> None:
    assert is_open(TrainSettings(), CPU)
    assert is_open(TrainSettings(max_minutes=5), CPU)
    assert not is_open(TrainSettings(base_channels=16), CPU)
    assert not is_open(TrainSettings(epochs=3), CPU)
    assert not is_open(TrainSettings(recipe="quick"), CPU)
    assert not is_open(TrainSettings(), torch.device("cuda"))


def test_an_interrupted_run_keeps_its_plan(tmp_path: Path) -> None:
    settings, data = TrainSettings(out=tmp_path), DataSet([], (0, 255), {})
    found = {"base_channels": 32, "max_minutes": 28.0}
    recipe = {"name": "default", "optimizer": "adamw"}
    replace_atomically(tmp_path / "last.pth", checkpoints.to_bytes({"run": {"plan": found, "recipe": recipe}} | BEGUN))
    assert plan.plan(settings, RECIPE, data, [], CPU) == Plan(32, 28)
    assert plan.plan(TrainSettings(out=tmp_path, max_minutes=60), RECIPE, data, [], CPU) == Plan(32, 60)  # another run
    assert begun(settings) == (Plan(32, 28), "adamw")
    assert begun(TrainSettings(out=tmp_path, force=True)) == (None, None)
    assert begun(TrainSettings(out=tmp_path, recipe="quick")) == (None, None)
    without_epochs = {"run": {"plan": found, "recipe": recipe}, "progress": {"epoch": 0}}
    for other in (
        without_epochs,
        {"run": {"plan": {"width": 3}, "recipe": recipe}},
        {"run": {"plan": None}},
        {"run": 3},
        {},
    ):
        replace_atomically(tmp_path / "last.pth", checkpoints.to_bytes(BEGUN | other))
        assert begun(settings) == (None, None)
    (tmp_path / "last.pth").write_bytes(b"no checkpoint")
    assert begun(settings) == (None, None)


def test_an_interrupted_run_keeps_its_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that would choose another one, and one of a version that knew no other."""
    settings = TrainSettings(out=tmp_path)
    monkeypatch.setattr(muon, "fast_bf16", lambda device: True)
    assert plan.optimizer(settings, RECIPE, CPU).optimizer == "muon"
    for before, found in (("adamw", "adamw"), ("muon", "muon")):
        state = {"run": {"plan": None, "recipe": {"name": "default", "optimizer": before}}} | BEGUN
        replace_atomically(tmp_path / "last.pth", checkpoints.to_bytes(state))
        for fast in (True, False):
            monkeypatch.setattr(muon, "fast_bf16", lambda device, fast=fast: fast)
            assert plan.optimizer(settings, RECIPE, CPU).optimizer == found
            paper = TrainSettings(out=tmp_path, recipe="paper")
            assert plan.optimizer(paper, RECIPES["paper"], CPU) == RECIPES["paper"]


def test_a_step_is_timed() -> None:
    pixels = torch.arange(64 * 64).reshape(64, 64).numpy().astype("uint8")
    samples = [Sample("a", pixels, (pixels > 9).astype("uint8"))]
    recipe = RECIPES["quick"].override(base_channels=2, image_size=32, batch_size=2)
    seconds, steps = plan.time_step(recipe, DataSet(samples, (0, 255), {}), samples, CPU)
    assert 0 < seconds < 60
    assert steps == 20
