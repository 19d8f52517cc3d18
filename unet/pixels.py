"""Pixels: the one place where grey values become network input, for training as for serving. Arrays only, no files.

An image is (H, W) or (H, W, C) with any number of channels. Values are scaled by dtype, never by content: integers by
their dtype's largest value (uint8 / 255, int16 / 32767), bool 0 and 1, floats as they are (expected in 0..1).

Pixels without data, NaN or a frame of the dtype's smallest or largest value around the image (see `without_data`),
count in no mean and no deviation, and are background in every answer.
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

InputRange = Literal["0-1", "0-255"]

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of R, G and B in a grey value (ITU-R BT.601, as OpenCV's)."""
STRIP = 64
"""Rows that are converted to grey at once."""
MIN_FRAME = 4
"""Pixels that a frame without data is wide on one side at least: a single dark row is part of an image."""
MAX_INSIDE = 0.05
"""Share of the pixels inside a frame that may have its value: more, and it is the background of the image."""


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
    scale: float = 1.0  # images are resized by this factor first, 1/32 to 32, and the probabilities back
    upright: bool = False  # images have an up: they are flipped from left to right, but never turned
    channel: int | None = None  # the only channel that is taken of images with several, from 1

    def __post_init__(self) -> None:
        if self.input_range not in get_args(InputRange):
            raise ValueError(f"input_range: expected 0-1 or 0-255, found {self.input_range!r}")
        if not isinstance(self.size_multiple, int) or not 1 <= self.size_multiple <= 256:
            raise ValueError(f"size_multiple: expected a whole number of 1 to 256, found {self.size_multiple!r}")
        if not isinstance(self.scale, int | float) or not 1 / 32 <= self.scale <= 32:
            raise ValueError(f"scale: expected a factor of 1/32 to 32, found {self.scale!r}")
        if not isinstance(self.upright, bool):
            raise ValueError(f"upright: expected true or false, found {self.upright!r}")
        if self.channel is not None and not (isinstance(self.channel, int) and self.channel >= 1):
            raise ValueError(f"channel: expected a number from 1 on, found {self.channel!r}")

    def __call__(self, image: npt.NDArray[Any], n_channels: int) -> "Prepared":
        """Image -> resized pixels (H, W, n_channels) with the offset and scale that normalise them, as resizing changes
        contrast. Raises PixelError."""
        image = self.selected(image)
        pixels, unit = to_pixels(image)
        missing = without_data(image)
        pixels = match_channels(pixels, n_channels)
        hidden = missing
        if self.scale != 1:
            pixels = resize(pixels, *self.scaled_size(*image.shape[:2]))
            if missing is not None:
                hidden = cv2.resize(missing.view(np.uint8), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        if self.standardise:
            mean, std = statistics(pixels, hidden)
            offset, scale = mean, 1 / np.maximum(std, 1e-6 * unit)
        else:
            top = 255 if self.input_range == "0-255" else 1
            offset, scale = np.zeros(n_channels), np.full(n_channels, top / unit)
        if hidden is not None:
            pixels = pixels.copy()
            pixels[hidden] = offset  # 0 for the network
        own_size = None if self.scale == 1 else (image.shape[0], image.shape[1])
        return Prepared(pixels, offset.astype(np.float32), scale.astype(np.float32), missing, own_size)

    def selected(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The channel (H, W) of an image with several, if the model takes one; else the image. Raises PixelError."""
        if self.channel is None or not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] == 1:
            return image
        if image.shape[2] < self.channel:
            trained = f"the model was trained on channel {self.channel} of its images"
            raise PixelError(f"{trained}, this image has {image.shape[2]} channels")
        return np.ascontiguousarray(image[:, :, self.channel - 1])

    def misfit(self, image: npt.NDArray[Any]) -> str | None:
        """Why the network sees an image far too dark or bright, such as 12 bits in uint16 or floats of 0..255; None if
        it does not. An ASCII sentence. Images of 8 bits may be dark, those that are standardised have any values."""
        image = self.selected(image)
        if self.standardise or image.dtype.kind not in "iuf" or image.dtype == np.uint8:
            return None
        missing = without_data(image)
        values = image if missing is None else image[~missing]
        largest = max(abs(float(values.max())), abs(float(values.min()))) if values.size else 0
        if not largest or 0.25 <= largest / unit_of(image.dtype) <= 4:
            return None
        return (
            f"expected {image.dtype.name} values up to {unit_of(image.dtype)}, as the model takes brightness as it is, "
            f"found up to {largest:.6g}: scale images to the whole range of their type (floats: 0 to 1), or train with "
            "--recipe default"
        )

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Size that an image of (height, width) is resized to."""
        return max(1, round(height * self.scale)), max(1, round(width * self.scale))

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
    missing: Mask | None = None  # of the image's own size, True where it holds no data; None: nowhere
    resized_from: tuple[int, int] | None = None  # height and width of the image; None: those of `pixels`

    def tensor(self) -> Tensor:
        """The normalised image, (C, H, W) float32."""
        pixels, offset, scale = map(torch.from_numpy, (self.pixels, self.offset, self.scale))
        return normalise(pixels[None], offset[:, None, None], scale[:, None, None])[0]


def resize(image: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Image (H, W, C) -> (height, width, C): means of areas if it shrinks, interpolated if it grows."""
    method = cv2.INTER_AREA if height * width < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    planes = [cv2.resize(image[:, :, c], (width, height), interpolation=method) for c in range(image.shape[2])]
    return np.stack(planes, axis=2)


def normalise(pixels: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """Network input (B, C, H, W) float32, channels last; from pixels (B, H, W, C), offset and scale ([B,] C, 1, 1)."""
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, copy=True)
    return x.sub_(offset).mul_(scale)  # in place: half the time


def to_pixels(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
    """Image of any integer or float dtype -> (H, W, C) uint8 or float32 with NaN as 0, and the value that stands for 1.
    Raises PixelError."""
    if not isinstance(image, np.ndarray):  # cv2.imread returns None for a file that it cannot read
        raise PixelError(f"expected an image as a NumPy array, found {type(image).__name__}")
    if 0 in image.shape or image.ndim not in (2, 3):
        raise PixelError(f"expected an image of shape (H, W) or (H, W, C), found {image.shape}")
    if image.dtype.kind not in "buif":
        raise PixelError(f"expected pixels of integers, bool or float, found {image.dtype}")
    image = image.reshape(*image.shape[:2], -1)
    if image.dtype == np.uint8:
        return image, 255
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is refused
        x = image.astype(np.float32)
    if image.dtype.kind == "f":
        x[_not_a_value(image)] = 0
        if not np.isfinite(x).all():
            raise PixelError("expected finite pixel values, found infinity")
    return x, unit_of(image.dtype)


def unit_of(dtype: np.dtype[Any]) -> int:
    """The value that stands for 1 in pixels of this type."""
    return 1 if dtype.kind in "bf" else np.iinfo(dtype).max


def without_data(image: npt.NDArray[Any]) -> Mask | None:
    """Pixels (H, W) without data, None where all hold some: NaN (or the lowest float) in any channel, or for integers a
    frame.

    A frame: rows and columns from the edges inward, `MIN_FRAME` or more on one side, all of the dtype's smallest or
    largest value in every channel. The pixels inside differ, and few have that value: the black background of a
    fluorescence image is data.
    """
    image = image.reshape(*image.shape[:2], -1)
    if image.dtype.kind == "f":
        missing = np.logical_or.reduce(_not_a_value(image), axis=2)
        return missing if missing.any() else None
    limits: tuple[int, ...] = ()
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype).min, np.iinfo(image.dtype).max
    for extreme in limits:
        if not any((edge == extreme).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1])):
            continue
        frame: Mask = np.logical_and.reduce(image == extreme, axis=2)
        rows, columns = (np.flatnonzero(~frame.all(axis=axis)) for axis in (1, 0))
        if not rows.size:  # the whole image
            continue
        (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
        inside, framed = image[top:bottom, left:right], frame[top:bottom, left:right]
        widest = max(top, len(image) - bottom, left, image.shape[1] - right)
        if widest >= MIN_FRAME and framed.mean() <= MAX_INSIDE and (inside != inside[0, 0]).any():
            framed[:] = False
            return frame
    return None


def _not_a_value(image: npt.NDArray[Any]) -> Mask:
    """NaN, and the lowest finite float, with which geographic programs mark pixels without data."""
    return np.asarray(np.isnan(image) | (image == np.finfo(image.dtype).min))


def statistics(x: npt.NDArray[Any], missing: Mask | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel of (H, W, C), both (C,), over the pixels that are not missing."""
    mask = None if missing is None else (~missing).view(np.uint8)
    # in double precision; OpenCV has functions for up to four channels
    parts = [x] if x.shape[2] <= 4 else [np.ascontiguousarray(x[:, :, c]) for c in range(x.shape[2])]
    means, deviations = zip(*(cv2.meanStdDev(part, mask=mask) for part in parts), strict=True)
    return np.concatenate(means).ravel(), np.concatenate(deviations).ravel()


def match_channels(x: npt.NDArray[Any], n_channels: int) -> npt.NDArray[Any]:
    """Image (H, W, n_channels) from (H, W, C): RGB to grey by luminance, grey to RGB by repetition. Four channels of
    uint8 are RGBA, as most readers give it, for a network of one or three. Raises PixelError for other numbers."""
    found = x.shape[2]
    if found == 4 and n_channels in (1, 3) and x.dtype == np.uint8:
        x = x[:, :, :3]
    if x.shape[2] == n_channels:
        return np.ascontiguousarray(x)
    if x.shape[2] == 3 and n_channels == 1:
        return luminance(x)[:, :, np.newaxis]
    if x.shape[2] == 1 and n_channels == 3:
        return np.repeat(x, 3, axis=2)
    trained = f"{n_channels} channel{'s' * (n_channels != 1)}"
    raise PixelError(f"the model was trained on {trained}, this image has {found}")


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
