"""The learning rate over a run, and its end."""

import pytest

from trainer.recipes import RECIPES
from trainer.schedule import Schedule

SCHEDULE = Schedule(RECIPES["default"].override(epochs=10, lr=1.0), steps_per_epoch=100, max_minutes=1)


def test_the_learning_rate_warms_up_and_decays_by_steps_or_time() -> None:
    assert SCHEDULE.lr(30, 0) == pytest.approx(1.0)
    assert SCHEDULE.lr(0, 0) < SCHEDULE.lr(15, 0) == pytest.approx(0.5)
    assert SCHEDULE.lr(515, 0) == pytest.approx(0.5)
    assert SCHEDULE.lr(0, 30.9) == pytest.approx(0.5)
    assert SCHEDULE.lr(999, 0) < 1e-4
    assert SCHEDULE.lr(0, 90) == SCHEDULE.lr(1500, 0) == 0  # the first step of an epoch may come after the end


def test_a_constant_learning_rate() -> None:
    schedule = Schedule(RECIPES["paper"], steps_per_epoch=100, max_minutes=None)
    assert schedule.lr(0, 0) == schedule.lr(10**6, 10**6) == RECIPES["paper"].lr


def test_a_run_ends_by_epochs_or_time() -> None:
    assert not SCHEDULE.finished(9, 59)
    assert SCHEDULE.finished(10, 0)
    assert SCHEDULE.finished(1, 60)


def test_remaining_time() -> None:
    assert SCHEDULE.remaining(2, 6) == 24  # eight epochs of three seconds
    assert SCHEDULE.remaining(2, 20) == 40  # the minute comes first
    assert SCHEDULE.remaining(10, 30) == SCHEDULE.remaining(1, 61) == 0
