"""Detection scores of objects, counted by hand."""

import math

import numpy as np
import pytest

from trainer.objects import ObjectCounts


def scores(predicted: object, true: object, ignored: object = None) -> dict[str, float]:
    counts = ObjectCounts()
    mask = None if ignored is None else np.array([ignored], bool)
    counts.add(np.array([predicted], np.int32), np.array([true], np.int32), mask)
    return counts.scores()


def test_three_objects_of_which_one_is_found_well_one_badly_and_one_not_at_all() -> None:
    """IoU 1 (5 pixels), 3/5 and none; one predicted object is not there."""
    found = scores([7] * 5 + [0, 0] + [3] * 3 + [0, 0, 0, 0, 0, 9], [1] * 5 + [0, 0] + [2] * 5 + [0, 4, 4, 0])
    assert (found["objects"], found["predicted"]) == (3, 3)
    assert found["ap_50"] == pytest.approx(2 / (2 + 1 + 1))
    assert found["ap_60"] == pytest.approx(1 / (1 + 2 + 2))  # above 0.6, not equal to it
    assert found["ap_90"] == pytest.approx(1 / 5)
    assert found["pq"] == pytest.approx((1 + 3 / 5) / (2 + 1 / 2 + 1 / 2))
    assert (found["splits"], found["merges"]) == (0, 0)


def test_every_threshold() -> None:
    """19 of 20 pixels: 0.95 is above all; 17 of 20 is above 0.8."""
    assert [scores([1] * 19 + [0], [1] * 20)[f"ap_{t}"] for t in (50, 60, 70, 80, 90)] == [1, 1, 1, 1, 1]
    assert [scores([1] * 17 + [0] * 3, [1] * 20)[f"ap_{t}"] for t in (50, 60, 70, 80, 90)] == [1, 1, 1, 1, 0]


def test_a_half_is_no_match() -> None:
    """Else both halves of an object could match it."""
    found = scores([1] * 5 + [2] * 5, [1] * 10)
    assert (found["ap_50"], found["pq"], found["splits"], found["merges"]) == (0, 0, 1, 0)


def test_two_objects_found_as_one() -> None:
    found = scores([1] * 10, [1] * 4 + [2] * 6)
    assert (found["splits"], found["merges"]) == (0, 1)
    assert found["ap_50"] == 1 / 2  # the larger one has an IoU of 0.6
    neighbour = scores([1] * 10 + [2] * 3, [1] * 9 + [2] * 4)  # a pixel of a neighbour is no merger
    assert (neighbour["splits"], neighbour["merges"], neighbour["ap_50"]) == (0, 0, 1)


def test_all_objects_of_the_set_count_alike_and_an_empty_image_by_what_is_found_in_it() -> None:
    counts = ObjectCounts()
    counts.add(np.array([[1, 0, 2]]), np.array([[5, 0, 6]]))
    nothing = np.zeros((1, 3), int)
    counts.add(nothing, nothing)
    assert counts.scores()["ap_50"] == 1
    counts.add(np.array([[1, 0, 2]]), nothing)
    assert counts.scores()["ap_50"] == 2 / 4
    counts.add(nothing, np.array([[3, 3, 3]]))
    assert counts.scores()["ap_50"] == 2 / 5
    assert counts.scores()["pq"] == 2 / (2 + 2 / 2 + 1 / 2)


def test_a_set_without_objects_has_no_score() -> None:
    counts = ObjectCounts()
    counts.add(np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert math.isnan(counts.scores()["ap_50"])
    assert math.isnan(counts.scores()["pq"])
    assert counts.scores()["objects"] == 0


def test_images_without_background() -> None:
    found = scores([4] * 3 + [5] * 3, [1] * 3 + [2] * 3)
    assert (found["ap_90"], found["objects"], found["predicted"]) == (1, 2, 2)


def test_ignored_pixels() -> None:
    """Object 1 matches in the pixels that count, 2 lies in ignored pixels, 3 sticks out of them by less than half."""
    predicted = [1, 1, 1, 1, 1, 0, 2, 2, 0, 3, 3, 3, 0]
    ignored = [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0]
    found = scores(predicted, [8, 8, 0, 0, 0, 0, 9, 9, 0, 0, 0, 0, 0], ignored)
    assert (found["ap_90"], found["objects"], found["predicted"]) == (1, 1, 1)
    found = scores(predicted, [8, 8, 0, 0, 0, 0, 9, 9, 0, 0, 0, 0, 0])
    assert (found["ap_90"], found["objects"], found["predicted"]) == (1 / 4, 2, 3)


def test_ids_may_be_anything(rng: np.random.Generator) -> None:
    true = rng.integers(0, 9, (40, 40))
    predicted = np.where(rng.random((40, 40)) < 0.3, rng.integers(0, 9, (40, 40)), true)
    plain, large = ObjectCounts(), ObjectCounts()
    plain.add(predicted, true)
    large.add(predicted.astype(np.int64) * 10**9, true.astype(np.uint32) * 400_000_000)
    assert plain.scores() == large.scores()
    assert plain.scores()["objects"] == 8
