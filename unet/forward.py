"""From pixels to what is wanted of them: all that is done on the device, in one function of tensors."""

from typing import Literal

import torch
from torch import Tensor

from unet.network import UNet
from unet.pixels import normalise

Output = Literal["probabilities", "mask", "probability"]


class ForwardPass:
    """`network` is on its device, in the dtype that it computes in; `values` are those of a mask, by class."""

    def __init__(self, network: UNet, dtype: torch.dtype, values: Tensor) -> None:
        self.network = network
        self.dtype = dtype
        self.values = values
        self.binary = network.config.n_classes == 1

    def __call__(self, output: Output, pixels: Tensor, numbers: Tensor) -> Tensor:
        """(B, h, w, C) pixels of `Prepared`, and (B, 2 C + 1, 1, 1) float32: the offset and scale for each channel, and
        a threshold -> what `finish` makes of the (B, n_classes, h', w') probabilities."""
        c = pixels.shape[3]
        offset, scale, threshold = numbers.split_with_sizes([c, c, 1], dim=1)
        logits = self.network(normalise(pixels, offset, scale).to(self.dtype)).float()
        probabilities = logits.sigmoid_() if self.binary else logits.softmax(dim=1)
        return self.finish(probabilities, output, threshold)

    def finish(self, probabilities: Tensor, output: Output, threshold: float | Tensor) -> Tensor:
        """(..., n_classes, h, w) -> what is wanted of it: the same, or (..., 1, h, w) uint8."""
        if output == "mask" and self.binary:
            # not as bool, which takes torch seven times as long on a CPU
            return probabilities.clone().gt_(threshold).mul_(255).to(torch.uint8)
        if output == "mask":
            return self.values.to(probabilities.device)[probabilities.argmax(dim=-3, keepdim=True)]
        if output == "probability":
            likeliest = probabilities if self.binary else probabilities.amax(dim=-3, keepdim=True)
            return (likeliest * 255).round().to(torch.uint8)
        return probabilities
