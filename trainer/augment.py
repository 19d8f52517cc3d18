"""Augmentation, the paper's way (section 3.1): few images become many by smooth deformations.

All that moves pixels, rotation, flips, scale, shift and elastic deformation, is composed into one sampling grid per
crop: an image is interpolated once, and its label is read through the same grid. Then brightness, contrast, gamma, blur
and noise.

Shapes: B crops in a batch, C channels, S the side of a crop in pixels. Coordinates are pixels, (x, y).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How much of what. Zero is none; the defaults are flips only."""

    flip: bool = True
    quarter_turns: bool = False
    rotation: float = 0.0
    """Largest angle, degrees either way."""
    scale: float = 0.0
    """Largest relative change of size: 0.25 is 1 / 1.25 to 1.25 times."""
    elastic: float = 0.0
    """Standard deviation of the displacements on the coarse grid, pixels; the paper's is 10."""
    elastic_spacing: int = 64
    """Distance of the coarse grid's points, pixels; between them bicubic interpolation."""
    brightness: float = 0.0
    """Largest shift of the grey values, in standard deviations of the image."""
    contrast: float = 0.0
    """Largest relative change of the grey values' spread."""
    gamma: float = 0.0
    """Largest relative change of the exponent."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, pixels; half of the crops are blurred."""
    noise: float = 0.0
    """Largest standard deviation of added noise, in standard deviations of the image; half of the crops get some."""


def sampling_grid(n: int, size: int, how: Augmentation, rng: torch.Generator) -> Tensor:
    """(B, S, S, 2): for each pixel of a crop, its place in the image relative to the crop's centre, in pixels."""
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).expand(n, size, size, 2)
    if how.elastic:
        grid = grid + elastic_displacement(n, size, how, rng)

    angle = torch.deg2rad(uniform(n, how.rotation, rng))
    if how.quarter_turns:
        angle = angle + torch.randint(4, (n,), generator=rng) * (math.pi / 2)
    zoom = torch.exp(uniform(n, math.log1p(how.scale), rng))
    sign = torch.ones(n, 2)
    if how.flip:
        sign = torch.randint(2, (n, 2), generator=rng) * 2.0 - 1
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2) * sign[:, None, :]
    return grid @ matrix.transpose(1, 2)[:, None]


def elastic_displacement(n: int, size: int, how: Augmentation, rng: torch.Generator) -> Tensor:
    """(B, S, S, 2) smooth random displacements: Gaussian on a coarse grid, bicubic between its points."""
    points = max(3, round(size / how.elastic_spacing) + 1)
    coarse = how.elastic * torch.randn(n, 2, points, points, generator=rng)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def sample(image: Tensor, grid: Tensor, centre: Tensor, mode: str) -> Tensor:
    """(C, H, W), a crop's grid (S, S, 2) and its centre (2,) -> (C, S, S). Beyond the border the image is mirrored."""
    size = torch.tensor([image.shape[-1], image.shape[-2]], dtype=grid.dtype, device=grid.device)
    normalised = (2 * (grid + centre) + 1) / size - 1  # grid_sample's unit: -1 and 1 are the outer edges
    return F.grid_sample(image[None], normalised[None], mode=mode, padding_mode="reflection", align_corners=False)[0]


def adjust_grey(images: Tensor, how: Augmentation, rng: torch.Generator) -> Tensor:
    """(B, C, S, S) standardised images with other brightness, contrast, gamma, sharpness and noise."""
    n = len(images)

    def each(value: Tensor) -> Tensor:
        return value.to(images.device).reshape(n, 1, 1, 1)

    if how.gamma:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        exponent = each(torch.exp(uniform(n, math.log1p(how.gamma), rng)))
        images = ((images - low) / (high - low + 1e-6)) ** exponent * (high - low) + low
    if how.contrast or how.brightness:
        images = images * each(torch.exp(uniform(n, math.log1p(how.contrast), rng)))
        images = images + each(uniform(n, how.brightness, rng))
    if how.blur:
        images = blur(images, how.blur * torch.rand(n, generator=rng) * coin(n, rng))
    if how.noise:
        sigma = how.noise * torch.rand(n, generator=rng) * coin(n, rng)
        images = images + each(sigma) * torch.randn(images.shape, generator=rng).to(images.device)
    return images


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, S, S), each blurred by a Gaussian of its own standard deviation (B,) in pixels; 0 leaves it as it is."""
    n, channels, *_ = images.shape
    radius = max(1, math.ceil(2 * float(sigma.max())))
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.device)  # (B, 2 radius + 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]  # (B C, 1, 1, 2 radius + 1)
    x = F.pad(images.reshape(1, n * channels, *images.shape[2:]), [radius] * 4, mode="reflect")
    x = F.conv2d(x, kernel, groups=n * channels)
    x = F.conv2d(x, kernel.transpose(2, 3), groups=n * channels)
    return x.reshape(images.shape)


def uniform(n: int, limit: float, rng: torch.Generator) -> Tensor:
    """(n,) in -limit..limit."""
    return limit * (2 * torch.rand(n, generator=rng) - 1)


def coin(n: int, rng: torch.Generator) -> Tensor:
    """(n,) of 0 and 1."""
    return torch.randint(2, (n,), generator=rng).float()
