"""Winograd's convolution is a convolution."""

import pytest
import torch
import torch.nn.functional as F

from unet import winograd


@pytest.mark.parametrize(
    ("size", "padding"),
    [((4, 4), [1, 1]), ((9, 14), [1, 1]), ((1, 3), [1, 1]), ((6, 6), [0, 0]), ((7, 12), [0, 0]), ((3, 3), [0, 0])],
)
@pytest.mark.parametrize("squares", [1, 128])  # at a time: the last group may be smaller
def test_as_torch_does_it(
    size: tuple[int, int], padding: list[int], squares: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "SQUARES", squares)
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(3, 5, 3, 3), torch.randn(3)
    points = winograd.transformed(weight)
    torch.testing.assert_close(
        winograd.convolved(x, points, bias, padding), F.conv2d(x, weight, bias, padding=padding), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        winograd.convolved(x, points, None, padding), F.conv2d(x, weight, padding=padding), rtol=1e-4, atol=1e-4
    )


def test_a_sum_that_can_be_done_by_hand() -> None:
    """Of nine ones each: in the corners four of them are inside, at the sides six."""
    x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    found = winograd.convolved(x, winograd.transformed(weight), None, [1, 1])
    expected = torch.tensor([[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]])
    torch.testing.assert_close(found[0, 0], expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "channels", "expected"), [("AVX2", 128, 1), ("AVX2", 64, 0), ("AVX512", 128, 1), ("DEFAULT", 128, 0)]
)
def test_where_it_pays(capability: str, channels: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weight = torch.empty(256, channels, 3, 3)
    assert winograd.pays(weight) == bool(expected)
    assert not winograd.pays(weight.bfloat16())


def test_as_exact_as_float32_is() -> None:
    """With the sums of the widest layers, 512 channels; against float64."""
    torch.manual_seed(0)
    x, weight = torch.rand(1, 512, 16, 16), torch.randn(256, 512, 3, 3) * (2 / (9 * 512)) ** 0.5
    found = winograd.convolved(x, winograd.transformed(weight), None, [1, 1])
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
