"""Losses, and the paper's weights that make a network keep touching objects apart.

Shapes: B batch, K output channels (1 for binary), H, W.
"""

from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.skeleton import skeleton
from trainer.world import ALONE, World

LossName = Literal["ce", "ce+dice", "ce+dice+cldice"]

BORDER_WEIGHT = 10.0
"""w_0 of the paper's equation 2."""
BORDER_SIGMA = 5.0
"""sigma of the paper's equation 2, pixels."""

CENTRE_LINE_WEIGHT = 0.25
"""Of centre line Dice in the sum. With 0.5, and half of the Dice, vessels were worse (docs/training.md)."""

FloatArray = npt.NDArray[np.float32]


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor | None, name: LossName, world: World = ALONE) -> Tensor:
    """Logits (B, K, H, W), class indices (B, H, W), weights (B, H, W) or none -> a scalar.

    Cross-entropy, the binary one for K = 1, averaged by weight; with `ce+dice`, soft Dice is added; with
    `ce+dice+cldice`, a share of centre line Dice, too. The mean over the processes is that of the whole batch: sums
    that stand in a denominator are over all of them.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        ce = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), reduction="none")
    else:
        ce = F.cross_entropy(logits, labels, reduction="none")
    loss = ce.mean() if weights is None else world.size * (ce * weights).sum() / world.sum(weights.sum())
    if name != "ce":
        loss = loss + soft_dice_loss(logits, labels, world)
    if name == "ce+dice+cldice":
        loss = loss + CENTRE_LINE_WEIGHT * centre_line_dice_loss(logits, labels, world)
    return loss


def soft_dice_loss(logits: Tensor, labels: Tensor, world: World = ALONE) -> Tensor:
    """1 - the mean over the classes of 2 sum(p y) / (sum(p) + sum(y)), sums over the whole batch.

    Both classes of a binary problem count, so that it does not matter which one is called foreground.
    """
    p, y = _by_class(logits, labels)
    overlap, total = _sums(p * y, world), _sums(p + y, world)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()  # + 1: a class that is nowhere is perfect


def centre_line_dice_loss(logits: Tensor, labels: Tensor, world: World = ALONE) -> Tensor:
    """1 - the mean of clDice (Shit et al. 2021, https://arxiv.org/abs/2003.07311) over all classes but the commonest of
    the batch, which is the ground that the others are drawn on.

    clDice is the harmonic mean of the share of the predicted centre lines that lies in the label, and the share of the
    label's centre lines that is predicted: a gap in a membrane costs as much as the membrane is long there, however
    thin it is. Unlike the paper's, no gradient flows through where the predicted centre lines are, only through how
    likely they are, which takes a tenth of the time.
    """
    p, y = _by_class(logits, labels)
    others = torch.arange(p.shape[1] - 1, device=p.device)
    others = others + (others >= _sums(y, world).argmax())  # a GPU is not waited for to tell which it is
    p, y = (each.index_select(1, others) for each in (p, y))
    line = p * (skeleton(p.detach()) / p.detach().clamp(min=1e-6))
    label_line = skeleton(y)
    precision = (_sums(line * y, world) + 1) / (_sums(line, world) + 1)
    sensitivity = (_sums(label_line * p, world) + 1) / (_sums(label_line, world) + 1)
    return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean()


def _by_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of each class, two of them for a binary problem: (B, classes, H, W) in 0..1 both."""
    if logits.shape[1] == 1:
        foreground = logits[:, 0].sigmoid()
        p = torch.stack([1 - foreground, foreground], dim=1)
    else:
        p = logits.softmax(dim=1)
    return p, F.one_hot(labels, p.shape[1]).permute(0, 3, 1, 2).to(p.dtype)


def _sums(x: Tensor, world: World) -> Tensor:
    """(B, classes, H, W) -> (classes,): over the whole batch, of all processes."""
    return world.sum(x.sum((0, 2, 3)))


def border_weights(label: npt.NDArray[np.integer[Any]], n_classes: int) -> FloatArray:
    """The paper's equation 2: w(x) = w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / (2 sigma^2)).

    (H, W) class indices -> (H, W). d_1, d_2 are the distances to the nearest and the second nearest object, an object
    being a connected component of a class other than 0. w_c balances the classes of this label: its mean is 1.
    """
    share = np.bincount(label.ravel(), minlength=n_classes) / label.size
    present = share > 0
    balance = np.zeros(n_classes)
    balance[present] = 1 / (share[present] * present.sum())
    nearest, second = two_nearest_objects(label)
    border = BORDER_WEIGHT * np.exp(-((nearest + second) ** 2) / (2 * BORDER_SIGMA**2))
    weights: FloatArray = (balance[label] + border).astype(np.float32)
    return weights


def two_nearest_objects(label: npt.NDArray[np.integer[Any]]) -> tuple[FloatArray, FloatArray]:
    """(H, W) distances in pixels to the nearest and the second nearest object; infinite beyond 6 sigma, where it does
    not matter any more."""
    reach = int(6 * BORDER_SIGMA)
    nearest = np.full(label.shape, np.inf, np.float32)
    second = nearest.copy()
    for value in np.unique(label[label > 0]):
        n, components, boxes, _ = cv2.connectedComponentsWithStats((label == value).astype(np.uint8), connectivity=4)
        for i in range(1, n):  # 0 is what is no object
            x, y, w, h = (int(v) for v in boxes[i][:4])
            window = (slice(max(0, y - reach), y + h + reach), slice(max(0, x - reach), x + w + reach))
            outside = (components[window] != i).astype(np.uint8)
            distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            distance = np.sqrt(np.rint(distance**2))  # OpenCV's last bit depends on where in memory the image lies
            second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
            nearest[window] = np.minimum(nearest[window], distance)
    return nearest, second
