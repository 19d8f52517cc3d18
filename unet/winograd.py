"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3), of which Lavin and Gray 2016
(https://arxiv.org/abs/1509.09308) made matrix products.

A square of 4 x 4 results depends on 6 x 6 pixels. Pixels and weights are taken to 36 points each; there the convolution
is a product of (squares, channels in) and (channels in, channels out), which is then taken back to results. All of that
passes through memory several times, and only pays for many channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE = 128
"""Channels, in and out, from which it is faster than oneDNN's convolution, with AVX2 as with AVX-512: a little, and
twice with 512."""

SQUARES = 128
"""At a time, about: enough for large products, and few enough for the processor's caches."""

# The paper's section 4.3, in one dimension. The points are 0, 1, -1, 2, -2 and infinity.
_PIXELS = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_24_WEIGHTS = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
_RESULTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _in_two_dimensions(matrix: list[list[int]]) -> Tensor:
    return torch.kron(torch.tensor(matrix), torch.tensor(matrix)).float()


_FROM_WEIGHTS = _in_two_dimensions(_24_WEIGHTS) / 24**2  # (36, 3 * 3)
_FROM_PIXELS = _in_two_dimensions(_PIXELS)  # (36, 6 * 6)
_TO_RESULTS = _in_two_dimensions(_RESULTS)  # (4 * 4, 36)
_ONE = 1 * 6 + 1  # the point (1, 1): what is added there is added to each of the 4 x 4 results


def pays(weight: Tensor) -> bool:
    """(K, C, 3, 3): whether it is worth it here."""
    wide = min(weight.shape[:2]) >= WIDE
    return wide and weight.dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def transformed(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (36, C, K) float32: the weights at the points, in four times the memory."""
    n_out, n_in = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, n_in * n_out)
    return (_FROM_WEIGHTS @ taps).view(36, n_in, n_out)


def convolved(x: Tensor, points: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    """(B, C, H, W) -> (B, K, H', W'), float32 on the CPU, channels last: as `F.conv2d` with the weights whose `points`
    these are, but for rounding (1e-5 of the largest value)."""
    n_out = points.shape[2]
    height, width = (side + 2 * pad - 2 for side, pad in zip(x.shape[2:], padding, strict=True))
    bottom, right = padding[0] + -height % 4, padding[1] + -width % 4  # to whole squares
    padded = F.pad(x, [padding[1], right, padding[0], bottom])
    seen = padded.permute(0, 2, 3, 1).unfold(1, 6, 4).unfold(2, 6, 4)  # (B, rows, columns, C, 6, 6), a view
    rows, columns = seen.shape[1:3]
    results = x.new_empty(len(x), rows, 4, columns, 4, n_out)
    at_once = max(1, SQUARES // columns)
    for image, result in zip(seen, results, strict=True):
        for pixels, part in zip(image.split(at_once), result.split(at_once), strict=True):
            at_points = _FROM_PIXELS @ pixels.permute(3, 4, 0, 1, 2).reshape(36, -1)
            products = at_points.view(36, -1, points.shape[1]) @ points
            if bias is not None:
                products[_ONE] += bias
            squares = _TO_RESULTS @ products.view(36, -1)
            part.copy_(squares.view(4, 4, -1, columns, n_out).permute(2, 0, 3, 1, 4))
    together = results.view(len(x), 4 * rows, 4 * columns, n_out).permute(0, 3, 1, 2)
    return together[:, :, :height, :width]
