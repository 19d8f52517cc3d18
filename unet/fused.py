"""A network for inference: the same convolutions in fewer passes over memory, which narrow networks wait for on a CPU
and all wait for on a GPU.

ReLU is applied while a convolution writes; a skip connection and what comes from below are convolved one after the
other into one sum, and never joined; what an up-convolution would make finer is convolved on the coarse grid
(`unet.composed`); pooling keeps no indices. On a CPU with the operators that `torch.compile` has for this
(torch/_inductor/fx_passes/mkldnn_fusion.py), without its seconds of compilation and its C++ compiler, and with weights
in the order that oneDNN wants; on a GPU with those of cuDNN.
"""

import logging
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet import composed, kernels, winograd
from unet.composed import Composed
from unet.kernels import LANES, Kernels
from unet.network import DoubleConv, Down, OutConv, UNet, Up, fit

log = logging.getLogger(__name__)

NARROW = 8
"""cuDNN is slow for fewer channels than that, such as those of an image."""


def fused(network: UNet, dtype: torch.dtype) -> UNet:
    """Converts a folded network (see `UNet.folded`), in float32 and on its device, in place to one that computes in
    `dtype`, and returns it. Where there are no such operators, only the dtype changes."""
    device = next(network.parameters()).device
    kind = _kind(device, dtype)
    if kind is None:
        return network.to(dtype)
    own = kernels.compiled(Kernels) if kind is _CuDNN and dtype == torch.bfloat16 else None
    for name, child in network.named_children():
        if isinstance(child, Up) and _is_composed(child, kind, own):
            setattr(network, name, _ComposedUpOnGPU(child, dtype, own) if own else _ComposedUp(child, dtype))
    network.to(dtype)
    for name, child in network.named_children():
        if isinstance(child, Up):
            setattr(network, name, _Up(child, kind))
        elif isinstance(child, Down):
            _, convolutions = child.maxpool_conv
            assert isinstance(convolutions, DoubleConv)
            setattr(network, name, _Down(kind(convolutions), own))
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DoubleConv):
                setattr(parent, name, kind(child))
            elif isinstance(child, nn.ConvTranspose2d) and own and child.out_channels % LANES == 0:
                setattr(parent, name, _UpConvolution(child, own))
            elif isinstance(child, OutConv) and kind is _CuDNN:
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
            both = kind(convolutions, n_parts=2)
            both.add(both.start(part.clone()), part)  # each gives its argument back
    except RuntimeError as error:
        log.warning("slower than with fused convolutions: %s", str(error).partition("\n")[0])
        return False
    return True


class _FusedDoubleConv(nn.Module):
    """(3x3 convolution, ReLU) twice. Of two tensors that follow one another in the channels, the first one's share of
    the sum is that of `start`, the last one's is added in `add`."""

    def __init__(self, convolutions: DoubleConv, n_parts: int = 1) -> None:
        super().__init__()
        first, second = (layer for layer in convolutions.double_conv if isinstance(layer, nn.Conv2d))
        assert isinstance(first.padding, tuple)
        self.padding = list(first.padding)
        self.parts = [self._packed(weight) for weight in first.weight.detach().chunk(n_parts, dim=1)]
        self.second = self._packed(second.weight.detach())
        self.first_bias, self.second_bias = first.bias, second.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.first(x))

    def first(self, x: Tensor) -> Tensor:
        """The first convolution, of all channels at once."""
        return self._convolved(x, self.parts[0], self.first_bias, relu=True)

    def start(self, x: Tensor) -> Tensor:
        """Gives back the memory of its argument, as `add` does of both: whoever has called still holds them."""
        started = self._convolved(x, self.parts[0], None, relu=False)
        give_back(x)
        return started

    def add(self, started: Tensor, x: Tensor) -> Tensor:
        started = self._add_convolved(started, x, self.parts[-1])
        give_back(x)
        return self.end(started)

    def end(self, x: Tensor) -> Tensor:
        """The second convolution."""
        return self._convolved(x, self.second, self.second_bias, relu=True)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        raise NotImplementedError

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """ReLU of the sum. It is written over `to`, or the memory of that is given back."""
        raise NotImplementedError

    def _packed(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class _OneDNN(_FusedDoubleConv):
    """Where it pays, convolutions are not oneDNN's, but `winograd`'s."""

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        if _is_winograd(weight):
            x = winograd.convolved(x, weight, bias, self.padding)
            return x.relu_() if relu else x
        return convolved(x, weight, bias, self.padding, "relu" if relu else "none")

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if _is_winograd(weight):
            return to.add_(winograd.convolved(x, weight, self.first_bias, self.padding)).relu_()
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
            to, x, weight, self.first_bias, self.padding, [1, 1], [1, 1], 1, "add", 1.0, "relu", [], ""
        )

    def _packed(self, weight: Tensor) -> Tensor:
        if winograd.pays(weight):
            return winograd.transformed(weight)
        return packed(weight, self.padding)


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], then: str = "none", *numbers: float
) -> Tensor:
    """Of `packed` weights. `then`: relu, or hardtanh, between two numbers."""
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, weight, bias, padding, [1, 1], [1, 1], 1, then, numbers, ""
    )


def packed(weight: Tensor, padding: list[int]) -> Tensor:
    """In the order that oneDNN wants."""
    return torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        weight.contiguous().to_mkldnn(), padding, [1, 1], [1, 1], 1, None
    )


def _is_winograd(weight: Tensor) -> bool:
    return weight.ndim == 3


class _CuDNN(_FusedDoubleConv):
    def __init__(self, convolutions: DoubleConv, n_parts: int = 1) -> None:
        super().__init__(convolutions, n_parts)
        self.narrow = n_parts == 1 and self.parts[0].shape[1] < NARROW
        if self.narrow:
            self.parts = [of_neighbourhoods(self.parts[0])]

    def first(self, x: Tensor) -> Tensor:
        if not self.narrow:
            return super().first(x)
        x = neighbourhoods(x, self.padding)
        return torch.cudnn_convolution_relu(x, self.parts[0], self.first_bias, [1, 1], [0, 0], [1, 1], 1)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        if not relu:
            return F.conv2d(x, weight, bias, padding=self.padding)
        return torch.cudnn_convolution_relu(x, weight, bias, [1, 1], self.padding, [1, 1], 1)

    def _add_convolved(self, to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        x = torch.cudnn_convolution_add_relu(x, weight, to, 1.0, self.first_bias, [1, 1], self.padding, [1, 1], 1)
        give_back(to)
        return x

    def _packed(self, weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=torch.channels_last)


class _Down(nn.Module):
    def __init__(self, conv: _FusedDoubleConv, own: Kernels | None) -> None:
        super().__init__()
        self.pool = MaxPool(own)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.end(self.conv.first(self.pool(x)))  # nothing holds what was pooled any longer than it must


class _Up(nn.Module):
    def __init__(self, up: Up, kind: type[_FusedDoubleConv]) -> None:
        super().__init__()
        self.up = up.up
        self.conv = kind(up.conv, n_parts=2)
        self.padded = up.padded

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if not self.padded:
            finer = self.up(x)
            return self.conv.add(self.conv.start(fit(skip, finer)), finer)
        started = self.conv.start(skip)
        finer = fit(self.up(x), skip)
        give_back(x)
        return self.conv.add(started, finer)


def _is_composed(up: Up, kind: type[_FusedDoubleConv], own: Kernels | None) -> bool:
    """Whether what comes from below is convolved on the coarse grid."""
    first = up.conv.double_conv[0]
    assert isinstance(first, nn.Conv2d)
    fits = kind is _OneDNN or (own is not None and first.out_channels % LANES == 0)
    return fits and up.padded and isinstance(up.up, nn.ConvTranspose2d)


def _taken_apart(up: Up) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and bias of the up-convolution, and of the share of what it makes in the convolution after it, which
    keeps the skip connection's share."""
    first = up.conv.double_conv[0]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(up.up, nn.ConvTranspose2d)
    assert up.up.bias is not None
    assert first.bias is not None
    skips, below = first.weight.detach().chunk(2, dim=1)
    first.weight = nn.Parameter(skips, requires_grad=False)
    return up.up.weight.detach(), up.up.bias.detach(), below, first.bias.detach()


class _ComposedUp(nn.Module):
    """Of an up-convolution and padded convolutions, on a CPU."""

    def __init__(self, up: Up, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias, below, first_bias = _taken_apart(up)
        self.below = Composed(
            weight,
            bias,
            below,
            lambda kernel: partial(convolved, weight=packed(kernel.to(dtype), [1, 1]), bias=None, padding=[1, 1]),
        )
        first_bias += self.below.bias  # in place: it is that of the convolution
        self.conv = _OneDNN(up.conv.to(dtype))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        n_out = len(self.below.bias)
        finer = x.new_empty(len(x), *skip.shape[2:], n_out)
        self.below.put(finer, x, add=False)
        give_back(x)
        return self.conv.add(finer.permute(0, 3, 1, 2), skip)


class _ComposedUpOnGPU(nn.Module):
    """One convolution makes all four parities, and one pass over memory adds them, the bias of the first convolution
    and all that the up-convolution's bias comes to."""

    def __init__(self, up: Up, dtype: torch.dtype, own: Kernels) -> None:
        super().__init__()
        weight, bias, below, first_bias = _taken_apart(up)
        kernels = composed.kernels(weight, below).flatten(0, 2)
        self.kernels = kernels.to(dtype, memory_format=torch.channels_last)
        self.places = {
            lost: (composed.bias_by_place(bias, below, lost) + first_bias).contiguous()
            for lost in product((0, 1), (0, 1))
        }
        self.own = own
        self.conv = _CuDNN(up.conv.to(dtype))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        started = self.conv.start(skip)
        found = F.conv2d(x, self.kernels, padding=1)
        give_back(x)
        self.own.add_coarse_relu(started, found, self.places[started.shape[2] % 2, started.shape[3] % 2])
        return self.conv.end(started)


def give_back(x: Tensor) -> None:
    """Frees a tensor's storage, although callers still hold the tensor."""
    x.untyped_storage().resize_(0)


def neighbourhoods(x: Tensor, padding: list[int]) -> Tensor:
    """(B, C, H, W) -> (B, 9 C and up to 16, 32, ..., H', W'): what a 3x3 convolution sees of each pixel, then zeros. A
    matrix product of it, by `of_neighbourhoods`, has nine times the channels, and still takes less time for a few."""
    padded = F.pad(x, [padding[1]] * 2 + [padding[0]] * 2)
    seen = padded.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5)  # (B, H', W', C, 3, 3), a view
    n = seen[0, 0, 0].numel()
    filled = x.new_zeros(*seen.shape[:3], n + -n % 16)
    filled[..., :n].view(seen.shape).copy_(seen)
    return filled.permute(0, 3, 1, 2)


def of_neighbourhoods(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (K, 9 C and up to 16, 32, ..., 1, 1), for a 1x1 convolution."""
    flat = weight.flatten(1)
    return F.pad(flat, [0, -flat.shape[1] % 16])[:, :, None, None]


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


class MaxPool(nn.Module):
    """Of what comes from ReLU, as `nn.MaxPool2d(2)`: the last row or column of an odd size is lost."""

    def __init__(self, own: Kernels | None = None) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        if self.own and x.shape[1] % LANES == 0:
            return self.own.max_pool(x)
        if x.is_cuda:
            squares = x.permute(0, 2, 3, 1).unfold(1, 2, 2).unfold(2, 2, 2)  # (B, h, w, C, 2, 2)
            return squares.amax((4, 5)).permute(0, 3, 1, 2)
        if x.dtype == torch.bfloat16:  # not below zero, its bits have the same order, and that is twice as fast
            return _largest(x.view(torch.int16)).view(torch.bfloat16)
        return _largest(x)


def _largest(x: Tensor) -> Tensor:
    """Of each 2 x 2 pixels."""
    rows = torch.maximum(x[:, :, :-1:2], x[:, :, 1::2])
    return torch.maximum(rows[:, :, :, :-1:2], rows[:, :, :, 1::2])
