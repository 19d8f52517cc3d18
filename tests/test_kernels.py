"""The kernels for GPUs against what torch computes."""

import logging

import pytest
import torch
from torch import Tensor, nn

from unet import composed, kernels
from unet.kernels import Kernels


def values(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").to(torch.bfloat16, memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (3, 64, 37, 33), (1, 24, 2, 2)])
def test_max_pool(shape: tuple[int, ...]) -> None:
    own = kernels.compiled(Kernels)
    assert own
    x = values(*shape).relu()
    x[:, :, 0, 0] = -0.0
    torch.testing.assert_close(own.max_pool(x), nn.functional.max_pool2d(x, 2), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (3, 64, 37, 33)])
def test_add_bias(shape: tuple[int, ...]) -> None:
    own = kernels.compiled(Kernels)
    assert own
    x, bias = values(*shape), torch.randn(shape[1], device="cuda").bfloat16()
    expected = x + bias[:, None, None]
    assert own.add_bias(x, bias) is x
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(4, 6), (5, 6), (32, 49), (3, 3), (2, 2)])
def test_add_coarse_relu(size: tuple[int, int]) -> None:
    """Together with a convolution of the coarse grid, what an up-convolution and a convolution are."""
    own = kernels.compiled(Kernels)
    assert own
    coarse, finer = values(2, 16, size[0] // 2, size[1] // 2), values(2, 8, *size)
    up, bias, weight = (torch.randn(shape, device="cuda") / 8 for shape in ((16, 24, 2, 2), (24,), (8, 24, 3, 3)))
    enlarged = nn.functional.conv_transpose2d(coarse.float(), up, bias, stride=2)
    enlarged = nn.functional.pad(enlarged, [0, size[1] % 2, 0, size[0] % 2])
    expected = (finer.float() + nn.functional.conv2d(enlarged, weight, padding=1)).relu()

    found = nn.functional.conv2d(coarse.float(), composed.kernels(up, weight).flatten(0, 2), padding=1)
    found = found.to(torch.bfloat16, memory_format=torch.channels_last)
    places = composed.bias_by_place(bias, weight, (size[0] % 2, size[1] % 2)).contiguous()
    assert own.add_coarse_relu(finer, found, places) is finer
    torch.testing.assert_close(finer.float(), expected, rtol=0.02, atol=0.02 * float(expected.std()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_where_they_cannot_be_compiled_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert kernels.compiled.__wrapped__(Kernels) is None
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["slower than with kernels of our own"]
