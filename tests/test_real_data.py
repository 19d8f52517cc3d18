"""Real images: UNET_REAL_DATA names a folder that holds `isbi2012/` and `drive/` (see the README)."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Serve, picture, png

from trainer.__main__ import main as train
from trainer.data import read_folder

pytestmark = pytest.mark.realdata


def test_electron_micrographs(real_data: Path) -> None:
    data = read_folder(real_data / "isbi2012")
    assert len(data.samples) == 24
    assert (data.class_values, data.n_classes, data.n_channels) == ((0, 255), 1, 1)
    assert {sample.image.shape for sample in data.samples} == {(512, 512)}


def test_fundus_photographs(real_data: Path) -> None:
    data = read_folder(real_data / "drive")
    assert len(data.samples) == 20
    assert (data.class_values, data.n_classes, data.n_channels) == ((0, 255), 1, 3)
    assert {sample.image.shape for sample in data.samples} == {(584, 565, 3)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dice"), [("isbi2012", 0.85), ("drive", 0.55)])
def test_a_minute_of_training_segments_unseen_images(
    real_data: Path, tmp_path: Path, serve: Serve, name: str, dice: float
) -> None:
    """Dice of the foreground through the service, for the last image, which the training never saw."""
    arguments = ["--base-channels", "8", "--max-minutes", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert train(["--data", str(real_data / name), *arguments]) == 0
    last = read_folder(real_data / name).samples[-1]
    with serve(model=tmp_path / "best_model.pth") as client:
        mask = picture(client.post("/segment", content=png(last.image)).content) > 0
    assert mask.shape == last.label.shape
    truth = last.label > 0
    assert 2 * np.count_nonzero(mask & truth) / (mask.sum() + truth.sum()) > dice
