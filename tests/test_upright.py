"""Images that have an up are recognised by their labels, and never turned."""

from dataclasses import replace

import numpy as np
import torch

from trainer.data import Sample
from trainer.data.augment import draw
from trainer.data.upright import are_upright
from trainer.recipes import RECIPES


def streets(n: int, *, turned: bool = False) -> list[Sample]:
    """Labels with sky (0) above, ground (1) below and a little of both at the other's place."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(n):
        label = (np.arange(60)[:, None] + rng.normal(0, 12, (60, 80)) > 30).astype(np.uint8)
        label = np.rot90(label, i) if turned else label
        samples.append(Sample(f"{i}.png", label, np.ascontiguousarray(label)))
    return samples


def test_classes_one_above_the_other_in_all_images() -> None:
    assert are_upright(streets(3), 2)
    assert not are_upright(streets(8, turned=True), 2)


def test_two_images_or_ignored_pixels_show_nothing() -> None:
    assert not are_upright(streets(2), 2)
    ignored = [replace(sample, label=np.full_like(sample.label, 255)) for sample in streets(4)]
    assert not are_upright(ignored, 2)


def test_upright_images_are_mirrored_and_hardly_turned() -> None:
    how = RECIPES["default"].suited(1, 0.0, 20, upright=True).augmentation
    matrix = draw(200, 128, how, torch.Generator().manual_seed(0)).matrix
    assert (matrix[:, 1, 1] > 0).all()
    assert {-1.0, 1.0} == set(matrix[:, 0, 0].sign().tolist())
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 1, 1]).rad2deg().abs()
    assert 5 < angle.max() <= 10
