"""The learning rate over a run, and its end."""

import pytest

from trainer.recipes import RECIPES
from trainer.schedule import Schedule

SCHEDULE = Schedule(RECIPES["default"].override(epochs=10, lr=1.0), max_minutes=1)


def test_a_run_is_over_by_epochs_or_time() -> None:
    assert SCHEDULE.done(2.5, 0) == 0.25
    assert SCHEDULE.done(2.5, 30) == 0.5
    assert SCHEDULE.done(9, 59) < 1
    assert SCHEDULE.done(10, 0) == SCHEDULE.done(1, 60) == SCHEDULE.done(11, 90) == 1
    assert Schedule(RECIPES["default"].override(epochs=10), max_minutes=None).done(5, 10**6) == 0.5


def test_the_learning_rate_warms_up_and_decays() -> None:
    assert 0 < SCHEDULE.lr(0) < SCHEDULE.lr(0.015) == pytest.approx(0.5)
    assert SCHEDULE.lr(0.03) == pytest.approx(1.0)
    assert SCHEDULE.lr(0.515) == pytest.approx(0.5)
    assert SCHEDULE.lr(0.999) < 1e-4
    assert SCHEDULE.lr(1) == 0


def test_a_constant_learning_rate() -> None:
    schedule = Schedule(RECIPES["paper"], max_minutes=None)
    assert schedule.lr(0) == schedule.lr(0.5) == schedule.lr(1) == RECIPES["paper"].lr


def test_unlabelled_images_count_when_the_network_has_learned_something() -> None:
    assert SCHEDULE.consistency(0) == SCHEDULE.consistency(0.1) == 0
    assert SCHEDULE.consistency(0.25) == pytest.approx(0.5)
    assert SCHEDULE.consistency(0.4) == SCHEDULE.consistency(1) == 1


def test_remaining_time() -> None:
    assert SCHEDULE.remaining(2, 6) == 24  # eight epochs of three seconds
    assert SCHEDULE.remaining(2, 20) == 40  # the minute comes first
    assert SCHEDULE.remaining(10, 30) == SCHEDULE.remaining(1, 61) == 0
