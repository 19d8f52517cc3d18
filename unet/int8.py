"""The network in whole numbers of eight bits, on a CPU.

What layers hand on is uint8, weights are int8, sums int32 (Jacob et al. 2018, https://arxiv.org/abs/1712.05877): a
quarter of the memory of float32, and twice the arithmetic, or more where a processor has instructions for it. How large
a layer's values get, for which others want example images, batch norm knows, since it gives each channel its mean and
its standard deviation (as in Nagel et al. 2019, https://arxiv.org/abs/1906.04721).

The operators are those that torch has for `torch.compile`. All scales are part of the weights: a convolution's result
is expressed in the scale of the next layer's input. There is one scale for all channels of a layer, so a network of
which one channel has far larger values than the others loses precision (16 times as large: 0.3 % of the pixels differ).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from unet.checkpoint import CheckpointError
from unet.composed import Composed
from unet.device import has_vnni
from unet.fused import MaxPool, convolved, give_back, packed
from unet.network import DoubleConv, UNet, Up, fit

SIGMAS = 8
"""Standard deviations above its mean, up to which a channel's values can be told apart."""

HALF = 0.5
"""Added to what is cut off to whole numbers, so that it is rounded."""


def in_int8(network: UNet) -> UNet:
    """A copy for inference, of a network in float32. Raises CheckpointError for one without batch norm."""
    if network.config.variant == "paper":
        raise CheckpointError(
            "a network of variant paper has no batch norm, which tells how large values get; expected one that has "
            "for precision int8, or precision fp32 or bf16"
        )
    steps = {
        name: [_step(layer) for layer in module.double_conv if isinstance(layer, nn.BatchNorm2d)]
        for name, module in network.named_modules()
        if isinstance(module, DoubleConv)
    }
    network = network.folded()
    network.add_module("inc", _First(network.inc, steps["inc"]))
    levels = [steps["inc"][1]]
    for name in ("down1", "down2", "down3", "down4"):
        down, own = getattr(network, name), steps[f"{name}.maxpool_conv.1"]
        convolutions = _DoubleConv(down.maxpool_conv[1], levels[-1], own)
        down.maxpool_conv = nn.Sequential(MaxPool(), convolutions)
        levels.append(own[1])
    step = levels.pop()
    for name in ("up1", "up2", "up3", "up4"):
        own = steps[f"{name}.conv"]
        network.add_module(name, _Up(getattr(network, name), step, levels.pop(), own))
        step = own[1]
    network.add_module("outc", _OutConv(network.outc.conv, step))
    return network


def _step(norm: nn.BatchNorm2d) -> float:
    """What 1 of uint8 stands for behind a batch norm and ReLU."""
    largest = norm.bias.detach() + SIGMAS * norm.weight.detach().abs()
    return max(float(largest.max()), 1e-6) / 255


class Convolution:
    """Of uint8, with weights of int8 that each output channel has its own scale of."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, padding: int = 1) -> None:
        # without VNNI, the processor adds two products in 16 bits: 2 * 255 * 64 is the most that fits
        largest = 127 if has_vnni() else 64
        self.scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / largest
        whole = (weight / self.scale[:, None, None, None]).round().to(torch.int8)
        self.zero_points = torch.zeros(len(weight), dtype=torch.long)
        self.padding = [padding, padding]
        self.weight = torch.ops.onednn.qconv_prepack(whole, self.scale, 1, 0, [1, 1], self.padding, [1, 1], 1, None)
        self.bias = bias

    def __call__(self, x: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
        """As uint8 it is rounded, and what is below zero is zero: ReLU."""
        weights = (self.weight, self.scale, self.zero_points, self.bias)
        return torch.ops.onednn.qconv2d_pointwise(  # type: ignore[no-any-return]
            x, 1, 0, *weights, [1, 1], self.padding, [1, 1], 1, 1, 0, dtype, "none", [], ""
        )


def _in_float(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A convolution whose results are float32."""
    return partial(Convolution(weight), dtype=torch.float32)


def _weights(convolutions: DoubleConv) -> list[tuple[Tensor, Tensor]]:
    """Weights and bias of each of the two."""
    layers = [layer for layer in convolutions.double_conv if isinstance(layer, nn.Conv2d)]
    return [(layer.weight, layer.bias) for layer in layers if layer.bias is not None]


class _First(nn.Module):
    """The first convolution is in float32: an image has few channels, and few values that are whole numbers."""

    def __init__(self, convolutions: DoubleConv, steps: list[float]) -> None:
        super().__init__()
        (weight, bias), (second, second_bias) = _weights(convolutions)
        self.weight, self.bias = packed(weight / steps[0], [1, 1]), bias / steps[0] + HALF
        self.second = Convolution(second * (steps[0] / steps[1]), second_bias / steps[1])

    def forward(self, x: Tensor) -> Tensor:
        x = convolved(x, self.weight, self.bias, [1, 1], "hardtanh", 0.0, 255.0)
        return self.second(x.to(torch.uint8))


class _DoubleConv(nn.Module):
    def __init__(self, convolutions: DoubleConv, step: float, steps: list[float]) -> None:
        super().__init__()
        (first, first_bias), (second, second_bias) = _weights(convolutions)
        self.first = Convolution(first * (step / steps[0]), first_bias / steps[0])
        self.second = Convolution(second * (steps[0] / steps[1]), second_bias / steps[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class _Up(nn.Module):
    """What the first convolution makes of the skip connection and of what comes from below is added up in float32."""

    def __init__(self, up: Up, step: float, skip_step: float, steps: list[float]) -> None:
        super().__init__()
        (first, first_bias), (second, second_bias) = _weights(up.conv)
        skips, below = first.chunk(2, dim=1)
        bias = first_bias / steps[0] + HALF
        self.composed: Composed | None = None
        if isinstance(up.up, nn.ConvTranspose2d):
            assert up.up.bias is not None
            self.composed = Composed(up.up.weight * step, up.up.bias, below / steps[0], _in_float)
            bias = bias + self.composed.bias
        else:
            self.up, self.below = up.up, _in_float(below * (step / steps[0]))
        self.start = Convolution(skips * (skip_step / steps[0]), bias)
        self.second = Convolution(second * (steps[0] / steps[1]), second_bias / steps[1])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        started = self.start(skip, torch.float32)
        give_back(skip)
        if self.composed:
            self.composed.put(started.permute(0, 2, 3, 1), x, add=True)
        else:
            finer = (self.up(x.float()) + HALF).to(torch.uint8)
            started += self.below(fit(finer, skip))
        give_back(x)
        return self.second(started.clamp_(0, 255).to(torch.uint8))


class _OutConv(nn.Module):
    def __init__(self, layer: nn.Conv2d, step: float) -> None:
        super().__init__()
        self.convolution = Convolution(layer.weight * step, layer.bias, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x, torch.float32)
