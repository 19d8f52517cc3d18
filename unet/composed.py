"""An up-convolution and the 3x3 convolution after it, as one: of the coarse grid at once, without a finer one between.

A 3x3 neighbourhood on the finer grid lies in 2 x 2 pixels of the coarse one, so for each of the four places that a
fine pixel can have in a coarse one the two are one 2x2 convolution. For C channels in, M between and K out, a fine
pixel takes 4 C K multiplications instead of C M + 9 M K: less than half in all of U-Net's up steps.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def composed(up: Tensor, weight: Tensor) -> list[Tensor]:
    """The up-convolution's weights (C, M, 2, 2) and the convolution's (K, M, 3, 3) -> for the even and for the odd fine
    rows, the weights (2 K, C, 2, 2) of a convolution that makes their odd columns, in the first K channels, and their
    even ones. See `fine_rows`."""
    n_out, n_in = len(weight), len(up)
    kernels = weight.new_zeros(2, 2, n_out, n_in, 2, 2)  # by parity of row and column
    for row, column, i, j in product((0, 1), (0, 1), range(3), range(3)):
        # tap (i, j) of a fine pixel sees its neighbour (i - 1, j - 1), which lies in this coarse pixel, at this place:
        coarse_row, fine_row = divmod(row + i - 1, 2)
        coarse_column, fine_column = divmod(column + j - 1, 2)
        tap = weight[:, :, i, j] @ up[:, :, fine_row, fine_column].T
        kernels[row, column, :, :, coarse_row + 1 - row, coarse_column + 1 - column] += tap
    return [torch.cat([odd, even]) for even, odd in kernels]


def fine_rows(coarse: Tensor, parity: int, like: Tensor) -> Tensor:
    """(B, 2 K, h + 1, w + 1), channels last: the coarse grid, with a padding of one, convolved with one of the kernels
    of `composed` -> (B, n, W * K), a view: the rows of that parity of the (B, K, H, W) that is like `like`.

    In memory, a coarse pixel's odd column is followed by its even one, which for a 2x2 kernel is that of the next
    coarse pixel: but for the first K numbers, a row is in order."""
    n_out, height, width = like.shape[1:]
    n_rows = (height + 1 - parity) // 2
    rows = coarse.permute(0, 2, 3, 1).flatten(2)  # (B, h + 1, (w + 1) * 2 K)
    return rows[:, parity : parity + n_rows, n_out : n_out + width * n_out]


def of_the_bias(bias: Tensor, weight: Tensor, lost: tuple[int, int]) -> Tensor:
    """What the up-convolution's bias (M,) comes to behind the convolution: (K, 3, 3) of the corners, the sides and the
    inside. `lost`, 1 for each direction in which the finer grid had an odd size and is padded with zeros: then there
    are four, two after the inside."""
    finer = F.pad(bias[None, :, None, None].expand(1, -1, 3, 3), [0, lost[1], 0, lost[0]])
    return F.conv2d(finer, weight, padding=1)[0]


def add_by_place(to: Tensor, places: Tensor) -> None:
    """(B, K, H, W) += `of_the_bias`, of which the inside is added to all that is not at a border."""
    for rows in _places(places.shape[1]):
        for columns in _places(places.shape[2]):
            to[:, :, rows, columns] += places[:, rows, columns]


def _places(n: int) -> tuple[slice, slice, slice]:
    """First, inside, last or the two last."""
    return slice(0, 1), slice(1, 2 - n), slice(2 - n, None)
