"""An up-convolution and the convolution after it, as one, are what they are one after the other."""

import pytest
import torch
import torch.nn.functional as F

from unet.composed import add_by_place, composed, fine_rows, of_the_bias


def as_one(x: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    found = torch.zeros_like(like)
    for parity, kernel in enumerate(composed(up, weight)):
        coarse = F.conv2d(x, kernel, padding=1).to(memory_format=torch.channels_last)
        rows = found[:, :, parity::2]
        rows += fine_rows(coarse, parity, like).unflatten(2, (rows.shape[3], -1)).permute(0, 3, 1, 2)
    return found


def one_after_the_other(
    x: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None, weight: torch.Tensor, lost: tuple[int, int]
) -> torch.Tensor:
    finer = F.conv_transpose2d(x, up, bias, stride=2)
    return F.conv2d(F.pad(finer, [0, lost[1], 0, lost[0]]), weight, padding=1)


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (2, 1)])
@pytest.mark.parametrize("lost", [(0, 0), (1, 0), (0, 1), (1, 1)])  # a row or a column, in pooling an odd size
@pytest.mark.parametrize("with_bias", [False, True])
def test_as_torch_does_it(size: tuple[int, int], lost: tuple[int, int], with_bias: bool) -> None:
    torch.manual_seed(0)
    x, up, weight = torch.randn(2, 6, *size), torch.randn(6, 5, 2, 2), torch.randn(3, 5, 3, 3)
    bias = torch.randn(5) if with_bias else None
    expected = one_after_the_other(x, up, bias, weight, lost)
    found = as_one(x, up, weight, expected)
    if bias is not None:
        add_by_place(found, of_the_bias(bias, weight, lost))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_sum_that_can_be_done_by_hand() -> None:
    """One coarse pixel becomes 1 2 / 3 4, and each fine pixel the sum of its neighbourhood: all four of them, ten."""
    up = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    kernels = composed(up, torch.ones(1, 1, 3, 3))
    assert [kernel.shape for kernel in kernels] == [(2, 1, 2, 2)] * 2
    found = as_one(torch.ones(1, 1, 1, 1), up, torch.ones(1, 1, 3, 3), torch.empty(1, 1, 2, 2))
    assert found.flatten().tolist() == [10, 10, 10, 10]
    # of two coarse pixels side by side, 1 2 1 2 / 3 4 3 4: the sums of 2, 3, 3 and 2 columns
    found = as_one(torch.ones(1, 1, 1, 2), up, torch.ones(1, 1, 3, 3), torch.empty(1, 1, 2, 4))
    assert found[0, 0].tolist() == [[10, 14, 16, 10]] * 2


def test_a_bias_is_worth_less_at_the_border() -> None:
    places = of_the_bias(torch.tensor([2.0]), torch.ones(1, 1, 3, 3), (0, 0))
    assert places.tolist() == [[[8, 12, 8], [12, 18, 12], [8, 12, 8]]]
    found = torch.zeros(1, 1, 2, 5)  # without an inside in one direction
    add_by_place(found, places)
    assert found[0, 0].tolist() == [[8, 12, 12, 12, 8]] * 2
