"""An up-convolution and the 3x3 convolution after it, as one: of the coarse grid at once, without a finer one between.

A 3x3 neighbourhood on the finer grid lies in 2 x 2 pixels of the coarse one, so for each of the four places that a
fine pixel can have in a coarse one the two are one 2x2 convolution. For C channels in, M between and K out, a fine
pixel takes 4 C K multiplications instead of C M + 9 M K: 36 to 40 % in a tutorial's up steps, 73 % in Pytorch-UNet's.
"""

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

Convolution = Callable[[Tensor], Tensor]


class Composed:
    """Of the up-convolution's weights (C, M, 2, 2) and bias (M,), and the convolution's weights (K, M, 3, 3), which has
    a padding of one.

    `convolution` makes one of weights (2 K, C, 2, 2), with a padding of one and without a bias.
    """

    def __init__(self, up: Tensor, bias: Tensor, weight: Tensor, convolution: Callable[[Tensor], Convolution]) -> None:
        self.bias = weight.sum((2, 3)) @ bias
        """(K,), what the up-convolution's bias comes to, where no border is near. It is left to the caller."""
        self.by_parity = [convolution(kernel) for kernel in _kernels(up, weight)]
        self.at_borders = {lost: _bias_by_place(bias, weight, lost) for lost in product((0, 1), (0, 1))}

    def add_to(self, finer: Tensor, coarse: Tensor) -> None:
        """(B, K, H, W), channels last, += what (B, C, h, w) comes to, but for `bias`. H is 2 h, or 2 h + 1: an odd size
        lost its last row in the pooling, and zeros take its place. W likewise."""
        _, n_out, height, width = finer.shape
        _add_at_borders(finer, self.at_borders[height % 2, width % 2].to(finer.dtype))
        for parity, convolution in enumerate(self.by_parity):
            rows = finer.permute(0, 2, 3, 1)[:, parity::2]  # (B, n, W, K)
            # In memory, a coarse pixel's odd column is followed by its even one, which for a 2x2 kernel is that of the
            # next coarse pixel. So but for the first K numbers, a row is in order.
            found = convolution(coarse).permute(0, 2, 3, 1).flatten(2)  # (B, h + 1, (w + 1) * 2 K)
            found = found[:, parity : parity + rows.shape[1], n_out : n_out + width * n_out]
            rows.view(found.shape).add_(found)


def _kernels(up: Tensor, weight: Tensor) -> list[Tensor]:
    """For the even and for the odd rows, weights of what makes their odd columns, in the first K channels, and their
    even ones."""
    kernels = weight.new_zeros(2, 2, len(weight), len(up), 2, 2)  # by parity of row and column
    for row, column, i, j in product((0, 1), (0, 1), range(3), range(3)):
        # tap (i, j) of a fine pixel sees its neighbour (i - 1, j - 1), which lies in this coarse pixel, at this place:
        coarse_row, fine_row = divmod(row + i - 1, 2)
        coarse_column, fine_column = divmod(column + j - 1, 2)
        tap = weight[:, :, i, j] @ up[:, :, fine_row, fine_column].T
        kernels[row, column, :, :, coarse_row + 1 - row, coarse_column + 1 - column] += tap
    return [torch.cat([odd, even]) for even, odd in kernels]


def _bias_by_place(bias: Tensor, weight: Tensor, lost: tuple[int, int]) -> Tensor:
    """What the up-convolution's bias comes to behind the convolution, less what it does inside: (K, 3, 3), of corners,
    sides and inside. With a lost row or column there are four, two after the inside."""
    finer = F.pad(bias[None, :, None, None].expand(1, -1, 3, 3), [0, lost[1], 0, lost[0]])
    places = F.conv2d(finer, weight, padding=1)[0]
    return places - places[:, 1:2, 1:2]


def _add_at_borders(to: Tensor, places: Tensor) -> None:
    """(B, K, H, W) += `_bias_by_place`, of which the sides are as long as they need to be."""
    for rows, columns in product(*((slice(0, 1), slice(1, 2 - n), slice(2 - n, None)) for n in places.shape[1:])):
        if (rows.start, columns.start) != (1, 1):
            to[:, :, rows, columns] += places[:, rows, columns]
