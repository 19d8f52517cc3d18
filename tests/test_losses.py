"""Losses and border weights, computed by hand."""

import numpy as np
import pytest
import torch

from trainer.losses import (
    IGNORED,
    border_weights,
    by_class,
    centre_line_dice_loss,
    loss_of,
    soft_dice_loss,
    two_nearest_objects,
)

LOGITS = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
LABELS = torch.tensor([[[1, 0]]])


def test_cross_entropy() -> None:
    at_zero, at_two = np.log(2), np.log(1 + np.exp(2))
    assert loss_of(LOGITS, LABELS, None, "ce").item() == pytest.approx((at_zero + at_two) / 2)
    weights = torch.tensor([[[3.0, 1.0]]])
    assert loss_of(LOGITS, LABELS, weights, "ce").item() == pytest.approx((3 * at_zero + at_two) / 4)
    three = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    expected = np.log(np.exp([1, 2, 3]).sum()) - 3
    assert loss_of(three, torch.tensor([[[2]]]), None, "ce").item() == pytest.approx(expected, rel=1e-6)


def test_soft_dice() -> None:
    """p = 0.5, 0.88; y = 1, 0."""
    p = 1 / (1 + np.exp(-2))
    foreground, background = (2 * 0.5 + 1) / (0.5 + p + 1 + 1), (2 * (1 - p) + 1) / (1.5 - p + 1 + 1)
    assert soft_dice_loss(*by_class(LOGITS, LABELS)).item() == pytest.approx(1 - (foreground + background) / 2)
    total = loss_of(LOGITS, LABELS, None, "ce+dice").item()
    assert total == pytest.approx(
        loss_of(LOGITS, LABELS, None, "ce").item() + soft_dice_loss(*by_class(LOGITS, LABELS)).item()
    )


def test_ignored_pixels_count_in_no_loss() -> None:
    """Whatever is predicted there, the loss and its gradients are those of the other pixels."""
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(32).reshape(2, 4, 4) % 3
    labels[:, :, 2:] = IGNORED
    loss = loss_of(logits, labels, None, "ce+dice+cldice")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[..., 2:].any()
    other = torch.where(labels[:, None] == IGNORED, -7.0, logits)
    assert loss_of(other, labels, None, "ce+dice").item() == loss_of(logits, labels, None, "ce+dice").item()
    assert loss_of(logits, labels, None, "ce").item() == pytest.approx(
        loss_of(logits[..., :2], labels[..., :2], None, "ce").item()
    )
    assert loss_of(logits, torch.full_like(labels, IGNORED), None, "ce+dice").item() == pytest.approx(0)


def test_a_perfect_answer_has_no_dice_loss() -> None:
    labels = torch.tensor([[[0, 1, 2, 1]]])
    logits = 50.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert soft_dice_loss(*by_class(logits, labels)).item() == pytest.approx(0, abs=1e-6)
    assert centre_line_dice_loss(*by_class(logits, labels)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [(0, 1), (1, 0)])  # whichever is the background
def test_the_centre_line_loss_of_a_line_with_a_gap(classes: tuple[int, int]) -> None:
    """Eight of ten pixels found; 1 is added to all sums: precision 9 / 9, sensitivity 9 / 11."""
    background, line = classes
    labels = torch.full((1, 10, 10), background)
    labels[..., 4] = line
    found = labels.clone()
    found[:, 5:7] = background
    loss = centre_line_dice_loss(*by_class(100.0 * found[:, None] - 50, labels))
    assert loss.item() == pytest.approx(1 - 2 * (9 / 11) / (1 + 9 / 11))
    assert centre_line_dice_loss(*by_class(100.0 * labels[:, None] - 50, labels)).item() == pytest.approx(0, abs=1e-6)


def test_centre_line_gradients_raise_missing_lines_and_lower_wrong_ones() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels[..., 4] = 1
    logits = torch.full((1, 1, 10, 10), -1.0)
    logits[..., 8] = 1  # a wrong line beside it
    logits.requires_grad_()
    loss = loss_of(logits, labels, None, "ce+dice+cldice")
    lines = centre_line_dice_loss(*by_class(logits, labels))
    assert loss.item() == pytest.approx(loss_of(logits, labels, None, "ce+dice").item() + 0.25 * lines.item())
    lines.backward()
    assert logits.grad is not None
    assert (logits.grad[..., 4] < 0).all()
    assert (logits.grad[..., 8] > 0).all()


def test_distances_are_exact_square_roots() -> None:
    """The last bit must not depend on the alignment of the array, or two runs of one seed would differ."""
    label = np.zeros((61, 47), np.uint8)
    label[7:12, 9:31], label[30:33, 20:40], label[50:, 3:9] = 1, 1, 1
    for distance in two_nearest_objects(label):
        distance = distance[np.isfinite(distance)]
        assert np.array_equal(distance, np.sqrt(np.rint(distance.astype(np.float64) ** 2)).astype(np.float32))


def test_two_nearest_objects_on_a_line() -> None:
    """Objects at 0 and 3..4 of a line of 8."""
    label = np.array([[1, 0, 0, 1, 1, 0, 0, 0]])
    nearest, second = two_nearest_objects(label)
    np.testing.assert_allclose(nearest, [[0, 1, 1, 0, 0, 1, 2, 3]])
    np.testing.assert_allclose(second, [[3, 2, 2, 3, 4, 5, 6, 7]])


def test_border_weights_on_a_line() -> None:
    """Three pixels of eight are foreground: w_c is 8 / (2 * 3) there and 8 / (2 * 5) elsewhere, 1 on average."""
    label = np.array([[1, 0, 0, 1, 1, 0, 0, 0]])
    sums = np.array([3, 3, 3, 3, 4, 6, 8, 10])
    balance = np.where(label[0] == 1, 8 / 6, 8 / 10)
    assert balance.mean() == pytest.approx(1)
    expected = balance + 10 * np.exp(-(sums**2) / (2 * 5**2))
    np.testing.assert_allclose(border_weights(label, 2)[0], expected, rtol=1e-6)


def test_a_single_object_has_balanced_classes_and_no_border() -> None:
    label = np.zeros((9, 9), np.uint8)
    label[3:6, 3:6] = 1
    weights = border_weights(label, 2)
    np.testing.assert_allclose(weights[label == 1], 81 / (2 * 9))
    np.testing.assert_allclose(weights[label == 0], 81 / (2 * 72))


def test_touching_objects_of_different_classes_are_two() -> None:
    nearest, second = two_nearest_objects(np.array([[1, 1, 2, 2]]))
    np.testing.assert_allclose(nearest, 0)
    np.testing.assert_allclose(second, [[2, 1, 1, 2]])


def test_objects_that_touch_at_a_corner_are_two() -> None:
    nearest, second = two_nearest_objects(np.eye(2, dtype=np.uint8))
    np.testing.assert_allclose(nearest, [[0, 1], [1, 0]])
    np.testing.assert_allclose(second, [[np.sqrt(2), 1], [1, np.sqrt(2)]])
