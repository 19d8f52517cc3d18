"""An up-convolution and the convolution after it, as one, are what they are one after the other."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from unet import composed
from unet.composed import Composed


def as_one(
    x: torch.Tensor, up: torch.Tensor, bias: torch.Tensor, weight: torch.Tensor, size: list[int]
) -> torch.Tensor:
    found = torch.full((len(x), len(weight), *size), 7.0).to(memory_format=torch.channels_last)
    both = Composed(up, bias, weight, lambda kernel: partial(channels_last, kernel))
    both.put(found.permute(0, 2, 3, 1), x, add=False)
    twice = found.clone()
    both.put(twice.permute(0, 2, 3, 1), x, add=True)
    torch.testing.assert_close(twice, 2 * found)
    return found + both.bias[:, None, None]


def channels_last(kernel: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, kernel, padding=1).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (2, 1)])
@pytest.mark.parametrize("lost", [(0, 0), (1, 0), (0, 1), (1, 1)])  # a row or a column, in pooling an odd size
def test_as_torch_does_it(size: tuple[int, int], lost: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, up, bias, weight = torch.randn(2, 6, *size), torch.randn(6, 5, 2, 2), torch.randn(5), torch.randn(3, 5, 3, 3)
    finer = F.pad(F.conv_transpose2d(x, up, bias, stride=2), [0, lost[1], 0, lost[0]])
    found = as_one(x, up, bias, weight, list(finer.shape[2:]))
    torch.testing.assert_close(found, F.conv2d(finer, weight, padding=1), rtol=1e-4, atol=1e-4)


def test_what_is_learned_is_what_both_would_learn() -> None:
    """Gradients, through the weights of all parities and the bias by place, as training on a GPU wants them."""
    torch.manual_seed(0)
    x, up, bias, weight = torch.randn(2, 6, 4, 5), torch.randn(6, 5, 2, 2), torch.randn(5), torch.randn(3, 5, 3, 3)
    leaves = [each.requires_grad_() for each in (x, up, bias, weight)]
    dy = torch.randn(2, 3, 8, 10)
    expected = F.conv2d(F.conv_transpose2d(x, up, bias, stride=2), weight, padding=1)
    wanted = torch.autograd.grad(expected, leaves, dy)

    coarse = F.conv2d(x, composed.kernels(up, weight).flatten(0, 2), padding=1).unflatten(1, (2, 2, 3))
    rows, columns = torch.arange(8)[:, None], torch.arange(10)
    fine = coarse[:, rows % 2, columns % 2, :, (rows + 1) // 2, (columns + 1) // 2]  # (8, 10, 2, 3)
    places = composed.bias_by_place(bias, weight)[[[0], *[[1]] * 6, [2]], [0, *[1] * 8, 2]]  # (8, 10, 3)
    found = fine.permute(2, 3, 0, 1) + places.permute(2, 0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(torch.autograd.grad(found, leaves, dy), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_sums_that_can_be_done_by_hand() -> None:
    """One coarse pixel becomes 1 2 / 3 4, and each fine pixel the sum of its neighbourhood: all four of them, ten."""
    up, none, ones = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], torch.zeros(1), torch.ones(1, 1, 3, 3)
    assert as_one(torch.ones(1, 1, 1, 1), up, none, ones, [2, 2]).flatten().tolist() == [10, 10, 10, 10]
    # of two coarse pixels side by side, 1 2 1 2 / 3 4 3 4: the sums of 2, 3, 3 and 2 columns
    assert as_one(torch.ones(1, 1, 1, 2), up, none, ones, [2, 4])[0, 0].tolist() == [[10, 14, 16, 10]] * 2


def test_a_bias_is_worth_less_at_the_borders() -> None:
    """Each fine pixel sees a bias of 2 in itself and in its neighbours."""
    up, bias, ones = torch.zeros(1, 1, 2, 2), torch.tensor([2.0]), torch.ones(1, 1, 3, 3)
    found = as_one(torch.ones(1, 1, 2, 2), up, bias, ones, [4, 4])
    assert found[0, 0].tolist() == [[8, 12, 12, 8], [12, 18, 18, 12], [12, 18, 18, 12], [8, 12, 12, 8]]
    found = as_one(torch.ones(1, 1, 1, 1), up, bias, ones, [3, 2])  # the last row is one that the pooling lost
    assert found[0, 0].tolist() == [[8, 8], [8, 8], [4, 4]]
