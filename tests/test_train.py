"""`unet-train`, from the command line to the files."""

import csv
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, png

from trainer import fit as fitting
from trainer.__main__ import main
from trainer.metrics import confusion, scores
from trainer.recipes import RECIPES
from trainer.run import Throttle
from unet import Predictor
from unet import checkpoint as checkpoints

TINY = ["--recipe", "quick", "--base-channels", "2", "--image-size", "32", "--batch-size", "2", "--device", "cpu"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["learner"]["network"]  # type: ignore[no-any-return]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_validation_computes_in_what_training_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
) -> None:
    found: set[torch.dtype] = set()
    validate = fitting.validate

    def watch(predictor: Predictor, *arguments: Any) -> fitting.Validation:
        with predictor.network.register_forward_hook(lambda network, x, logits: found.add(logits.dtype)):
            return validate(predictor, *arguments)

    monkeypatch.setattr(fitting, "validate", watch)
    monkeypatch.setattr(fitting, "fast_bf16", lambda device: fast)
    assert main([*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1"]) == 0
    assert found == {dtype}


def test_a_run_leaves_what_the_design_promises(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, label = tmp_path / "out", data / "Training_Labels" / "3.png"
    two = picture(label.read_bytes())
    two[:4, :4] = 1
    label.write_bytes(png(two))
    assert main([*TINY, "--data", str(data), "--out", str(out), "--epochs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 images to train on, 1 to validate on, classes (0, 1)" in printed
    assert len(re.findall(r"^epoch +\d/3  loss \d\.\d{4}  dice 0 ", printed, re.M)) == 3
    assert re.search(r"^epoch +1/3 .* \d+\.\d s, \d+ s to go  best$", printed, re.M)
    assert re.search(r"^epoch +3/3 .* \d+\.\d s(  best)?$", printed, re.M)
    assert {p.name for p in out.iterdir()} == {
        "best_model.pth",
        "last.pth",
        "history.csv",
        "training.png",
        "samples.png",
        "report.json",
    }
    samples = picture((out / "samples.png").read_bytes())
    assert samples.shape == (520, 3 * 520, 3)
    image, truth, found = (part[4:44, 4:52, 0] for part in np.split(samples, 3, axis=1))
    np.testing.assert_array_equal(truth, 255 * two)
    assert len(np.unique(image)) > 2  # neither of the others
    assert (found != truth).any()
    assert picture((out / "training.png").read_bytes()).ndim == 3
    assert re.search(r"^class 1 +dice \d\.\d{4}  iou \d\.\d{4}$", printed, re.M)
    assert re.search(r"^objects +rand \d\.\d{4}", printed, re.M)
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    best = checkpoints.load(out / "best_model.pth")
    assert best.class_values == (0, 1)
    assert f"{best.training['score']:.6g}" == max((row["score"] for row in rows), key=float)
    report = json.loads((out / "report.json").read_text())
    assert report["recipe"]["base_channels"] == 2
    assert report["best"]["epoch"] == best.training["epoch"]
    assert report["objects"].keys() == {"rand", "information"}
    assert report["timings"]["seconds"] > 0
    assert report["device"]
    assert float(rows[best.training["epoch"] - 1]["threshold"]) == best.threshold


def test_best_is_the_epoch_with_the_highest_score_over_the_whole_validation_set(data: Path, tmp_path: Path) -> None:
    """The saved model, validated again by hand, has the score that the history gives its epoch."""
    out = tmp_path / "out"
    assert main([*TINY, "--data", str(data), "--out", str(out), "--epochs", "4", "--val-fraction", "0.5"]) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu", precision="fp32")  # as it is validated
    hits = total = 0
    for name in ("2.png", "3.png"):
        image, label = (picture((data / part / name).read_bytes()) for part in ("Training_Images", "Training_Labels"))
        mask = predictor.mask(image) > 0
        hits += 2 * int((mask & (label > 0)).sum())
        total += int(mask.sum() + (label > 0).sum())
    saved = checkpoints.load(out / "best_model.pth").training["best"]
    assert hits / total == pytest.approx(saved["dice_1"])


def test_more_than_two_values_train_one_class_each(data: Path, tmp_path: Path) -> None:
    for path in (data / "Training_Labels").iterdir():
        label = picture(path.read_bytes())
        label[:5] = 7
        path.write_bytes(png(label))
    assert main([*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1"]) == 0
    predictor = Predictor.load(tmp_path / "out" / "best_model.pth", device="cpu")
    assert predictor.class_values == (0, 1, 7)
    assert predictor(np.zeros((20, 20), np.uint8)).shape == (3, 20, 20)
    assert set(np.unique(predictor.mask(np.zeros((20, 20), np.uint8)))) <= {0, 1, 7}


Interrupt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """`with interrupt(3): ...`: SIGTERM comes in epoch 3."""
    run_epoch = fitting.run_epoch

    @contextmanager
    def interrupted(epoch: int) -> Iterator[None]:
        def run(*args: Any) -> dict[str, float]:
            if args[2] == epoch:
                signal.raise_signal(signal.SIGTERM)
            return run_epoch(*args)

        with monkeypatch.context() as patch:
            patch.setattr(fitting, "run_epoch", run)
            yield

    return interrupted


def assert_same_run(one: Path, other: Path) -> None:
    assert same(weights(one / "last.pth"), weights(other / "last.pth"))
    first, second = (checkpoints.load(out / "best_model.pth") for out in (one, other))
    assert first.training["epoch"] == second.training["epoch"]
    assert same(dict(first.state_dict), dict(second.state_dict))


def test_an_interrupted_run_ends_with_the_same_weights(
    data: Path, tmp_path: Path, interrupt: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--data", str(data), "--epochs", "4", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    with interrupt(3):
        assert main([*command, str(tmp_path / "parts")]) == 143
    capsys.readouterr()
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert "going on after epoch 2" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_run_killed_without_warning_does_too_and_until_then_keeps_others_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--data", str(data), "--epochs", "4", "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "trainer", *arguments, str(tmp_path / "parts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        next(line for line in program.stdout if line.startswith("epoch   2/4"))
        program.send_signal(signal.SIGSTOP)
        assert main([*arguments, str(tmp_path / "parts")]) == 2
        assert f"parts: another unet-train is writing there (process {program.pid} on " in capsys.readouterr().err
        program.kill()
    assert program.returncode == -signal.SIGKILL
    assert main([*arguments, str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_stays_and_another_one_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1"]
    assert main(command) == 0
    before = (tmp_path / "out" / "best_model.pth").read_bytes()
    assert main(command) == 0
    assert "already finished" in capsys.readouterr().out
    assert main([*command, "--seed", "1", "--lr", "0.5"]) == 2
    assert "recipe.lr: was 0.002, is 0.5; seed: was 0, is 1" in capsys.readouterr().err
    (data / "Training_Labels" / "0.png").write_bytes((data / "Training_Labels" / "1.png").read_bytes())
    assert main(command) == 2
    assert "Training_Labels/0.png has changed" in capsys.readouterr().err
    assert (tmp_path / "out" / "best_model.pth").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "out" / "best_model.pth").read_bytes() != before


def test_a_model_that_it_did_not_make_is_not_overwritten(
    data: Path, tmp_path: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint()
    assert main([*TINY, "--data", str(data), "--out", str(tmp_path), "--epochs", "1"]) == 2
    assert "best_model.pth is there" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run_before_the_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "loss_of", lambda logits, *_: (logits * torch.inf).sum())
    assert main([*TINY, "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"the loss became (nan|inf|-inf) in epoch 1, step 1; .*Lower --lr", capsys.readouterr().err)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out" / "last.pth").values())
    assert not (tmp_path / "out" / "best_model.pth").exists()


def test_the_loss_of_an_epoch_is_the_mean_over_all_its_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []

    def step(*_: object) -> torch.Tensor:
        steps.append(len(steps))
        return torch.tensor(steps[-1])

    monkeypatch.setattr(fitting.Learner, "step", step)
    assert main([*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1"]) == 0
    (row,) = csv.DictReader((tmp_path / "out" / "history.csv").read_text().splitlines())
    assert float(row["loss"]) == pytest.approx(sum(steps) / len(steps))
    assert len(steps) > 1


def test_the_time_limit_ends_a_run_with_a_validated_model(data: Path, tmp_path: Path) -> None:
    command = [*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "100000"]
    assert main([*command, "--max-minutes", "0.02"]) == 0
    assert checkpoints.load(tmp_path / "out" / "best_model.pth").training["score"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "{tmp}/nowhere"], "nowhere: no such folder"),
        (["--data", "{tmp}"], "Training_Images/: no such folder"),
        (["--data", "{data}", "--out", "{data}/Training_Images/0.png"], "0.png"),
    ],
)
def test_what_the_user_can_mend_ends_with_2_and_no_traceback(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    filled = [a.format(tmp=tmp_path, data=data) for a in arguments]
    assert main([*TINY, "--out", str(tmp_path / "out"), *filled]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("unet-train: error: ")
    assert "Traceback" not in printed


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_every_recipe_resumes_exactly(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Interrupt, recipe: str
) -> None:
    """Averages, drop-out, momentum, weights of borders and augmentation: none of it forgets where it was."""
    small = RECIPES[recipe].override(base_channels=2, image_size=36 if recipe == "paper" else 32, batch_size=2)
    monkeypatch.setitem(RECIPES, recipe, replace(small, min_steps=2))
    command = ["--recipe", recipe, "--data", str(data), "--device", "cpu", "--epochs", "3", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    with interrupt(2):
        assert main([*command, str(tmp_path / "parts")]) == 143
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_average_is_what_is_validated_and_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "quick", replace(RECIPES["quick"], ema=0.9, min_steps=3))
    out = tmp_path / "out"
    assert main([*TINY, "--data", str(data), "--out", str(out), "--epochs", "1"]) == 0
    state = torch.load(out / "last.pth", weights_only=True)["learner"]
    best = checkpoints.load(out / "best_model.pth").state_dict
    assert all(torch.equal(state["averaged"][f"module.{name}"], tensor) for name, tensor in best.items())
    assert not torch.equal(state["network"]["outc.conv.weight"], best["outc.conv.weight"])


def test_the_stored_threshold_maximises_the_score(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*TINY, "--data", str(data), "--out", str(out), "--epochs", "3"]) == 0
    predictor = Predictor.load(out / "best_model.pth", device="cpu")
    image, label = (picture((data / part / "3.png").read_bytes()) for part in ("Training_Images", "Training_Labels"))

    def score(threshold: float) -> float:
        return scores(confusion(predictor.mask(image, threshold) // 255, label, 2)).score

    assert score(predictor.threshold) == pytest.approx(max(score(k / 100) for k in range(1, 100)), abs=0.002)


def test_cross_validation_flags(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--data", str(data), "--epochs", "1", "--out", str(tmp_path / "out"), "--folds", "2"]
    assert main([*command, "--fold", "2"]) == 0
    assert "2 images to train on, 2 to validate on" in capsys.readouterr().out
    assert main([*command, "--fold", "3"]) == 2
    assert "fold 3 of 2" in capsys.readouterr().err
    assert main([*TINY, "--data", str(data), "--out", str(tmp_path / "other"), "--fold", "2"]) == 2
    assert "--fold 2: expected --folds with it" in capsys.readouterr().err
    assert main([*command, "--val-fraction", "0.2"]) == 2  # also where it is the default
    said = capsys.readouterr().err
    assert said.startswith("unet-train: error: --val-fraction 0.2 and --folds 2: expected one of them")
    assert said.count("\n") == 1
    monkeypatch.setenv("TRAINER_VAL_FRACTION", "0.5")
    assert main(command) == 2
    assert "--val-fraction 0.5 and --folds 2: expected one of them" in capsys.readouterr().err


def test_validation_on_random_images(data: Path, tmp_path: Path) -> None:
    command = [*TINY, "--data", str(data), "--epochs", "1", "--seed", "2"]
    losses = []
    for kind in ("contiguous", "random"):
        assert main([*command, "--val-split", kind, "--out", str(tmp_path / kind)]) == 0
        (row,) = csv.DictReader((tmp_path / kind / "history.csv").read_text().splitlines())
        losses.append(row["loss"])
    assert losses[0] != losses[1]  # of other images


def test_images_without_any_object(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Are as good as others to learn what is none, as long as there are some with."""
    label = data / "Training_Labels" / "3.png"
    label.write_bytes(png(np.zeros_like(picture(label.read_bytes()))))
    command = [*TINY, "--data", str(data), "--epochs", "1", "--out", str(tmp_path / "out"), "--val-fraction"]
    assert main([*command, "0.25"]) == 2  # nothing but this one
    assert "all there is to validate on is of one class" in capsys.readouterr().err
    assert main([*command, "0.5"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(math.isfinite(value) for value in report["objects"].values())


def test_a_class_that_no_image_to_validate_on_has(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Says so, and chooses the best epoch by the others."""
    label = data / "Training_Labels" / "0.png"
    third = picture(label.read_bytes())
    third[:10] = 2
    label.write_bytes(png(third))
    out = tmp_path / "out"
    assert main([*TINY, "--data", str(data), "--epochs", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "class 2 is in no image to validate on: it has no score" in printed
    assert "class 2  " not in printed
    first, second = csv.DictReader((out / "history.csv").read_text().splitlines())
    assert float(first["score"]) == pytest.approx((float(first["dice_0"]) + float(first["dice_1"])) / 2, abs=1e-5)
    assert "dice_2" not in second
    assert Predictor.load(out / "best_model.pth", device="cpu").class_values == (0, 1, 2)


def test_images_of_12_bits_in_16_are_dark(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To a recipe that takes brightness as it is."""
    for path in (data / "Training_Images").iterdir():
        path.write_bytes(png(picture(path.read_bytes()).astype(np.uint16) * 16))
    command = [*TINY, "--data", str(data), "--epochs", "1", "--out", str(tmp_path / "out"), "--force"]
    dark = r"the brightest pixel is 0\.05\d* of the range of uint16; .*: scale .*, or take --recipe default$"
    assert main([*command, "--recipe", "tutorial"]) == 0
    assert re.search(dark, capsys.readouterr().out, re.M)
    assert main(command) == 0
    assert "the brightest pixel" not in capsys.readouterr().out
    path.write_bytes(png(picture(path.read_bytes()) * 16))
    assert main([*command, "--recipe", "tutorial"]) == 0
    assert "the brightest pixel" not in capsys.readouterr().out


def test_one_pixel_at_the_bottom_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1", "--image-size", "16"]
    assert main([*small, "--batch-size", "1"]) == 2
    assert "--image-size 16 leaves a single pixel at the bottom of the network" in capsys.readouterr().err
    assert main([*small, "--batch-size", "2"]) == 0


def test_answers_that_are_no_numbers_end_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as after a last step that was too long, which no further loss tells of."""
    command = [*TINY, "--data", str(data), "--out", str(tmp_path / "out"), "--recipe", "tutorial", "--lr", "1e20"]
    assert main([*command, "--epochs", "1", "--batch-size", "128"]) == 2  # a single step
    assert "no numbers any more. Lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "out" / "best_model.pth").exists()


def test_a_crop_that_the_network_cannot_make_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "paper", "--image-size", "256"]) == 2
    assert "a multiple of 16, plus 4 (such as 388)" in capsys.readouterr().err


def test_saving_takes_a_fifth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    saving = Throttle()
    assert saving.due()
    with saving:
        now += 2
    found = []
    for _ in range(9):
        now += 1
        found.append(saving.due())
    assert found == [False] * 7 + [True] * 2


@pytest.mark.slow
def test_the_best_model_is_saved_later_as_it_was_then(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--data", str(data), "--epochs", "6", "--lr", "0.1", "--out"]  # it gets worse
    assert main([*command, str(tmp_path / "often")]) == 0
    monkeypatch.setattr(Throttle, "due", lambda _: False)  # but at the end
    assert main([*command, str(tmp_path / "once")]) == 0
    assert (
        checkpoints.load(tmp_path / "once" / "best_model.pth").training["epoch"] < 6
    )  # the weights have changed since
    assert_same_run(tmp_path / "often", tmp_path / "once")
