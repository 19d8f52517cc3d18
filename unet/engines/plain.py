"""The plain engine: a network with batch norm folded into its convolutions, channels last, in bfloat16 or float32.

What it buys: TODO. Where it applies: everywhere (`cuda:1`, `mps`, `xpu`, ...), by public functions of torch alone.
How it is tested: against the trained network in float32, for each variant.
"""

import torch
from torch import Tensor, nn


class Engine:
    """(B, C, H, W) float32 -> logits (B, K, H', W') float32, by a network that computes in `dtype`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """`network`: on its device; it is converted."""
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.network(x).float()  # type: ignore[no-any-return]
