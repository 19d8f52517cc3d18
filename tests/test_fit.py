"""An epoch of training, and validation."""

import math

import numpy as np
import pytest
import torch

from trainer import world
from trainer.data import Batches, Sample
from trainer.fit import train_epoch, validate
from trainer.learner import Learner
from trainer.losses import IGNORED
from trainer.metrics import confusion, scores
from trainer.recipes import RECIPES
from trainer.schedule import Schedule
from trainer.stop import Stop, Stopped
from unet import NetworkConfig, Predictor
from unet.errors import UserError
from unet.pixels import Preprocessing


@pytest.mark.parametrize("n_classes", [1, 3])
def test_validation_counts_the_whole_set(n_classes: int) -> None:
    """All images are counted together; scores and threshold are those of the predictor's own masks. Ignored pixels do
    not count."""
    torch.manual_seed(0)
    values = (0, 1) if n_classes == 1 else (0, 1, 2)
    network = NetworkConfig(base_channels=2, n_classes=n_classes).build()
    predictor = Predictor(network, Preprocessing(), class_values=values)
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            str(i),
            rng.integers(0, 256, (20, 20 + i)).astype(np.uint8),
            rng.integers(0, 2, (20, 20 + i)).astype(np.uint8),
        )
        for i in range(3)
    ]
    samples[2].label[:10] = IGNORED
    samples.append(Sample("nothing", samples[0].image, np.full_like(samples[0].label, IGNORED)))
    row = validate(predictor, samples, Stop())
    if n_classes == 1:
        predictor.threshold = row["threshold"]
        assert 0 <= row["auc"] <= 1
    answers = [predictor.to_classes(predictor(sample.image)) for sample in samples]
    pairs = [(a[s.label != IGNORED], s.label[s.label != IGNORED]) for a, s in zip(answers, samples, strict=True)]
    answer, label = (np.concatenate(each) for each in zip(*pairs, strict=True))
    assert row["pixel_error"] == pytest.approx((answer != label).mean())
    both, total = ((answer == 1) & (label == 1)).sum(), (answer == 1).sum() + (label == 1).sum()
    assert row["dice_1"] == pytest.approx(2 * both / total)
    assert "dice_2" not in row  # no label has it
    assert row["score"] == pytest.approx((row["dice_0"] + row["dice_1"]) / 2)
    each = [scores(confusion(*pair, len(values))).score for pair in pairs[:3]]
    assert row["score_error"] == pytest.approx(np.std(each, ddof=1) / 3**0.5)


def test_non_finite_probabilities_are_refused() -> None:
    network = NetworkConfig(base_channels=2).build()
    torch.nn.init.constant_(network.outc.conv.bias, torch.nan)
    sample = Sample("grey", np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8))
    with pytest.raises(UserError, match="no longer finite"):
        validate(Predictor(network, Preprocessing()), [sample], Stop())


def test_dropout_differs_by_process_and_epoch_and_repeats_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["quick"].override(image_size=32, batch_size=4, base_channels=2)
    sample = Sample("grey", np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))
    network = recipe.build(1, 1)
    crops = Batches([sample], network, Preprocessing(), recipe, seed=0)
    learner = Learner(network, recipe)
    seeds: list[int] = []

    def stopped(_: bool) -> bool:
        seeds.append(torch.initial_seed())
        return True

    monkeypatch.setattr(world, "any_of", stopped)
    monkeypatch.setattr(world, "size", lambda: 2)
    for rank, epoch in ((0, 1), (1, 1), (0, 2), (1, 2), (0, 1)):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        with pytest.raises(Stopped):
            train_epoch(learner, crops, epoch, Schedule(recipe, None), 0, math.inf, Stop())
    assert len(set(seeds)) == 4
    assert seeds[4] == seeds[0]


def test_an_epoch_is_cut_short_when_its_time_is_over() -> None:
    recipe = RECIPES["quick"].override(image_size=32, batch_size=2, base_channels=2)
    network = recipe.build(1, 1)
    sample = Sample("grey", np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))
    crops = Batches([sample], network, Preprocessing(), recipe, seed=0)
    row = train_epoch(Learner(network, recipe), crops, 3, Schedule(recipe, None), elapsed=7, until=7, stop=Stop())
    assert (row["epoch"], row["crops"]) == (3, 2)  # a single step
