"""Engines: ways to compute a network faster than the plain module does, behind `prepare`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unet.device import Precision
    from unet.network import UNet


def prepare(network: "UNet", device: "torch.device", precision: "Precision") -> "Callable[[Tensor], Tensor]":
    """Placeholder until the engines land: the plain network."""
    import torch

    from unet.device import DTYPES

    dtype = DTYPES[precision]
    plain = network.folded().to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: plain(x.to(dtype)).float()  # type: ignore[no-any-return]
