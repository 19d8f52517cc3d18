"""Soft skeletons (centre lines) as in clDice: Shit et al. 2021, https://arxiv.org/abs/2003.07311."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 5
"""Erosions by one pixel on each side: lines up to twice as wide have a centre line."""


@torch.no_grad()
def skeleton(x: Tensor) -> Tensor:
    """(B, K, H, W) in 0..1 -> soft skeleton of the same shape and range: the sum of all that openings remove."""
    lines = torch.zeros_like(x)
    for _ in range(STEPS):
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
