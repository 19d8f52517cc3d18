"""Parts of the training loop: its schedule and its average."""

from dataclasses import replace
from typing import Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from trainer import fit as fitting
from trainer.data import Batches, Sample
from trainer.recipes import RECIPES
from trainer.stop import Stopped
from trainer.world import World
from unet.pixels import Preprocessing


def test_the_schedule_rises_falls_and_follows_whichever_ends_first() -> None:
    recipe = RECIPES["default"].override(epochs=10, lr=1.0)
    schedule = fitting.Schedule(recipe, steps_per_epoch=100, max_minutes=1)
    assert schedule.lr(30, 0) == pytest.approx(1.0)
    assert schedule.lr(0, 0) < schedule.lr(15, 0) == pytest.approx(0.5)
    assert schedule.lr(515, 0) == pytest.approx(0.5)
    assert schedule.lr(0, 30.9) == pytest.approx(0.5)
    assert schedule.lr(999, 0) < 1e-4
    assert schedule.lr(0, 90) == schedule.lr(1500, 0) == 0  # an epoch's first step is taken whatever the time is
    assert not schedule.over(9, 59)
    assert schedule.over(10, 0)
    assert schedule.over(1, 60)
    assert schedule.left(2, 6) == 24  # eight epochs of three seconds
    assert schedule.left(2, 20) == 40  # the minute comes first
    assert schedule.left(10, 30) == schedule.left(1, 61) == 0
    assert [fitting._duration(s) for s in (89, 91, 5399, 5401, 70_000)] == ["89 s", "2 min", "90 min", "2 h", "19 h"]


@pytest.mark.parametrize(
    ("optimizer", "left"),
    [("adamw", 1 - 0.1 * 0.5), ("sgd", 1 - 0.1 * 0.5), ("rmsprop", 1 - 0.1 * 0.5 / (0.5 * 0.01**0.5))],
)
def test_weights_decay_without_a_gradient(optimizer: Literal["adamw", "sgd", "rmsprop"], left: float) -> None:
    recipe = replace(RECIPES["default"], optimizer=optimizer, lr=0.1, weight_decay=0.5)
    network = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(network.weight)
    network.weight.grad = torch.zeros(1, 1)
    fitting.make_optimizer(network, recipe).step()
    assert network.weight.item() == pytest.approx(left, abs=1e-6)


def test_each_process_and_epoch_drops_out_values_of_its_own() -> None:
    """And the same ones after a resume."""
    seeds: list[int] = []

    def look() -> None:
        seeds.append(torch.initial_seed())
        raise Stopped

    recipe = RECIPES["quick"].override(image_size=32, batch_size=4)
    crops = Batches(
        [Sample("grey", np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))],
        Preprocessing(),
        1,
        1,
        recipe,
        margin=0,
        seed=0,
        device=torch.device("cpu"),
    )
    schedule = fitting.Schedule(recipe, len(crops), None)
    for rank, epoch in ((0, 1), (1, 1), (0, 2), (1, 2), (0, 1)):
        learner = Mock(world=World(rank, 2))
        with pytest.raises(Stopped):
            fitting.run_epoch(learner, crops, epoch, schedule, 0, look)
    assert len(set(seeds)) == 4
    assert seeds[4] == seeds[0]


def test_the_average_forgets_faster_at_first() -> None:
    network = torch.nn.BatchNorm1d(1)
    average = fitting.Average(network, decay=0.5)
    found = []
    for step, value in enumerate([4.0, 0.0, 0.0, 0.0], 1):
        torch.nn.init.constant_(network.weight, value)
        network.num_batches_tracked.fill_(step)
        average.update()
        found.append(average.module.weight.item())
    # keeps nothing, then (1 + n) / (10 + n) of it: 2/11, 3/12, 4/13
    assert found == pytest.approx([4, 4 * 2 / 11, 4 * 2 / 11 / 4, 4 * 2 / 11 / 4 * 4 / 13])
    assert average.module.num_batches_tracked == 4  # a counter is no number to average
    for _ in range(20):
        average.update()
    torch.nn.init.constant_(network.weight, 1.0)
    average.update()
    assert average.module.weight.item() == pytest.approx(0.5, abs=1e-4)  # the decay, at last
