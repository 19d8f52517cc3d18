"""Scores, computed by hand."""

import math

import numpy as np
import pytest

from trainer.losses import IGNORED
from trainer.metrics import ThresholdCurve, confusion, object_scores, scores, standard_error


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


def test_a_set_of_images_counts_as_one_image() -> None:
    """The mean of per-image Dice would be (0 + 1) / 2; of the whole set it is 2 * 99 / (99 + 100)."""
    small = confusion(np.array([0]), np.array([1]), 2)
    large = confusion(np.ones(99, int), np.ones(99, int), 2)
    assert scores(small + large).dice[1] == pytest.approx(2 * 99 / 199)


def test_a_class_without_labels_has_no_score_but_its_false_positives_cost_the_others() -> None:
    result = scores(confusion(np.array([0, 0, 0, 2]), np.zeros(4, int), 3))
    assert result.dice == pytest.approx((6 / 7, np.nan, np.nan), nan_ok=True)
    assert result.iou == pytest.approx((3 / 4, np.nan, np.nan), nan_ok=True)
    assert result.score == pytest.approx(6 / 7)
    stray, worse = np.array([[1000, 2, 1], [2, 107, 0], [0, 0, 0]]), np.array([[1000, 9, 0], [9, 100, 0], [0, 0, 0]])
    assert scores(stray).score > scores(worse).score


def test_ignored_pixels_do_not_count() -> None:
    label = np.array([[0, 1, IGNORED], [1, IGNORED, IGNORED]], np.uint8)
    assert confusion(np.array([[0, 1, 1], [0, 0, 1]]), label, 2).tolist() == [[1, 0], [1, 1]]
    curve = ThresholdCurve()
    curve.add(np.array([[0.2, 0.9, 0.9], [0.2, 0.2, 0.9]], np.float32), label)
    curve.add(np.ones((1, 1), np.float32), np.full((1, 1), IGNORED))  # an image of nothing else
    (matrix,) = curve.confusions(0.5)
    assert matrix.tolist() == [[1, 0], [1, 1]]
    assert curve.threshold() == 0.5
    nothing = scores(confusion(label, np.full_like(label, IGNORED), 3))
    assert all(math.isnan(value) for value in (nothing.score, nothing.pixel_error, *nothing.dice, *nothing.iou))


def test_the_standard_error_of_a_mean() -> None:
    assert standard_error([0.9, 0.7, math.nan, 0.8]) == pytest.approx(0.1 / 3**0.5)
    assert math.isnan(standard_error([0.9]))
    assert math.isnan(standard_error([0.9, math.nan]))


def ideal(*thresholds: float) -> ThresholdCurve:
    """An image for each threshold, which alone separates foreground and background; scores fall to both sides."""
    curve, p = ThresholdCurve(), (np.arange(1000, dtype=np.float32) + 0.5) / 1000
    for threshold in thresholds:
        curve.add(p, (p > threshold).astype(int))
    return curve


def test_the_threshold_moves_only_if_the_images_agree() -> None:
    """The threshold nearest to 0.5 that is within one standard error of the best."""
    assert ideal(0.7).threshold() == 0.5  # one image is no reason to move
    assert ideal(0.7, 0.7, 0.7).threshold() == 0.7
    assert ideal(0.3, 0.3).threshold() == 0.3
    assert ideal(0.3, 0.7).threshold() == ideal(0.5, 0.8).threshold() == 0.5
    assert 0.65 < ideal(0.68, 0.7, 0.72).threshold() < 0.7


def test_a_threshold_of_one_half_stays_where_others_are_as_good() -> None:
    """Foreground at 0.9, 0.6; background at 0.1, 0.3: everything between 0.3 and 0.6 separates them."""
    curve = ThresholdCurve()
    curve.add(np.array([[0.9, 0.1]], np.float32), np.array([[1, 0]]))
    curve.add(np.array([[0.6, 0.3]], np.float32), np.array([[1, 0]]))
    assert curve.threshold() == 0.5
    assert curve.auc() == 1
    assert [matrix.tolist() for matrix in curve.confusions(0.7)] == [[[1, 0], [0, 1]], [[1, 0], [1, 0]]]
    assert [matrix.tolist() for matrix in curve.confusions(0.2)] == [[[1, 0], [0, 1]], [[0, 1], [0, 1]]]


def test_the_threshold_curve_agrees_with_thresholding(rng: np.random.Generator) -> None:
    p, label = rng.random((50, 50), dtype=np.float32), rng.integers(0, 2, (50, 50))
    curve = ThresholdCurve()
    curve.add(p, label)
    for k in (1, 250, 777, 999):
        np.testing.assert_array_equal(curve.confusions(k / 1000)[0], confusion((p > k / 1000).astype(int), label, 2))


def test_the_threshold_curve_rounds_as_the_predictor_does(rng: np.random.Generator) -> None:
    """In float32 a probability of 0.49 is not above a threshold of 0.49, though it is above it in float64."""
    thresholds = (np.arange(1001) / 1000).astype(np.float32)
    p = np.stack([np.nextafter(thresholds, np.float32(0)), thresholds, np.nextafter(thresholds, np.float32(2))])
    label = rng.integers(0, 2, p.shape)
    curve = ThresholdCurve()
    curve.add(p, label)
    for k in range(1, 1000):
        np.testing.assert_array_equal(curve.confusions(k / 1000)[0], confusion((p > k / 1000).astype(int), label, 2))


def test_area_under_the_roc_curve() -> None:
    """One of four pairs is in the wrong order and one is tied: (2 + 1/2) / 4."""
    curve = ThresholdCurve()
    curve.add(np.array([[0.2, 0.8, 0.5, 0.8]], np.float32), np.array([[0, 0, 1, 1]]))
    assert curve.auc() == pytest.approx(2.5 / 4)


def test_merged_objects() -> None:
    """Two cells of 40 pixels each; without the wall between them all 80 pixels are one object."""
    label = np.ones((8, 11), np.uint8)
    label[:, 5] = 0
    walls = label.astype(np.float32) * 0.9
    perfect = object_scores(walls, label, 0.5)
    assert perfect
    assert (perfect["rand"], perfect["information"]) == (1, 0)
    thick = walls.copy()
    thick[:, 4:7] = 0.1  # thicker walls are no error
    assert object_scores(thick, label, 0.5) == perfect
    merged = object_scores(np.full((8, 11), 0.9, np.float32), label, 0.5)
    assert merged
    assert merged["rand"] == pytest.approx(2 * 0.5 / (0.5 + 1), abs=0.01)  # precision a half, recall 1
    assert merged["information"] == pytest.approx(1)  # one bit: which of the two


def test_objects_that_touch_at_a_corner_are_two() -> None:
    label = np.kron(np.eye(2, dtype=np.uint8), np.ones((4, 4), np.uint8))
    found = object_scores(label.astype(np.float32), label, 0.5)
    assert found
    assert (found["rand"], found["information"]) == (1, 0)


def test_labels_without_several_objects_have_no_object_scores() -> None:
    """A single object would be perfect if nothing at all is found; single pixels would be 0 / 0."""
    label = np.zeros((9, 9), np.uint8)
    label[2:5, 2:5] = 1
    nothing = np.zeros((9, 9), np.float32)
    assert object_scores(nothing, label, 0.5) is None
    points = np.eye(9, dtype=np.uint8)
    assert object_scores(points.astype(np.float32), points, 0.5) is None
    label[7:9, 7:9] = IGNORED
    assert object_scores(nothing, label, 0.5) is None
    label[7:9, 7:9] = 1
    missed = object_scores(nothing, label, 0.5)
    assert missed
    assert missed["rand"] < 0.9
