"""Training steps: optimisers, the moving average, saving and restoring."""

import copy
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
import pytest
import torch

from trainer import learner as learning
from trainer.data import Batches, Sample, sample
from trainer.learner import Average, Learner, make_optimizer
from trainer.recipes import RECIPES
from unet import Predictor
from unet.engines.graphs import GraphCache
from unet.pixels import Preprocessing

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIMIZERS = ["adamw", "muon", "sgd", "rmsprop"]


def small_learner(device: str, **settings: object) -> tuple[Learner, Batches]:
    recipe = replace(RECIPES["default"], base_channels=8, image_size=64, batch_size=2, dropout=0, mixed_precision=False)
    recipe = replace(recipe, **{"optimizer": "adamw"} | settings)  # type: ignore[arg-type]
    drawn = [sample.generate(np.random.default_rng(i), size=96) for i in range(2)]
    samples = [Sample("", image, label // 255) for image, label in drawn]
    torch.manual_seed(0)
    network = recipe.build(1, 1).to(device)
    return Learner(network, recipe), Batches(samples, network, Preprocessing(), recipe, seed=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step_with_a_loss_of_nan_changes_no_weights(device: str, optimizer: str) -> None:
    learner, batches = small_learner(device, optimizer=optimizer)
    *fine, last = islice(batches.epoch(1), 4)
    for batch in fine:
        assert learner.step(batch, 1e-3).isfinite()
    before = [parameter.clone() for parameter in learner.network.parameters()]
    assert learner.step(last._replace(images=last.images * torch.nan), 1e-3).isnan()
    assert all(torch.equal(*pair) for pair in zip(before, learner.network.parameters(), strict=True))
    learner.step(fine[0], 1e-3)
    assert not torch.equal(before[0], next(learner.network.parameters()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learning_rate_of_zero_moves_no_weights(device: str, optimizer: str) -> None:
    learner, batches = small_learner(device, optimizer=optimizer)
    moved = []
    for batch, lr in zip(batches.epoch(1), (1e-3, 0.0, 1e-3, 0.0, 1e-3), strict=False):
        before = [parameter.clone() for parameter in learner.network.parameters()]
        learner.step(batch, lr)
        moved.append(not all(torch.equal(*pair) for pair in zip(before, learner.network.parameters(), strict=True)))
    assert moved == [True, False, True, False, True]


@pytest.mark.parametrize("device", DEVICES)
def test_long_gradients_are_clipped(device: str) -> None:
    learner, batches = small_learner(device, optimizer="sgd", weight_decay=0.0, clip_norm=0.01)
    for batch in islice(batches.epoch(1), 3):
        before = [parameter.clone() for parameter in learner.network.parameters()]
        learner.step(batch, 0.5)
        moved = [(b - a).flatten() for a, b in zip(before, learner.network.parameters(), strict=True)]
        assert float(torch.cat(moved).detach().norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_every_step_moves_the_average(device: str) -> None:
    learner, batches = small_learner(device)
    expected = None
    for n, batch in enumerate(islice(batches.epoch(1), 4)):
        learner.step(batch, 1e-3)
        now = next(learner.network.parameters()).detach().clone()
        keep = (1 + n) / (10 + n)
        expected = now if expected is None else keep * expected + (1 - keep) * now
        torch.testing.assert_close(next(learner.result.parameters()), expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_format_changes_no_losses(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for order in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(learning, "memory_format", lambda device, order=order: order)
        learner, batches = small_learner("cpu", optimizer=optimizer)
        assert next(islice(learner.network.parameters(), 3, None)).is_contiguous(memory_format=order)
        losses[order] = [float(learner.step(batch, 1e-3)) for batch in islice(batches.epoch(1), 4)]
    assert losses[torch.contiguous_format] == pytest.approx(losses[torch.channels_last], rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_predictor_of_the_network_in_training_follows_its_weights(device: str) -> None:
    learner, batches = small_learner(device)
    predictor = Predictor(learner.result, Preprocessing())  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for batch in islice(batches.epoch(1), 3):
        learner.step(batch, 1e-2)
        learner.result.eval()
        x = predictor.preprocessing(image, 1).tensor()[None].to(device)
        with torch.inference_mode():
            expected = learner.result(x).sigmoid()[0, 0].cpu().numpy()
        np.testing.assert_allclose(predictor(image), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("optimizer", "left"),
    [("adamw", 1 - 0.1 * 0.5), ("sgd", 1 - 0.1 * 0.5), ("rmsprop", 1 - 0.1 * 0.5 / (0.5 * 0.01**0.5))],
)
def test_weights_decay_without_a_gradient(optimizer: Literal["adamw", "sgd", "rmsprop"], left: float) -> None:
    recipe = replace(RECIPES["default"], optimizer=optimizer, lr=0.1, weight_decay=0.5)
    network = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(network.weight)
    network.weight.grad = torch.zeros(1, 1)
    make_optimizer(network, recipe).step()
    assert network.weight.item() == pytest.approx(left, abs=1e-6)


def test_the_average_forgets_faster_at_first() -> None:
    network = torch.nn.BatchNorm1d(1)
    average = Average(network, decay=0.5)
    found = []
    for step, value in enumerate([4.0, 0.0, 0.0, 0.0], 1):
        torch.nn.init.constant_(network.weight, value)
        network.num_batches_tracked.fill_(step)
        average.update(network)
        found.append(average.module.weight.item())
    # keeps nothing, then (1 + n) / (10 + n): 2/11, 3/12, 4/13
    assert found == pytest.approx([4, 4 * 2 / 11, 4 * 2 / 11 / 4, 4 * 2 / 11 / 4 * 4 / 13])
    assert average.module.num_batches_tracked == 4  # counters are copied
    for _ in range(20):
        average.update(network)
    torch.nn.init.constant_(network.weight, 1.0)
    average.update(network)
    assert average.module.weight.item() == pytest.approx(0.5, abs=1e-4)  # the decay, in the long run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_learner_takes_the_same_steps(optimizer: str) -> None:
    learner, batches = small_learner("cpu", optimizer=optimizer)
    *first, last = islice(batches.epoch(1), 3)
    for batch in first:
        learner.step(batch, 1e-3)
    other, _ = small_learner("cpu", optimizer=optimizer)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert torch.equal(learner.step(last, 1e-3), other.step(last, 1e-3))
    for mine, restored in zip(learner.result.parameters(), other.result.parameters(), strict=True):
        assert torch.equal(mine, restored)


def test_the_moving_average_is_the_result() -> None:
    learner, _ = small_learner("cpu")
    assert learner.averaged
    assert learner.result is learner.averaged.module
    learner, _ = small_learner("cpu", ema=None)
    assert learner.result is learner.network


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"mixed_precision": True}, {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05}])
def test_steps_replayed_on_a_gpu_learn_the_same(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for replayed in (False, True):
        if not replayed:
            monkeypatch.setattr(learning, "recorded", lambda function, device: function)
        learner, batches = small_learner("cuda", **settings)
        monkeypatch.undo()
        assert isinstance(learner._captured, GraphCache) == replayed
        rates = (torch.linspace(0.5, 1, 12) * learner.recipe.lr).tolist()
        losses.append([float(learner.step(*each)) for each in zip(batches.epoch(1), rates, strict=False)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1][-1] < losses[1][0]
