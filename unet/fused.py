"""A network for inference: the same convolutions in fewer passes over memory, which narrow networks wait for on a CPU
and all wait for on a GPU.

ReLU is applied while a convolution writes; a skip connection and what comes from below are convolved one after the
other into one sum, and never joined; pooling keeps no indices. On a CPU with the operators that `torch.compile` has for
this (torch/_inductor/fx_passes/mkldnn_fusion.py), without its seconds of compilation and its C++ compiler, and with
weights in the order that oneDNN wants; on a GPU with those of cuDNN.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet import kernels
from unet.kernels import LANES, Kernels
from unet.network import DoubleConv, OutConv, UNet, Up

log = logging.getLogger(__name__)

NARROW = 8
"""cuDNN is slow for fewer channels than that, such as those of an image."""


def fused(network: UNet) -> UNet:
    """A folded network (see `UNet.folded`), in its final dtype and on its device, is changed and returned; as it is
    where there are no such operators."""
    weight = next(network.parameters())
    kind = _kind(weight.device, weight.dtype)
    if kind is None:
        return network
    own = kernels.compiled(Kernels) if kind is _CuDNN and weight.dtype == torch.bfloat16 else None
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DoubleConv):
                setattr(parent, name, kind(child, n_parts=2 if isinstance(parent, Up) else 1))
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, _MaxPool(own))
            elif isinstance(child, nn.ConvTranspose2d) and own and child.out_channels % LANES == 0:
                setattr(parent, name, _UpConvolution(child, own))
            elif isinstance(child, OutConv) and weight.is_cuda:
                setattr(parent, name, _Linear(child.conv))
    return network


def _kind(device: torch.device, dtype: torch.dtype) -> "type[_FusedDoubleConv] | None":
    """None where torch was built without oneDNN or cuDNN, and in bfloat16 without instructions for it."""
    if device.type == "cuda":
        return _CuDNN if _works(_CuDNN, device, dtype) else None
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    fast = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return _OneDNN if fast else None


def _works(kind: "type[_FusedDoubleConv]", device: torch.device, dtype: torch.dtype) -> bool:
    """Older GPUs, or older versions of cuDNN, may not have the operators."""
    convolutions = DoubleConv(16, 8, norm=False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    part = torch.zeros(1, 8, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            kind(convolutions, n_parts=2)(part, part.clone())
    except RuntimeError as error:
        log.warning("slower than with fused convolutions: %s", str(error).partition("\n")[0])
        return False
    return True


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
        x = self._convolved(parts[0], self.parts[0], self.first_bias, relu=len(parts) == 1)
        if len(parts) == 2:
            x = self._add_convolved(x, parts[1], self.parts[1])
            for part in parts:  # nobody needs them any more, but whoever has called still holds them
                part.untyped_storage().resize_(0)
        return self._convolved(x, self.second, self.second_bias, relu=True)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        raise NotImplementedError

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """ReLU of the sum, which may be written over `to`."""
        raise NotImplementedError

    def _packed(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class _OneDNN(_FusedDoubleConv):
    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, weight, bias, self.padding, [1, 1], [1, 1], 1, "relu" if relu else "none", [], ""
        )

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
            to, x, weight, None, self.padding, [1, 1], [1, 1], 1, "add", 1.0, "relu", [], ""
        )

    def _packed(self, weight: Tensor) -> Tensor:
        return torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            weight.contiguous().to_mkldnn(), self.padding, [1, 1], [1, 1], 1, None
        )


class _CuDNN(_FusedDoubleConv):
    def __init__(self, convolutions: DoubleConv, n_parts: int) -> None:
        super().__init__(convolutions, n_parts)
        self.narrow = n_parts == 1 and self.parts[0].shape[1] < NARROW
        if self.narrow:  # nine times the channels, but a matrix product
            weight = self.parts[0].flatten(1)
            self.parts = [F.pad(weight, [0, -weight.shape[1] % 16])[:, :, None, None]]

    def forward(self, *parts: Tensor) -> Tensor:
        if not self.narrow:
            return super().forward(*parts)
        x = _neighbourhoods(parts[0], self.padding, self.parts[0].shape[1])
        x = torch.cudnn_convolution_relu(x, self.parts[0], self.first_bias, [1, 1], [0, 0], [1, 1], 1)
        return self._convolved(x, self.second, self.second_bias, relu=True)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        if not relu:  # without the bias, which is added with the second part
            return F.conv2d(x, weight, padding=self.padding)
        return torch.cudnn_convolution_relu(x, weight, bias, [1, 1], self.padding, [1, 1], 1)

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.cudnn_convolution_add_relu(x, weight, to, 1.0, self.first_bias, [1, 1], self.padding, [1, 1], 1)

    def _packed(self, weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=torch.channels_last)


def _neighbourhoods(x: Tensor, padding: list[int], channels: int) -> Tensor:
    """(B, C, H, W) -> (B, channels, H', W'): what a 3x3 convolution sees of each pixel in 9 C channels, then zeros."""
    padded = F.pad(x, [padding[1]] * 2 + [padding[0]] * 2)
    seen = padded.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5)  # (B, H', W', C, 3, 3), a view
    filled = x.new_zeros(*seen.shape[:3], channels)
    filled[..., : seen[0, 0, 0].numel()].view(seen.shape).copy_(seen)
    return filled.permute(0, 3, 1, 2)


class _Linear(nn.Module):
    """A 1x1 convolution as a matrix product, for few output channels."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight.detach().flatten(1), convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class _UpConvolution(nn.Module):
    def __init__(self, convolution: nn.ConvTranspose2d, own: Kernels) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(x, self.weight, stride=2)
        return x if self.bias is None else self.own.add_bias(x, self.bias)


class _MaxPool(nn.Module):
    """As `nn.MaxPool2d(2)`: the last row or column of an odd size is lost."""

    def __init__(self, own: Kernels | None) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        if self.own and x.shape[1] % LANES == 0:
            return self.own.max_pool(x)
        height, width = x.shape[2] // 2, x.shape[3] // 2
        x = x[:, :, : 2 * height, : 2 * width]
        if x.is_cuda:
            squares = x.permute(0, 2, 3, 1).unfold(1, 2, 2).unfold(2, 2, 2)  # (B, h, w, C, 2, 2)
            return squares.amax((4, 5)).permute(0, 3, 1, 2)
        rows = torch.maximum(x[:, :, 0::2], x[:, :, 1::2])
        return torch.maximum(rows[:, :, :, 0::2], rows[:, :, :, 1::2])
