"""Memory for large images, in turn."""

import gc
import weakref
from concurrent.futures import Future
from typing import Any

import pytest

from service.budget import SMALL, PixelBudget
from service.problems import ProblemError

LARGE = 2 * SMALL


@pytest.fixture
def budget() -> PixelBudget:
    return PixelBudget(2 * LARGE, max_waiting=4)


def work() -> "Future[Any]":
    return Future()


def test_so_many_at_a_time_in_their_order(budget: PixelBudget) -> None:
    works = [work() for _ in range(5)]
    turns = [budget.take(LARGE, until=each) for each in works]
    assert [turn.done() for turn in turns] == [True, True, False, False, False]
    works[1].set_result(None)
    assert [turn.done() for turn in turns] == [True, True, True, False, False]
    works[0].set_exception(ValueError())
    works[2].cancel()
    assert all(turn.done() for turn in turns)


def test_small_ones_do_not_wait(budget: PixelBudget) -> None:
    for _ in range(3):
        budget.take(2 * LARGE, until=work())
    assert budget.take(SMALL, until=work()).done()


def test_many_do_not_keep_a_large_one_waiting_for_ever(budget: PixelBudget) -> None:
    first, second = work(), work()
    budget.take(LARGE, until=first)
    largest = budget.take(2 * LARGE, until=second)
    after = budget.take(LARGE, until=work())  # there would be room
    assert not largest.done()
    assert not after.done()
    first.set_result(None)
    assert largest.done()
    assert not after.done()
    second.set_result(None)
    assert after.done()


def test_what_is_larger_than_all_has_it_for_itself(budget: PixelBudget) -> None:
    whole = work()
    assert budget.take(100 * LARGE, until=whole).done()
    other = budget.take(LARGE, until=work())
    assert not other.done()
    whole.set_result(None)
    assert other.done()


def test_who_waits_no_longer_takes_nothing(budget: PixelBudget) -> None:
    first, impatient = work(), work()
    budget.take(LARGE, until=first)
    given_up = budget.take(2 * LARGE, until=impatient)
    after = budget.take(LARGE, until=work())
    impatient.cancel()
    assert given_up.cancelled()
    assert after.done()
    first.set_result(None)
    assert budget.take(LARGE, until=work()).done()


def test_a_turn_that_is_given_up_itself_takes_nothing(budget: PixelBudget) -> None:
    first = work()
    budget.take(2 * LARGE, until=first)
    given_up = budget.take(LARGE, until=work())
    after = [budget.take(LARGE, until=work()) for _ in range(2)]
    given_up.cancel()
    first.set_result(None)
    assert [turn.done() for turn in after] == [True, True]


def test_who_waits_no_longer_is_forgotten_with_the_image(budget: PixelBudget) -> None:
    budget.take(2 * LARGE, until=work())
    budget.take(LARGE, until=work())  # the first in the queue
    impatient = work()
    given_up = weakref.ref(budget.take(LARGE, until=impatient))
    impatient.cancel()
    del impatient
    gc.collect()
    assert given_up() is None


def test_too_many_are_refused(budget: PixelBudget) -> None:
    works = [work() for _ in range(6)]
    for each in works:
        budget.take(LARGE, until=each)
    with pytest.raises(ProblemError, match="4 images above 1048576 pixels are waiting already") as refused:
        budget.take(LARGE, until=work()).result(0)
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "5"})
    assert budget.take(SMALL, until=work()).done()
    works[0].set_result(None)
    assert not budget.take(LARGE, until=work()).done()


def test_closed_it_turns_away_who_waits_and_who_comes(budget: PixelBudget) -> None:
    budget.take(2 * LARGE, until=work())
    waiting = budget.take(LARGE, until=work())
    budget.close()
    assert waiting.cancelled()
    assert budget.take(LARGE, until=work()).cancelled()
