"""Convolutions that add another tensor and apply ReLU in the pass that writes the result.

What they buy: see fused_unet.py. Where they apply: CPUs, by oneDNN, and NVIDIA GPUs, by cuDNN, if they agree with plain
torch on a small example there. How they are tested: with operators that are missing, changed or wrong.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet.network import DoubleConv, Down

log = logging.getLogger(__name__)


class OneDNNConvolution:
    """oneDNN, on a CPU, with prepacked weights: the operators that torch's own compiler emits
    (torch/_inductor/fx_passes/mkldnn_fusion.py)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, dtype: torch.dtype) -> None:
        """`weight`: (K, C, height, width); `padding`: zeros on each side; `dtype`: to compute in."""
        self.bias = None if bias is None else bias.to(dtype)
        self.options = [padding, padding], [1, 1], [1, 1], 1  # padding, stride, dilation, groups
        self.weight: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            weight.to(dtype).contiguous().to_mkldnn(), *self.options, None
        )

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, self.weight, self.bias, *self.options, then, [], "")  # type: ignore[no-any-return]

    def relu(self, x: Tensor) -> Tensor:
        return self(x, "relu")

    def add_relu(self, total: Tensor, x: Tensor) -> Tensor:
        """ReLU of `total` + convolution, written over `total`."""
        convolve = torch.ops.mkldnn._convolution_pointwise_.binary
        return convolve(total, x, self.weight, self.bias, *self.options, "add", 1.0, "relu", [], "")  # type: ignore[no-any-return]


class CuDNNConvolution:
    """cuDNN, on an NVIDIA GPU: public functions of torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(dtype)
        self.options = [1, 1], [padding, padding], [1, 1], 1  # stride, padding, dilation, groups

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, *self.options)

    def relu(self, x: Tensor) -> Tensor:
        if x.shape[1] < 8:  # for few channels, such as those of an image, the fused operators are slow
            return self(x).relu_()
        return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self.options)

    def add_relu(self, total: Tensor, x: Tensor) -> Tensor:
        """ReLU of `total` + convolution."""
        return torch.cudnn_convolution_add_relu(x, self.weight, total, 1.0, self.bias, *self.options)


Convolution = OneDNNConvolution | CuDNNConvolution
Convolve = Callable[[Tensor, Tensor | None, int], Convolution]
"""A convolution from float32 weights (K, C, height, width), a bias (K,) or None, and a padding."""


def convolutions(block: DoubleConv | Down) -> tuple[nn.Conv2d, nn.Conv2d, int]:
    """The two convolutions of a folded block, and their padding."""
    first, second = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    return first, second, int(first.padding[0])


KINDS: dict[str, type[Convolution]] = {"cpu": OneDNNConvolution, "cuda": CuDNNConvolution}

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2}
"""Share of the largest value; that of float32 leaves room for TF32 on a GPU."""


def available(device: torch.device, dtype: torch.dtype) -> Convolve | None:
    """The operators for a device; None where it has none, or where they fail or disagree with plain torch."""
    if device.type not in KINDS:
        return None
    convolve = partial(KINDS[device.type], dtype=dtype)
    try:
        error = largest_error(convolve, device, dtype)
        if error < TOLERANCE[dtype]:
            return convolve
        problem = f"their results are wrong by {error:.0%}"
    except (AttributeError, RuntimeError, TypeError) as raised:  # missing, refused, or of another signature
        problem = str(raised).partition("\n")[0]
    log.warning("computing without fused convolutions, which is slower: %s", problem)
    return None


@torch.inference_mode()
def largest_error(convolve: Convolve, device: torch.device, dtype: torch.dtype) -> float:
    """Difference from plain torch on a small example, as a share of the largest value."""
    random = torch.Generator().manual_seed(0)
    shapes = (1, 16, 9, 9), (1, 8, 9, 9), (8, 16, 3, 3), (8,)
    x, total, weight, bias = (torch.randn(shape, generator=random).to(device) for shape in shapes)
    plain = F.conv2d(x, weight, bias, padding=1)
    expected = torch.stack([plain, plain.relu(), (plain + total).relu()])
    convolution = convolve(weight, bias, 1)
    x, total = (each.to(dtype, memory_format=torch.channels_last) for each in (x, total))
    found = torch.stack([convolution(x), convolution.relu(x), convolution.add_relu(total, x)])
    return float((found.float() - expected).abs().max() / expected.abs().max())
