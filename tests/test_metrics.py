"""Scores, by hand."""

import numpy as np
import pytest

from trainer.metrics import confusion, scores


def test_scores_of_four_pixels() -> None:
    label = np.array([[0, 0], [0, 1]])
    predicted = np.array([[0, 0], [1, 1]])
    matrix = confusion(predicted, label, 2)
    assert matrix.tolist() == [[2, 1], [0, 1]]
    result = scores(matrix)
    assert result.dice == pytest.approx((4 / 5, 2 / 3))
    assert result.iou == pytest.approx((2 / 3, 1 / 2))
    assert result.pixel_error == pytest.approx(1 / 4)
    assert result.score == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_the_set_counts_as_one_image() -> None:
    """The mean of per-image Dice would be (0 + 1) / 2; of the whole set it is 2 * 99 / (99 + 100)."""
    small = confusion(np.array([0]), np.array([1]), 2)
    large = confusion(np.ones(99, int), np.ones(99, int), 2)
    assert scores(small + large).dice[1] == pytest.approx(2 * 99 / 199)


def test_an_absent_class_is_perfect_and_an_invented_one_is_not() -> None:
    nothing = np.zeros(4, int)
    assert scores(confusion(nothing, nothing, 3)).dice == (1, 1, 1)
    assert scores(confusion(np.array([0, 0, 0, 2]), nothing, 3)).dice == pytest.approx((6 / 7, 1, 0))
