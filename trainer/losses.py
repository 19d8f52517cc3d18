"""Losses, and the U-Net paper's weight map that keeps touching objects apart.

Shapes: B batch, K output channels (1 for a binary problem), H, W.
"""

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import world

LossName = Literal["ce", "ce+dice", "ce+dice+cldice"]

IGNORED = 255  # class index of pixels without an opinion: they count in no loss and no score
BORDER_WEIGHT = 10.0  # w_0 of the paper's equation 2
BORDER_SIGMA = 5.0  # sigma of the paper's equation 2, pixels

CENTRE_LINE_WEIGHT = 0.25
"""Factor of the centre line Dice loss in the sum. With 0.5, and half of the Dice loss, vessels came out worse."""

SKELETON_STEPS = 5  # erosions by one pixel on each side: lines up to twice as wide have a centre line

FloatArray = npt.NDArray[np.float32]


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor | None, name: LossName) -> Tensor:
    """Logits (B, K, H, W), class indices or IGNORED (B, H, W), weights (B, H, W) or None -> scalar loss.
    Cross-entropy (binary for K = 1) averaged by weight; `ce+dice` adds soft Dice, `ce+dice+cldice` also a share of
    centre line Dice. With several processes the mean of their losses is the loss of the whole batch, because sums in
    a denominator are taken over all of them."""
    logits = logits.float()
    known = (labels != IGNORED).float()  # (B, H, W)
    weights = known if weights is None else known * weights
    labels = labels.where(labels != IGNORED, 0)
    if logits.shape[1] == 1:
        ce = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), reduction="none")  # (B, H, W)
    else:
        ce = F.cross_entropy(logits, labels, reduction="none")  # (B, H, W)
    loss = world.size() * (ce * weights).sum() / world.sum(weights.sum()).clamp(min=1)
    if name != "ce":
        p, y = (each * known[:, None] for each in by_class(logits, labels))
        loss = loss + soft_dice_loss(p, y)
        if name == "ce+dice+cldice":
            loss = loss + CENTRE_LINE_WEIGHT * centre_line_dice_loss(p, y)
    return loss


def soft_dice_loss(p: Tensor, y: Tensor) -> Tensor:
    """Probabilities and one-hot labels of `by_class` -> 1 - mean over the classes of 2 sum(p y) / (sum(p) + sum(y)),
    with sums over the whole batch. Both classes of a binary problem count: it does not matter which is the
    foreground."""
    overlap, total = _sums(p * y), _sums(p + y)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()  # + 1: a class that is absent and not predicted is perfect


def centre_line_dice_loss(p: Tensor, y: Tensor) -> Tensor:
    """1 - mean clDice over all classes of `by_class` but the batch's most common one, taken for the background.

    clDice (Shit et al. 2021, https://arxiv.org/abs/2003.07311) is the harmonic mean of the share of the predicted
    centre lines inside the label, and the share of the label's centre lines that is predicted: a gap in a membrane
    costs as much as the membrane is long there, however thin it is. Unlike in the paper, gradients do not flow through
    the position of the predicted centre lines, only through their probability, which takes a tenth of the time.
    """
    others = torch.arange(p.shape[1] - 1, device=p.device)
    others = others + (others >= _sums(y).argmax())  # computed on the device: no synchronisation with a GPU
    p, y = (each.index_select(1, others) for each in (p, y))
    line = p * (skeleton(p.detach()) / p.detach().clamp(min=1e-6))
    label_line = skeleton(y)
    precision = (_sums(line * y) + 1) / (_sums(line) + 1)
    sensitivity = (_sums(label_line * p) + 1) / (_sums(label_line) + 1)
    return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean()


@torch.no_grad()
def skeleton(x: Tensor) -> Tensor:
    """Soft skeleton (centre lines) of x (B, K, H, W) in 0..1, of the same shape and range: the sum of all that openings
    remove."""
    lines = torch.zeros_like(x)
    for _ in range(SKELETON_STEPS):
        eroded = torch.minimum(_extreme_of_three(x, 2, torch.minimum, 1), _extreme_of_three(x, 3, torch.minimum, 1))
        opened = _extreme_of_three(_extreme_of_three(eroded, 2, torch.maximum, 0), 3, torch.maximum, 0)
        removed = F.relu(x - opened)
        lines = lines + F.relu(removed - lines * removed)
        x = eroded
    return lines


def _extreme_of_three(x: Tensor, dim: int, extreme: Callable[[Tensor, Tensor], Tensor], border: float) -> Tensor:
    """Minimum or maximum of each pixel and its two neighbours along dimension 2 or 3; `border` outside the image."""
    padded = F.pad(x, [0, 0, 1, 1] if dim == 2 else [1, 1, 0, 0], value=border)
    return extreme(extreme(padded.narrow(dim, 0, x.shape[dim]), padded.narrow(dim, 2, x.shape[dim])), x)


def by_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels, (B, classes, H, W) each, in 0..1; two classes for a binary problem."""
    if logits.shape[1] == 1:
        foreground = logits[:, 0].sigmoid()
        p = torch.stack([1 - foreground, foreground], dim=1)
    else:
        p = logits.softmax(dim=1)
    return p, F.one_hot(labels, p.shape[1]).permute(0, 3, 1, 2).to(p.dtype)


def _sums(x: Tensor) -> Tensor:
    """Sums of (B, classes, H, W) over the whole batch of all processes: (classes,)."""
    return world.sum(x.sum((0, 2, 3)))


def border_weights(label: npt.NDArray[np.integer[Any]], n_classes: int) -> FloatArray:
    """The paper's equation 2: w(x) = w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / (2 sigma^2)).

    (H, W) class indices -> (H, W). d_1 and d_2 are the distances to the nearest and second nearest object, an object
    being a connected component of a class other than 0. w_c balances the classes of this label: its mean is 1.
    """
    share = np.bincount(label.ravel(), minlength=n_classes) / label.size
    balance = 1 / (np.where(share > 0, share, np.inf) * (share > 0).sum())  # 0 for a class that is absent
    nearest, second = two_nearest_objects(label)
    border = BORDER_WEIGHT * np.exp(-((nearest + second) ** 2) / (2 * BORDER_SIGMA**2))
    weights: FloatArray = (balance[label] + border).astype(np.float32)
    return weights


def two_nearest_objects(label: npt.NDArray[np.integer[Any]]) -> tuple[FloatArray, FloatArray]:
    """Distances (H, W) in pixels to the nearest and second nearest object; infinite beyond 6 sigma, where the border
    weight is negligible."""
    reach = int(6 * BORDER_SIGMA)
    nearest = np.full(label.shape, np.inf, np.float32)
    second = nearest.copy()
    for value in np.unique(label[label > 0]):
        n, components, boxes, _ = cv2.connectedComponentsWithStats((label == value).astype(np.uint8), connectivity=4)
        for i in range(1, n):  # component 0 is everything else
            x, y, w, h = (int(v) for v in boxes[i][:4])
            window = (slice(max(0, y - reach), y + h + reach), slice(max(0, x - reach), x + w + reach))
            outside = (components[window] != i).astype(np.uint8)
            distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            distance = np.sqrt(np.rint(distance**2))  # OpenCV's last bit depends on the alignment of the array
            second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
            nearest[window] = np.minimum(nearest[window], distance)
    return nearest, second
