"""`unet-train`: the files of a run, what it prints, and the flags that choose the data."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, png
from trainer_runs import arguments, history, train

from trainer import learner, muon, run
from trainer.__main__ import main
from trainer.data import Batches
from trainer.fit import train_epoch, validate
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
    assert train(data=data, out=out, epochs=3, val_fraction=0.5) == 0
    assert {path.name for path in out.iterdir() if path.name != ".lock"} == {
        "best_model.pth",
        "last.pth",
        "history.csv",
        "training.png",
        "samples.png",
        "report.json",
        "progress.json",
    }
    rows = history(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    model = checkpoints.load(out / "best_model.pth")
    assert model.class_values == (0, 1)
    assert model.training["epoch"] == 3
    assert f"{model.training['score']:.6g}" == rows[2]["score"]
    assert f"{model.training['score_error']:.6g}" == rows[2]["score_error"]
    assert float(rows[2]["threshold"]) == model.threshold
    report = json.loads((out / "report.json").read_text())
    assert report["recipe"]["base_channels"] == 2
    assert (report["epoch"], report["score"]) == (3, model.training["score"])
    assert report["scored"]["images"] == ["2", "3"]
    assert report["objects"].keys() == {"rand", "information"}
    assert report["timings"]["seconds"] > 0
    assert report["device"]

    printed = capsys.readouterr().out
    assert "2 images to train on, 2 to validate on (contiguous: 2, 3)\n" in printed
    assert re.search(r"^recipe    quick: base 2, 3 epochs, 2 crops of 32 px per step, .*\ndevice ", printed, re.M)
    assert len(re.findall(r"^epoch +\d/3  loss \d\.\d{4}  dice 0 ", printed, re.M)) == 3
    assert re.search(r"^epoch +1/3 .* \d+\.\d s, \d\d:\d\d to go$", printed, re.M)
    assert re.search(r"^epoch +3/3 .* score \d\.\d{4}  \d+\.\d s$", printed, re.M)
    assert re.search(r"^foreground +dice \d\.\d{4}  iou \d\.\d{4}$", printed, re.M)
    assert re.search(r"^objects +rand \d\.\d{4}", printed, re.M)
    assert re.search(
        r"^finished: score \d\.\d{4} ± \d\.\d{4} on held-out images in epoch 3; \S+/best_model.pth holds the weights "
        "of the last epoch, 3$",
        printed,
        re.M,
    )


def test_few_images_are_all_learned_from_in_the_end(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four images gives the score of two epochs of five. The last three learn from it, and score nothing."""
    images, pages = [], []

    def watched(learner: Any, batches: Batches, *rest: Any) -> dict[str, float]:
        images.append(len(batches.images))
        pages.append((out / "samples.png").read_bytes() if (out / "samples.png").exists() else None)
        return train_epoch(learner, batches, *rest)

    monkeypatch.setattr(run, "train_epoch", watched)
    assert train(data=data, out=out, epochs=5) == 0
    assert images == [3, 3, 4, 4, 4]
    assert pages[1] is None
    assert pages[2] == (out / "samples.png").read_bytes()  # what the network did not know by heart yet
    rows = history(out)
    assert [bool(row["score"]) for row in rows] == [bool(row["threshold"]) for row in rows] == [True] * 2 + [False] * 3
    model = checkpoints.load(out / "best_model.pth")
    assert model.training["epoch"] == 5
    assert model.training["scored"]["epoch"] == 2
    assert model.training["scored"]["joined"]
    assert model.threshold == 0.5  # a single image is no reason for another one
    report = json.loads((out / "report.json").read_text())
    assert f"{report['score']:.6g}" == rows[1]["score"]
    assert report["score_error"] is report["scored"]["score_error"] is None

    printed = capsys.readouterr().out
    assert "the score is that of the 1 image held out until 30% of the run" in printed
    assert printed.count("from now on the run learns from the 1 image that gave the score, too") == 1
    assert re.search(r"^epoch +4/5  loss \d\.\d{4}  \d+\.\d s, ", printed, re.M)
    said = r"^finished: score \d\.\d{4} on held-out images in epoch 2, before they were learned from; .* last epoch, 5$"
    assert re.search(said, printed, re.M)


def test_images_join_after_their_share_of_the_time(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test, whose epochs take all the time that they may."""
    now, found = 0.0, []

    def train_epoch(
        learner: object, batches: Batches, epoch: int, schedule: object, elapsed: float, until: float, *_: object
    ) -> dict[str, float]:
        nonlocal now
        found.append((len(batches.images), until))
        now += until - elapsed
        return {"epoch": epoch, "loss": 1.0, "lr": 1.0}

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(run, "train_epoch", train_epoch)
    monkeypatch.setattr("trainer.report.account", lambda *_: None)
    assert train(data=data, out=out, epochs=100, max_minutes=1) == 0
    assert found == [(3, 18), (4, 60)]


@pytest.mark.parametrize(("fast", "optimizer", "epochs"), [(True, "muon", 40), (False, "adamw", 100)])
def test_a_few_images_of_objects_are_learned_in_fewer_epochs_unless_a_flag_says_how_many(
    data: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fast: bool,
    optimizer: str,
    epochs: int,
) -> None:
    """By the optimiser that suits the device."""
    monkeypatch.setattr(muon, "fast_bf16", lambda device: fast)
    options = {"data": data, "out": out, "labels": "instances", "recipe": "default", "max_minutes": 0.01}
    command = arguments(**options)
    at = command.index("--epochs")
    assert main(command[:at] + command[at + 2 :]) == 0
    printed = capsys.readouterr().out
    assert f"{epochs} epochs, not 400: after a longer run on a few images of objects" in printed
    assert f" {optimizer} at " in printed
    assert re.search(rf"^epoch +1/{epochs} ", printed, re.M)
    assert train("--force", **options, epochs=300) == 0
    printed = capsys.readouterr().out
    assert "longer run" not in printed
    assert re.search(r"^epoch +1/300 ", printed, re.M)


def test_a_run_with_one_image(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in data.glob("*/[023].png"):
        path.unlink()
    assert train(data=data, out=out, epochs=2) == 0
    printed = capsys.readouterr().out
    assert "1 image to train on, 1 to validate on (contiguous: 1 last quarter)" in printed
    assert checkpoints.load(out / "best_model.pth").training["epoch"] == 2


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


def test_the_score_is_that_of_the_model_on_the_whole_validation_set(data: Path, out: Path) -> None:
    """The saved model, validated again by hand."""
    assert train(data=data, out=out, epochs=4, val_fraction=0.5) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu", precision="fp32")
    hits = total = 0
    for name in ("2.png", "3.png"):
        image, label = (picture((data / part / name).read_bytes()) for part in ("Training_Images", "Training_Labels"))
        mask = predictor.mask(image) > 0
        hits += 2 * int((mask & (label > 0)).sum())
        total += int(mask.sum() + (label > 0).sum())
    scored = checkpoints.load(out / "best_model.pth").training["scored"]
    assert hits / total == pytest.approx(scored["dice_1"], abs=0.01)


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
    assert said.startswith("unet-train: error: --val-fraction 0.2, --folds 2: expected only one of them")
    assert said.count("\n") == 1
    monkeypatch.setenv("TRAINER_VAL_FRACTION", "0.5")
    assert train(data=data, out=out, folds=2) == 2
    assert "--val-fraction 0.5, --folds 2: expected only one of them" in capsys.readouterr().err


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
    assert train(data=data, out=out, val_split="contiguous") == 0
    printed = capsys.readouterr().out
    assert "class 1 is in no image to validate on: it has no score" in printed
    assert not re.search(r"^class 1 +dice", printed, re.M)
    assert json.loads((out / "report.json").read_text())["objects"] == {}
    for i in range(3):
        change_label(data, f"{i}.png", slice(None), 0)
    change_label(data, "3.png", slice(0, 5), 1)
    assert train("--force", data=data, out=out, val_split="contiguous") == 2
    assert "all labels to train on hold a single class" in capsys.readouterr().err


def test_a_class_that_is_in_no_validation_image_has_no_score(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_label(data, "0.png", slice(0, 10), 2)
    assert train(data=data, epochs=2, out=out, val_fraction=0.25) == 0
    printed = capsys.readouterr().out
    assert "class 2 is in no image to validate on: it has no score" in printed
    assert not re.search(r"^class 2 +dice", printed, re.M)
    first, second = history(out)
    assert float(first["score"]) == pytest.approx((float(first["dice_0"]) + float(first["dice_1"])) / 2, abs=1e-5)
    assert "dice_2" not in second
    assert Predictor.load(out / "best_model.pth", device="cpu").class_values == (0, 1, 2)


def test_dark_images_are_warned_of_by_a_recipe_without_normalisation(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "Training_Images").iterdir():
        path.write_bytes(png(picture(path.read_bytes()).astype(np.uint16) * 16))  # 12 bits of 16
    dark = r"4 of 4 images: expected uint16 values up to 65535, .*: scale .*, or train with --recipe default$"
    assert train("--force", data=data, out=out, recipe="tutorial") == 0
    assert re.search(dark, capsys.readouterr().out, re.M)
    assert train("--force", data=data, out=out) == 0
    assert "takes brightness as it is" not in capsys.readouterr().out
    path.write_bytes(png(picture(path.read_bytes()) * 16))
    assert train("--force", data=data, out=out, recipe="tutorial") == 0
    assert "3 of 4 images: expected uint16 values" in capsys.readouterr().out


def test_the_channel_that_was_learned_from_is_taken_in_prediction(data: Path, out: Path) -> None:
    for path in (data / "Training_Images").iterdir():
        grey = picture(path.read_bytes())
        colour = np.dstack([255 - grey, grey, np.zeros_like(grey)])
        path.write_bytes(png(colour))
    assert train(data=data, out=out, channel=2) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu")
    assert (predictor.n_channels, predictor.preprocessing.channel) == (1, 2)
    np.testing.assert_array_equal(predictor(colour), predictor(grey))
    assert (predictor(colour[..., ::2]) == predictor(colour[..., 2])).all()  # the second of two
