"""`--fold all`: every fold in turn, and the mean of their scores."""

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from trainer_runs import assert_same_run, contents, train

from trainer import folds
from trainer.curve import Point
from trainer.run import prepare
from trainer.settings import TrainSettings
from unet import checkpoint as checkpoints

RUN = {"data": "data", "folds": 2}


def test_each_fold_is_the_run_that_its_number_gives(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(out="all", fold="all", **RUN) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("run  ")] == [
        "run       1 of 2, in all/fold-1",
        "run       2 of 2, in all/fold-2",
    ]
    assert train(out="second", fold=2, **RUN) == 0
    assert_same_run(Path("all/fold-2"), Path("second"))
    assert contents(Path("all/fold-2")).keys() == contents(Path("second")).keys() - {"progress.json"}

    scores = [checkpoints.load(Path(f"all/fold-{k}/best_model.pth")).training["score"] for k in (1, 2)]
    rows = dict(list(csv.reader(Path("all/folds.csv").read_text().splitlines()))[1:])
    assert list(rows) == ["1", "2", "mean", "deviation"]
    assert [float(rows["1"]), float(rows["2"])] == pytest.approx(scores, abs=1e-5)
    assert float(rows["mean"]) == pytest.approx(np.mean(scores), abs=1e-5)
    assert printed[-1].startswith(f"folds     score {np.mean(scores):.4f} ± ")

    before = contents(Path("all/fold-1"))
    capsys.readouterr()
    assert train(out="all", fold="all", **RUN) == 0  # a finished one is left as it is
    again = capsys.readouterr().out
    assert again.count("already finished") == 2
    assert again.splitlines()[-1] == printed[-1]
    assert contents(Path("all/fold-1")) == before


def test_the_scores_of_an_earlier_run_go_when_another_begins(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "folds.csv").write_text("of an earlier run")
    settings = TrainSettings(data=str(data), out=tmp_path / "out", recipe="quick", folds=2, fold="all", force=True)
    prepare(settings, settings.resolved_recipe(), torch.device("cpu"))
    assert not (tmp_path / "out" / "folds.csv").exists()


@pytest.mark.parametrize(("engine", "minutes"), [("local", 10), ("ray", 30)])
@pytest.mark.parametrize("flags", [{"folds": 3, "fold": "all"}, {"curve": True}])
def test_runs_share_the_minutes_if_they_follow_each_other(
    data: Path, tmp_path: Path, flags: dict[str, Any], engine: Literal["local", "ray"], minutes: float
) -> None:
    settings = TrainSettings(
        data=str(data), out=tmp_path / "out", recipe="quick", max_minutes=30, engine=engine, **flags
    )
    parts = prepare(settings, settings.resolved_recipe(), torch.device("cpu"))
    assert [part.settings.max_minutes for part in parts] == [minutes] * 3


def test_mean_and_standard_deviation() -> None:
    points = [Point(8, 0.8, []), Point(8, 0.9, []), Point(7, 0.7, [])]
    said = "score 0.8000 ± 0.1000, mean and standard deviation of 0.8000, 0.9000, 0.7000"
    assert folds.sentence(points) == said
    assert folds.table(points).decode() == "fold,score\n1,0.8\n2,0.9\n3,0.7\nmean,0.8\ndeviation,0.1\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"fold": "all"}, "--fold all: expected --folds with it, the number of parts, and no --curve"),
        ({"fold": "all", "folds": 9}, "--fold 1 --folds 9: expected"),
        ({"engine": "ray", "folds": 2}, "--engine ray: expected --fold all or --curve, and no torchrun"),
    ],
)
def test_flags_that_do_not_fit(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, object], said: str
) -> None:
    if "engine" in flags:
        pytest.importorskip("ray")
    assert train(data=data, out=tmp_path / "out", **flags) == 2
    assert said in capsys.readouterr().err
