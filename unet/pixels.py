"""Pixels: the one place where grey values become network input, for training as for serving. Arrays only, no files.

An image is (H, W) or (H, W, C): C = 1 grey, 3 RGB; 2 and 4 are the same with an alpha channel, which is ignored. Values
are scaled by dtype, never by content: uint8 / 255, uint16 / 65535, bool 0 and 1, floats as they are (expected in 0..1).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet.errors import UserError
from unet.network import STRIDE

_TYPE_MAX = {np.dtype(np.bool_): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}

InputRange = Literal["0-1", "0-255"]

FloatArray = npt.NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of R, G and B in a grey value (ITU-R BT.601, as OpenCV's)."""
STRIP = 64
"""Rows that are converted to grey at once."""


class PixelError(UserError):
    """An array that is no image, or an image or option that does not fit the network."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Normalisation and padding of images. Part of the checkpoint, so that serving repeats training.

    Raises ValueError naming the field that makes no sense.
    """

    input_range: InputRange = "0-1"  # range that the dtype's range is scaled to, unless images are standardised
    standardise: bool = False  # zero mean and unit variance for each channel of each image
    size_multiple: int = STRIDE  # sides are mirrored to the right and below up to a multiple of this, at least 16

    def __post_init__(self) -> None:
        if self.input_range not in get_args(InputRange):
            raise ValueError(f"input_range: expected 0-1 or 0-255, found {self.input_range!r}")
        if not isinstance(self.size_multiple, int) or not 1 <= self.size_multiple <= 256:
            raise ValueError(f"size_multiple: expected a whole number of 1 to 256, found {self.size_multiple!r}")

    def __call__(self, image: npt.NDArray[Any], n_channels: int) -> "Prepared":
        """Image -> (H, W, n_channels) pixels with the offset and scale that normalise them. Raises PixelError."""
        pixels, unit = to_pixels(image)
        pixels = match_channels(pixels, n_channels)
        if self.standardise:
            mean, std = (each.ravel() for each in cv2.meanStdDev(pixels))  # in double precision
            offset, scale = mean, 1 / np.maximum(std, 1e-6 * unit)
        else:
            top = 255 if self.input_range == "0-255" else 1
            offset, scale = np.zeros(n_channels), np.full(n_channels, top / unit)
        return Prepared(pixels, offset.astype(np.float32), scale.astype(np.float32))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size that an image of (height, width) is mirrored up to."""
        height, width = (-(-side // self.size_multiple) * self.size_multiple for side in (height, width))
        return max(STRIDE, height), max(STRIDE, width)


@dataclass(frozen=True)
class Prepared:
    """An image with the network's number of channels and its normalisation, which the device applies: bytes reach a GPU
    four times as fast as floats."""

    pixels: npt.NDArray[Any]  # (H, W, C), uint8 or float32
    offset: FloatArray  # (C,), subtracted first
    scale: FloatArray  # (C,), per-channel factor, applied after subtracting `offset`

    def tensor(self) -> Tensor:
        """The normalised image, (C, H, W) float32."""
        pixels, offset, scale = map(torch.from_numpy, (self.pixels, self.offset, self.scale))
        return normalise(pixels[None], offset[:, None, None], scale[:, None, None])[0]


def normalise(pixels: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """Network input (B, C, H, W) float32, channels last; from pixels (B, H, W, C), offset and scale ([B,] C, 1, 1)."""
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, copy=True)
    return x.sub_(offset).mul_(scale)  # in place: half the time


def to_pixels(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Image of any accepted dtype -> (H, W, C) uint8 or float32, and the value that stands for 1. Raises PixelError."""
    if not isinstance(image, np.ndarray):  # cv2.imread returns None for a file that it cannot read
        raise PixelError(f"expected an image as a NumPy array, found {type(image).__name__}")
    if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] <= 4)):
        raise PixelError(f"expected an image of shape (H, W) or (H, W, 1..4), found {image.shape}")
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype in _TYPE_MAX:
        return image if image.dtype == np.uint8 else image.astype(np.float32), _TYPE_MAX[image.dtype]
    if not np.issubdtype(image.dtype, np.floating):
        raise PixelError(f"expected pixels of uint8, uint16, bool or float, found {image.dtype}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is refused
        x = image.astype(np.float32)
    if not np.isfinite(x).all():
        raise PixelError("expected finite pixel values, found NaN or infinity")
    return x, 1


def match_channels(x: npt.NDArray[Any], n_channels: int) -> npt.NDArray[Any]:
    """Image (H, W, n_channels) from (H, W, C): without alpha, RGB to grey by luminance, grey to RGB by repetition."""
    if x.shape[2] in (2, 4) and x.shape[2] != n_channels:
        x = x[:, :, :-1]
    if x.shape[2] == n_channels:
        return np.ascontiguousarray(x)
    if x.shape[2] == 3 and n_channels == 1:
        return luminance(x)[:, :, np.newaxis]
    if x.shape[2] == 1 and n_channels == 3:
        return np.repeat(x, 3, axis=2)
    raise PixelError(f"expected an image of {n_channels} channels, as the model was trained on; found {x.shape[2]}")


def luminance(rgb: npt.NDArray[Any]) -> FloatArray:
    """Grey image (H, W) of (H, W, 3), in strips: the whole image as float would take 12 bytes a pixel."""
    grey = np.empty(rgb.shape[:2], np.float32)
    for top in range(0, len(rgb), STRIP):
        np.matmul(rgb[top : top + STRIP], LUMA, out=grey[top : top + STRIP])
    return grey


def mirror(x: npt.NDArray[Any], height: int, width: int, margin: int = 0) -> npt.NDArray[Any]:
    """Image (height + 2 margin, width + 2 margin, C) from (H, W, C) by reflection: first right and below, then by
    the margin on every side (the paper's overlap-tile border). Images smaller than the padding are reflected again."""
    h, w, _ = x.shape
    pad = ((margin, height - h + margin), (margin, width - w + margin), (0, 0))
    return np.pad(x, pad, mode="reflect") if np.any(pad) else x
