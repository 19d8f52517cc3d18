"""Engines: everything that exists only for speed, behind `prepare`.

    plain.py         the network in its folded form, in plain torch: what everything falls back to
    fused_unet.py    the same network in fewer passes over memory
    operators.py     convolutions of oneDNN (CPU) and cuDNN (GPU) that apply ReLU while they write
    composed_up.py   an up-convolution and the convolution after it as one, on a CPU
    graphs.py        CUDA graph capture and replay
    process.py       OpenMP and malloc settings; imported before torch

This package imports no torch, so that `process` can come first.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unet.device import Precision
    from unet.network import UNet


def prepare(network: "UNet", device: "torch.device", precision: "Precision") -> "Callable[[Tensor], Tensor]":
    """The fastest engine for a trained network on a device: (B, C, H, W) float32 -> logits (B, K, H', W') float32.

    `network` is copied: its weights may not change afterwards, or are not followed. The engine is thread-safe.
    """
    from unet.device import DTYPES
    from unet.engines import graphs, operators
    from unet.engines.fused_unet import FusedUNet
    from unet.engines.plain import Engine

    dtype = DTYPES[precision]
    folded = network.folded().to(device)
    convolve = operators.available(device, dtype)
    return graphs.recorded(Engine(FusedUNet(folded, convolve, dtype) if convolve else folded, dtype), device)
