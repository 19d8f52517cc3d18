"""A network as it is trained on a GPU in bfloat16, by `trainer.kernels`: batch norm, ReLU and pooling together, and an
up-convolution and the convolution after it as one, of the coarse grid (`unet.composed`).
"""

import copy
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.cuda import EPSILON, MOMENTUM
from trainer.kernels import TrainingKernels
from unet import composed, kernels
from unet.fused import NARROW, neighbourhoods, of_neighbourhoods
from unet.kernels import LANES, THREADS
from unet.network import DoubleConv, UNet, Up


def fused(network: nn.Module) -> nn.Module:
    """The same parameters and buffers in other modules, for training in bfloat16 on images whose sides are multiples of
    16; the network itself where kernels cannot be compiled."""
    own = kernels.compiled(TrainingKernels)
    if own is None:
        return network
    assert isinstance(network, UNet)
    shared = chain(network.parameters(), network.buffers())
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    for module in list(twin.modules()):
        if isinstance(module, DoubleConv):
            module.double_conv = _joined(module.double_conv, own)
    for name, child in list(twin.named_children()):
        if isinstance(child, Up) and isinstance(child.up, nn.ConvTranspose2d) and _norm_relu(child.conv, 1):
            setattr(twin, name, ComposedUp(child))
    finer = twin.inc
    for down in (twin.down1, twin.down2, twin.down3, twin.down4):
        _, coarser = down.maxpool_conv
        assert isinstance(coarser, DoubleConv)
        if last := _norm_relu(finer, -1):
            pooling = NormReLUPool(last.norm, own)
            finer.double_conv[-1] = pooling
            down.maxpool_conv[0] = Pooled(pooling)
        finer = coarser
    return twin


def _joined(layers: nn.Sequential, own: TrainingKernels) -> nn.Sequential:
    """Convolution, batch norm, ReLU, ... -> convolution, both others in one, ..."""
    kept: list[nn.Module] = []
    for layer in layers:
        before = kept[-1] if kept else None
        if isinstance(layer, nn.ReLU) and isinstance(before, nn.BatchNorm2d) and NormReLU.can(before):
            kept[-1] = NormReLU(before, own)
        elif isinstance(layer, nn.Conv2d) and layer.in_channels < NARROW:
            kept.append(NarrowConv(layer))
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


def _norm_relu(convolutions: DoubleConv, at: int) -> "NormReLU | None":
    layer = convolutions.double_conv[at]
    return layer if isinstance(layer, NormReLU) else None


class NarrowConv(nn.Module):
    """Of an image's few channels, for which cuDNN takes as long as for many."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert isinstance(convolution.padding, tuple)
        self.convolution = convolution
        self.padding = list(convolution.padding)

    def forward(self, x: Tensor) -> Tensor:
        weight = of_neighbourhoods(self.convolution.weight)
        return F.conv2d(neighbourhoods(x, self.padding), weight, self.convolution.bias)


class NormReLU(nn.Module):
    def __init__(self, norm: nn.BatchNorm2d, own: TrainingKernels) -> None:
        super().__init__()
        self.norm = norm
        self.own = own

    @staticmethod
    def can(norm: nn.BatchNorm2d) -> bool:
        fits = norm.num_features % LANES == 0 and norm.num_features <= THREADS * LANES
        return fits and norm.eps == EPSILON and norm.momentum == MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        return _NormReLU.apply(x, *self._norm())  # type: ignore[no-any-return, no-untyped-call]

    def after_sum(self, x: Tensor, coarse: Tensor, places: Tensor) -> Tensor:
        """Of the sum that `TrainingKernels.add_moments` makes of them, over x."""
        return _AddNormReLU.apply(x, coarse, places, *self._norm())  # type: ignore[no-any-return, no-untyped-call]

    def _norm(self) -> tuple[object, ...]:
        norm = self.norm
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return norm.weight, norm.bias, norm.running_mean, norm.running_var, self.own


class NormReLUPool(NormReLU):
    """Pools, too, for the `Pooled` that comes next."""

    pooled: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y, self.pooled = _NormReLUPool.apply(x, *self._norm())  # type: ignore[no-untyped-call]
        return y  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """In the place of pooling."""

    def __init__(self, source: NormReLUPool) -> None:
        super().__init__()
        self.sources = (source,)  # no child of this module

    def forward(self, _: Tensor) -> Tensor:
        (source,) = self.sources
        pooled = source.pooled
        del source.pooled
        return pooled


class ComposedUp(nn.Module):
    def __init__(self, up: Up) -> None:
        super().__init__()
        first, norm, *rest = up.conv.double_conv
        assert isinstance(up.up, nn.ConvTranspose2d)
        assert isinstance(first, nn.Conv2d)
        assert isinstance(norm, NormReLU)
        self.up, self.first, self.norm, self.rest = up.up, first, norm, nn.Sequential(*rest)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        skips, below = self.first.weight.chunk(2, dim=1)
        finer = F.conv2d(skip, skips, self.first.bias, padding=1)
        coarse = F.conv2d(x, composed.kernels(self.up.weight, below).flatten(0, 2), padding=1)
        assert self.up.bias is not None
        places = composed.bias_by_place(self.up.bias, below)
        return self.rest(self.norm.after_sum(finer, coarse, places))  # type: ignore[no-any-return]


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, own: Any) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        norm = own.norm(x, own.moments(x), weight, bias, mean, var)
        ctx.save_for_backward(x, norm)
        ctx.own = own
        return own.norm_relu(x, norm)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.own.gradient(dy, *ctx.saved_tensors), None, None, None


class _NormReLUPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, own: Any) -> Any:
        x = x.contiguous(memory_format=torch.channels_last)
        norm = own.norm(x, own.moments(x), weight, bias, mean, var)
        ctx.save_for_backward(x, norm)
        ctx.own = own
        return own.norm_relu_pool(x, norm)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, pooled: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.own.gradient_pool(dy, pooled, *ctx.saved_tensors), None, None, None


class _AddNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coarse: Tensor, places: Tensor, *norm_and_own: Any) -> Tensor:
        x, coarse = (each.contiguous(memory_format=torch.channels_last) for each in (x, coarse))
        *norm, own = norm_and_own
        norm = own.norm(x, own.add_moments(x, coarse, places.float().contiguous()), *norm)
        ctx.save_for_backward(x, norm)
        ctx.own = own
        return own.norm_relu(x, norm)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.own.gradient_add(dy, *ctx.saved_tensors), None, None, None
