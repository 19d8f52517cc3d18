"""A network for inference on a CPU: the same convolutions in fewer passes over memory, which narrow networks wait for.

ReLU is applied while a convolution writes; a skip connection and what comes from below are convolved one after the
other into one sum, and never joined; pooling keeps no indices; weights are in the order that oneDNN wants. With the
operators that `torch.compile` has for this (torch/_inductor/fx_passes/mkldnn_fusion.py), without its seconds of
compilation and its C++ compiler.
"""

import torch
from torch import Tensor, nn

from unet.network import DoubleConv, UNet, Up


def fused(network: UNet) -> UNet:
    """A folded network (see `UNet.folded`), in its final dtype and on its device, is changed and returned; as it is
    where oneDNN does not compute that."""
    weight = next(network.parameters())
    if not _supported(weight.device, weight.dtype):
        return network
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DoubleConv):
                setattr(parent, name, _FusedDoubleConv(child, n_parts=2 if isinstance(parent, Up) else 1))
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, _MaxPool())
    return network


def _supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Not on a GPU, nor where torch was built without oneDNN, nor in bfloat16 without instructions for it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _FusedDoubleConv(nn.Module):
    """(3x3 convolution, ReLU) twice, of `n_parts` tensors of equal shape that follow one another in the channels."""

    def __init__(self, convolutions: DoubleConv, n_parts: int) -> None:
        super().__init__()
        first, second = (layer for layer in convolutions.double_conv if isinstance(layer, nn.Conv2d))
        assert isinstance(first.padding, tuple)
        self.padding = list(first.padding)
        self.parts = [self._packed(weight) for weight in first.weight.detach().chunk(n_parts, dim=1)]
        self.second = self._packed(second.weight.detach())
        self.first_bias, self.second_bias = first.bias, second.bias

    def forward(self, *parts: Tensor) -> Tensor:
        x = self._convolved(parts[0], self.parts[0], self.first_bias, "relu" if len(parts) == 1 else "none")
        for i, part in enumerate(parts[1:], 2):
            self._add_convolved(x, part, self.parts[i - 1], "relu" if i == len(parts) else "none")
        if len(parts) > 1:  # nobody needs them any more, but whoever has called still holds them
            for part in parts:
                part.untyped_storage().resize_(0)
        return self._convolved(x, self.second, self.second_bias, "relu")

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, weight, bias, self.padding, [1, 1], [1, 1], 1, then, [], ""
        )

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor, then: str) -> None:
        torch.ops.mkldnn._convolution_pointwise_.binary(
            to, x, weight, None, self.padding, [1, 1], [1, 1], 1, "add", 1.0, then, [], ""
        )

    def _packed(self, weight: Tensor) -> Tensor:
        return torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            weight.contiguous().to_mkldnn(), self.padding, [1, 1], [1, 1], 1, None
        )


class _MaxPool(nn.Module):
    """As `nn.MaxPool2d(2)`: the last row or column of an odd size is lost."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
        return torch.maximum(rows[:, :, :, 0::2], rows[:, :, :, 1::2])
