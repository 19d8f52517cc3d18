"""training.png and samples.png: sizes, distinct colours, and any image."""

from pathlib import Path

import numpy as np
import pytest
from conftest import picture

from trainer.data import Sample
from trainer.losses import IGNORED
from trainer.pictures import colours, curves, samples
from unet import NetworkConfig, Predictor
from unet.pixels import Preprocessing


def predictor(n_classes: int) -> Predictor:
    network = NetworkConfig(base_channels=2, n_classes=1 if n_classes == 2 else n_classes).build().eval()
    return Predictor(network, Preprocessing(), class_values=tuple(range(n_classes)))


def sample(height: int, width: int, n_classes: int = 2) -> Sample:
    label = np.arange(height * width).reshape(height, width) * n_classes // (height * width)
    return Sample("stack page 3", (label * 9).astype(np.uint8), label.astype(np.uint8))


@pytest.mark.parametrize("n_classes", [2, 24])
def test_small_and_large_images_fill_the_page(n_classes: int) -> None:
    shown = [sample(16, 16, n_classes), sample(96, 128, n_classes), sample(20, 100, n_classes)]
    page = picture(samples(predictor(n_classes), shown))
    inked = (page < 250).any(axis=2)  # not white
    assert inked.mean() > 0.5
    assert np.diff(np.flatnonzero(inked.any(axis=1))).max() < 60  # pixels: no empty band


def test_a_label_is_shown_in_the_colours_of_its_classes() -> None:
    page = picture(samples(predictor(3), [sample(64, 64, 3)]))
    for colour in predictor(3).class_colours:
        assert (np.abs(page.astype(int) - colour).max(axis=2) <= 2).mean() > 0.05


def test_ignored_pixels_are_grey() -> None:
    shown = sample(64, 64, 3)
    shown.label[:32] = IGNORED
    page = picture(samples(predictor(3), [shown]))
    assert (np.abs(page.astype(int) - 128).max(axis=2) <= 1).mean() > 0.05


def test_colours_of_many_classes_are_distinct() -> None:
    found = colours(predictor(24))
    distances = np.linalg.norm(found[:, np.newaxis] - found, axis=2)
    assert distances[np.triu_indices(24, 1)].min() > 0.2


def test_grey_colour_and_flat_images_are_shown() -> None:
    label = sample(16, 16).label
    grey = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    for image in (grey, np.stack(3 * [grey], axis=2), np.full((16, 16), 7, np.uint8)):
        assert picture(samples(predictor(2), [Sample("any", image, label)])).ndim == 3


def test_curves_of_epochs_without_scores() -> None:
    """Such as those after the images to validate on are learned from, too."""
    row = {"epoch": 1, "loss": 1.0, "lr": 1e-3}
    scored = row | {"score": 0.5, "dice_0": 0.4, "dice_1": 0.6}
    page = picture(curves([scored, row | {"epoch": 2}], predictor(2)))
    assert page.shape == picture(curves([scored], predictor(2))).shape


def test_curves_of_one_epoch_and_of_many_classes(tmp_path: Path) -> None:
    row = {"epoch": 1, "loss": 1.0, "lr": 1e-3, "score": 0.5}
    few = picture(curves([row | {"dice_0": 0.4, "dice_1": 0.6}], predictor(2)))
    many = {f"dice_{value}": value / 64 for value in range(64) if value != 5}  # no label has class 5
    page = picture(curves([row | many, row | many | {"epoch": 2}], predictor(64)))
    assert page.shape[0] == few.shape[0]
    assert page.shape[1] > few.shape[1]  # room for the legend
