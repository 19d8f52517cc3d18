"""Image in, probabilities or mask out: the one way to use a network, in validation as in the service."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint
from unet.device import DeviceChoice, Precision, PrecisionChoice, resolve_device, resolve_precision
from unet.network import STRIDE, UNet
from unet.pixels import FloatArray, InputRange, PixelError, Preprocessing, mirror


class Predictor:
    """A network with what belongs to it: preprocessing, classes, threshold, device and precision.

    >>> predictor = Predictor.load("best_model.pth")
    >>> mask = predictor.mask(image)  # (H, W) or (H, W, C), uint8, uint16 or float -> (H, W) uint8
    """

    def __init__(
        self,
        network: UNet,
        preprocessing: Preprocessing,
        *,
        class_values: tuple[int, ...] = (0, 255),
        threshold: float = 0.5,
        device: torch.device | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.device = device or next(network.parameters()).device
        self.network: UNet = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.preprocessing = preprocessing
        self.class_values = class_values
        self._mask_values = np.asarray((0, 255) if self.binary else class_values, dtype=np.uint8)
        self.threshold = threshold
        self.precision: Precision = precision

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: DeviceChoice = "auto", precision: PrecisionChoice = "auto"
    ) -> Self:
        """Raises DeviceError when there is no such device."""
        where = resolve_device(device)
        return cls(
            checkpoint.build(),
            checkpoint.preprocessing,
            class_values=checkpoint.class_values,
            threshold=checkpoint.threshold,
            device=where,
            precision=resolve_precision(precision, where),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: DeviceChoice = "auto",
        precision: PrecisionChoice = "auto",
        input_range: InputRange = "0-1",
    ) -> Self:
        """From a file of `unet-train`, or from a bare state_dict, for which `input_range` tells its pixel scale.

        Raises CheckpointError or DeviceError.
        """
        return cls.from_checkpoint(checkpoints.load(Path(path), input_range), device, precision)

    @property
    def n_channels(self) -> int:
        return self.network.config.n_channels

    @property
    def n_classes(self) -> int:
        """1 for a binary network, K for K exclusive classes."""
        return self.network.config.n_classes

    @property
    def binary(self) -> bool:
        return self.n_classes == 1

    def __call__(self, image: npt.NDArray[Any], *, tta: bool = False) -> FloatArray:
        """(H, W) or (H, W, C) image -> probabilities, float32 in 0..1: (H, W) of the foreground for a binary network,
        (K, H, W) that sum to one for K classes. Any size of at least 1 x 1. Raises PixelError.

        `tta`, test-time augmentation: the mean over the image's eight rotations and flips, in eight times the time.
        """
        x = self.preprocessing(image, self.n_channels)
        if not tta:
            probabilities = self._predict(x)
        else:
            views = [(turns, flip) for turns in range(4) for flip in (1, -1)]
            seen = [self._predict(np.rot90(x, turns, (1, 2))[:, :, ::flip]) for turns, flip in views]
            back = [np.rot90(p[:, :, ::flip], -turns, (1, 2)) for p, (turns, flip) in zip(seen, views, strict=True)]
            probabilities = np.mean(back, axis=0, dtype=np.float32)
        return probabilities[0] if self.binary else probabilities

    def mask(
        self, image: npt.NDArray[Any], threshold: float | None = None, *, tta: bool = False
    ) -> npt.NDArray[np.uint8]:
        """(H, W) uint8: 0 and 255 for a binary network, the class values (those of the labels) for K classes.

        `threshold` (default: the checkpoint's) is for binary networks only. Raises PixelError.
        """
        return self.to_mask(self(image, tta=tta), threshold)

    def to_mask(self, probabilities: FloatArray, threshold: float | None = None) -> npt.NDArray[np.uint8]:
        """What `mask` makes of probabilities. Raises PixelError for a threshold where there is none."""
        mask: npt.NDArray[np.uint8] = self._mask_values[self.to_classes(probabilities, threshold)]
        return mask

    def to_classes(self, probabilities: FloatArray, threshold: float | None = None) -> npt.NDArray[np.intp]:
        """(H, W) indices into `class_values`; for a binary network 0 background, 1 foreground."""
        if self.binary:
            return (probabilities > (self.threshold if threshold is None else threshold)).astype(np.intp)
        if threshold is not None:
            raise PixelError(f"a threshold is for binary models; this one has {self.n_classes} classes")
        classes: npt.NDArray[np.intp] = probabilities.argmax(axis=0)
        return classes

    def _predict(self, x: FloatArray) -> FloatArray:
        """(C, H, W) -> probabilities (n_classes, H, W)."""
        _, height, width = x.shape
        x = mirror(x, *self._input_size(height, width), self.network.margin)
        return self._forward(torch.from_numpy(np.ascontiguousarray(x)))[:, :height, :width].cpu().numpy()

    @torch.inference_mode()
    def _forward(self, x: Tensor) -> Tensor:
        """(C, H, W) -> probabilities (n_classes, H', W') in float32, on the device."""
        x = x.unsqueeze(0).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits: Tensor = self.network(x)[0].float()
        return logits.sigmoid() if self.binary else logits.softmax(dim=0)

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to mirror an image to (before the margin), such that the network covers it."""
        if self.network.margin:  # unpadded: only sides of 16 k + 4 can come out
            return height + (4 - height) % STRIDE, width + (4 - width) % STRIDE
        return self.preprocessing.padded_size(height, width)
