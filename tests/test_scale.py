"""The scale that labels ask for."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from trainer.data import Sample
from trainer.data.scale import narrowest, scale_for


def sample(label: np.ndarray) -> Sample:
    return Sample("label", label, label)


def disc(diameter: int, size: int) -> Sample:
    return sample(cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), diameter // 2, 1, cv2.FILLED))


def test_the_width_of_a_stripe_and_of_a_disc() -> None:
    stripe = np.zeros((400, 400), np.uint8)
    stripe[:, 100:140] = 1
    assert narrowest([sample(stripe)]) == pytest.approx(40, rel=0.1)
    assert narrowest([disc(300, 900)]) == pytest.approx(200, rel=0.05)


def test_ignored_pixels_have_no_width() -> None:
    label = disc(300, 900).label.copy()
    label[:3] = 255
    assert narrowest([sample(label)]) > 150


@pytest.mark.parametrize(("diameter", "size", "scale"), [(12, 300, 1), (200, 600, 1), (800, 1600, 1 / 4)])
def test_only_large_things_change_the_scale(diameter: int, size: int, scale: float) -> None:
    assert scale_for([disc(diameter, size)]) == pytest.approx(scale)


def test_touching_objects_are_measured_one_by_one() -> None:
    """A sheet of 1200 x 1200 pixels: one object, rows, columns or squares of 40 pixels."""
    label = np.zeros((2400, 2400), np.uint8)
    label[600:1800, 600:1800] = 1
    cells = np.arange(2400) // 40
    assert scale_for([sample(label)]) < 1
    for ids in (cells[:, None], cells, cells[:, None] * 60 + cells):
        assert scale_for([replace(sample(label), objects=np.where(label, ids, 0).astype(np.int32))]) == 1


def test_images_are_not_shrunk_beyond_what_a_model_file_may_say() -> None:
    assert scale_for([Sample("slide", np.zeros(0), np.ones((9000, 9000), np.uint8))]) == 1 / 32
