"""`unet-train`: the files of a run, what it prints, and the flags that choose the data."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, png
from trainer_runs import history, train

from trainer import learner, run
from trainer.fit import validate
from trainer.metrics import confusion, scores
from unet import Predictor
from unet import checkpoint as checkpoints


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def change_label(data: Path, name: str, rows: slice, value: int) -> np.ndarray:
    """Set rows of a label to a value; returns the label."""
    path = data / "Training_Labels" / name
    label = picture(path.read_bytes())
    label[rows] = value
    path.write_bytes(png(label))
    return label


def test_a_run_writes_the_promised_files(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_label(data, "3.png", slice(0, 4), 1)  # a second object
    assert train(data=data, out=out, epochs=3) == 0
    assert {path.name for path in out.iterdir() if path.name != ".lock"} == {
        "best_model.pth",
        "last.pth",
        "history.csv",
        "training.png",
        "samples.png",
        "report.json",
    }
    rows = history(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    best = checkpoints.load(out / "best_model.pth")
    assert best.class_values == (0, 1)
    assert f"{best.training['score']:.6g}" == max((row["score"] for row in rows), key=float)
    assert float(rows[best.training["epoch"] - 1]["threshold"]) == best.threshold
    report = json.loads((out / "report.json").read_text())
    assert report["recipe"]["base_channels"] == 2
    assert report["best"]["epoch"] == best.training["epoch"]
    assert report["objects"].keys() == {"rand", "information"}
    assert report["timings"]["seconds"] > 0
    assert report["device"]

    printed = capsys.readouterr().out
    assert "3 images to train on, 1 to validate on" in printed
    assert re.search(r"^ +class 1  foreground +\d+\.\d% of the pixels, in 4 images$", printed, re.M)
    assert re.search(r"^recipe    quick: base 2, 3 epochs, 2 crops of 32 px per step, .*\ndevice ", printed, re.M)
    assert len(re.findall(r"^epoch +\d/3  loss \d\.\d{4}  dice 0 ", printed, re.M)) == 3
    assert re.search(r"^epoch +1/3 .* \d+\.\d s, \d\d:\d\d to go  best$", printed, re.M)
    assert re.search(r"^epoch +3/3 .* \d+\.\d s(  best)?$", printed, re.M)
    assert re.search(r"^class 1 +dice \d\.\d{4}  iou \d\.\d{4}$", printed, re.M)
    assert re.search(r"^objects +rand \d\.\d{4}", printed, re.M)


def test_verbose_prints_every_setting(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--verbose", data=data, out=out, epochs=1) == 0
    printed = capsys.readouterr().out
    assert "weight_decay 0.01" in printed
    assert "augmentation.elastic_spacing 64" in printed


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_validation_has_the_precision_of_training(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
) -> None:
    found: set[torch.dtype] = set()

    def watched(predictor: Predictor, *arguments: Any) -> dict[str, float]:
        with predictor.network.register_forward_hook(lambda network, x, logits: found.add(logits.dtype)):
            return validate(predictor, *arguments)

    monkeypatch.setattr(run, "validate", watched)
    monkeypatch.setattr(learner, "fast_bf16", lambda device: fast)
    assert train(data=data, out=out, epochs=1) == 0
    assert found == {dtype}


def test_best_is_the_epoch_with_the_highest_score_over_the_whole_validation_set(data: Path, out: Path) -> None:
    """The saved model, validated again by hand, has the score that the history gives its epoch."""
    assert train(data=data, out=out, epochs=4, val_fraction=0.5) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu", precision="fp32")
    hits = total = 0
    for name in ("2.png", "3.png"):
        image, label = (picture((data / part / name).read_bytes()) for part in ("Training_Images", "Training_Labels"))
        mask = predictor.mask(image) > 0
        hits += 2 * int((mask & (label > 0)).sum())
        total += int(mask.sum() + (label > 0).sum())
    saved = checkpoints.load(out / "best_model.pth").training["best"]
    assert hits / total == pytest.approx(saved["dice_1"], abs=0.01)


def test_the_saved_threshold_has_the_highest_score(data: Path, out: Path) -> None:
    assert train(data=data, out=out, epochs=3) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu")
    image, label = (picture((data / part / "3.png").read_bytes()) for part in ("Training_Images", "Training_Labels"))

    def score(threshold: float) -> float:
        return scores(confusion(predictor.mask(image, threshold) // 255, label, 2)).score

    assert score(predictor.threshold) == pytest.approx(max(score(k / 100) for k in range(1, 100)), abs=0.002)


def test_more_than_two_label_values_are_one_class_each(data: Path, out: Path) -> None:
    for i in range(4):
        change_label(data, f"{i}.png", slice(0, 5), 7)
    assert train(data=data, out=out, epochs=1) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu")
    assert predictor.class_values == (0, 1, 7)
    assert predictor(np.zeros((20, 20), np.uint8)).shape == (3, 20, 20)
    assert set(np.unique(predictor.mask(np.zeros((20, 20), np.uint8)))) <= {0, 1, 7}


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []

    def step(*_: object) -> torch.Tensor:
        steps.append(len(steps))
        return torch.tensor(steps[-1])

    monkeypatch.setattr(learner.Learner, "step", step)
    assert train(data=data, out=out, epochs=1) == 0
    (row,) = history(out)
    assert len(steps) > 1
    assert float(row["loss"]) == pytest.approx(sum(steps) / len(steps))
    assert float(row["crops"]) == 2 * len(steps)


def test_the_time_limit_ends_a_run_with_a_validated_model(data: Path, out: Path) -> None:
    assert train(data=data, out=out, epochs=100_000, max_minutes=0.02) == 0
    assert checkpoints.load(out / "best_model.pth").training["score"] > 0


def test_cross_validation_flags(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(data=data, out=out, folds=2, fold=2) == 0
    assert "2 images to train on, 2 to validate on" in capsys.readouterr().out
    assert train(data=data, out=out, folds=2, fold=3) == 2
    assert "fold 3" in capsys.readouterr().err
    assert train(data=data, out=out, fold=2) == 2
    assert "--fold 2: expected --folds with it" in capsys.readouterr().err
    assert train(data=data, out=out, folds=2, val_fraction=0.2) == 2  # an error even with the default value
    said = capsys.readouterr().err
    assert said.startswith("unet-train: error: --val-fraction 0.2 and --folds 2: expected one of them")
    assert said.count("\n") == 1
    monkeypatch.setenv("TRAINER_VAL_FRACTION", "0.5")
    assert train(data=data, out=out, folds=2) == 2
    assert "--val-fraction 0.5 and --folds 2: expected one of them" in capsys.readouterr().err


def test_validation_on_random_images(data: Path, tmp_path: Path) -> None:
    losses = []
    for kind in ("contiguous", "random"):
        assert train(data=data, out=tmp_path / kind, seed=2, val_split=kind) == 0
        losses.append(history(tmp_path / kind)[0]["loss"])
    assert losses[0] != losses[1]


def test_images_without_objects_are_trained_on_unless_all_are_such(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_label(data, "3.png", slice(None), 0)
    assert train(data=data, out=out, val_fraction=0.25) == 2
    assert "all validation labels hold a single class" in capsys.readouterr().err
    assert train(data=data, out=out, val_fraction=0.5) == 0
    report = json.loads((out / "report.json").read_text())
    assert all(np.isfinite(value) for value in report["objects"].values())


def test_a_class_that_is_in_no_validation_image_has_no_score(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_label(data, "0.png", slice(0, 10), 2)
    assert train(data=data, epochs=2, out=out) == 0
    printed = capsys.readouterr().out
    assert "class 2 is in no image to validate on: it has no score" in printed
    assert "class 2  " not in printed
    first, second = history(out)
    assert float(first["score"]) == pytest.approx((float(first["dice_0"]) + float(first["dice_1"])) / 2, abs=1e-5)
    assert "dice_2" not in second
    assert Predictor.load(out / "best_model.pth", device="cpu").class_values == (0, 1, 2)


def test_dark_images_are_warned_of_by_a_recipe_without_normalisation(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "Training_Images").iterdir():
        path.write_bytes(png(picture(path.read_bytes()).astype(np.uint16) * 16))  # 12 bits of 16
    dark = r"the brightest pixel is 0\.05\d* of the range of uint16; .*: scale .*, or take --recipe default$"
    assert train("--force", data=data, out=out, recipe="tutorial") == 0
    assert re.search(dark, capsys.readouterr().out, re.M)
    assert train("--force", data=data, out=out) == 0
    assert "the brightest pixel" not in capsys.readouterr().out
    path.write_bytes(png(picture(path.read_bytes()) * 16))
    assert train("--force", data=data, out=out, recipe="tutorial") == 0
    assert "the brightest pixel" not in capsys.readouterr().out
