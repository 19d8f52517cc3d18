"""Augmentation, the paper's way (section 3.1): few images become many by smooth deformations.

All that moves pixels, rotation, flips, scale, shift and elastic deformation, is composed into one sampling grid per
crop: an image is interpolated once, and its label is read through the same grid. Then brightness, contrast, gamma, blur
and noise.

Shapes: B crops in a batch, C channels, S the side of a crop in pixels. Coordinates are pixels, (x, y).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

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
    """Largest shift of the grey values as the network sees them: of standardised images in standard deviations."""
    contrast: float = 0.0
    """Largest relative change of the grey values' spread."""
    gamma: float = 0.0
    """Largest relative change of the exponent."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, pixels; half of the crops are blurred."""
    noise: float = 0.0
    """Largest standard deviation of added noise, likewise; half of the crops get some."""


class Draw(NamedTuple):
    """The random numbers of B crops. Drawn on the CPU, so that they are the same on every device."""

    place: Tensor
    """(B, 2): x and y of the crop in the room that it has, 0..1."""
    elastic: Tensor
    """(B, 2, G, G): displacements on the coarse grid, pixels."""
    matrix: Tensor
    """(B, 2, 2): rotation, scale and flips."""
    gamma: Tensor
    contrast: Tensor
    brightness: Tensor
    blur: Tensor
    noise: Tensor
    noise_seed: Tensor
    """(B,) each; the seed an integer."""

    def of(self, share: slice, device: torch.device) -> "Draw":
        """Those of some of the crops, on the device; places and seeds, which no pixel needs, stay on the CPU."""
        mine = Draw(*(numbers[share] for numbers in self))
        there = Draw(*(numbers.to(device, non_blocking=True) for numbers in mine))
        return there._replace(place=mine.place, noise_seed=mine.noise_seed)


def draw(n: int, size: int, how: Augmentation, rng: torch.Generator) -> Draw:
    """The random numbers of `n` crops of side `size`."""
    points = max(3, round(size / how.elastic_spacing) + 1)
    angle = torch.deg2rad(_uniform(n, how.rotation, rng))
    if how.quarter_turns:
        angle = angle + torch.randint(4, (n,), generator=rng) * (math.pi / 2)
    zoom = torch.exp(_uniform(n, math.log1p(how.scale), rng))
    sign = torch.randint(2, (n, 2), generator=rng) * 2.0 - 1 if how.flip else torch.ones(n, 2)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    return Draw(
        place=torch.rand(n, 2, generator=rng),
        elastic=how.elastic * torch.randn(n, 2, points, points, generator=rng),
        matrix=torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2) * sign[:, None],
        gamma=torch.exp(_uniform(n, math.log1p(how.gamma), rng)),
        contrast=torch.exp(_uniform(n, math.log1p(how.contrast), rng)),
        brightness=_uniform(n, how.brightness, rng),
        blur=how.blur * torch.rand(n, generator=rng) * _coin(n, rng),
        noise=how.noise * torch.rand(n, generator=rng) * _coin(n, rng),
        noise_seed=torch.randint(2**62, (n,), generator=rng),
    )


def sampling_grid(drawn: Draw, size: int, how: Augmentation) -> Tensor:
    """(B, S, S, 2): for each pixel of a crop, its place in the image relative to the crop's centre, in pixels."""
    axis = torch.arange(size, dtype=torch.float32, device=drawn.matrix.device) - (size - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None]
    if how.elastic:
        grid = grid + elastic_displacement(drawn, size, how)
    return grid @ drawn.matrix.transpose(1, 2)[:, None]


def elastic_displacement(drawn: Draw, size: int, how: Augmentation) -> Tensor:
    """(B, S, S, 2) smooth displacements in pixels: bicubic between the points of the coarse grid, of whose middle a
    small crop sees a part."""
    reach = max(size, (drawn.elastic.shape[-1] - 1) * how.elastic_spacing)
    fine = F.interpolate(drawn.elastic, (reach, reach), mode="bicubic", align_corners=True)
    start = (reach - size) // 2
    return fine[:, :, start : start + size, start : start + size].permute(0, 2, 3, 1)


def placed(grid: Tensor, centre: Tensor, size: Tensor) -> Tensor:
    """(B, S, S, 2) of `sampling_grid`, crops' centres (B, 2) and sizes (B, 2) of their images, all of them x and y in
    pixels -> (B, S, S, 2) for `sample`: -1 and 1 are the outer edges of an image."""
    return (2 * (grid + centre[:, None, None]) + 1) / size[:, None, None] - 1


def sample(image: Tensor, places: Tensor, mode: str) -> Tensor:
    """(C, H, W), and a crop's places in it (S, S, 2) -> (C, S, S). Beyond the border the image is mirrored,
    its outermost pixel included, which `unet.pixels.mirror` has only once."""
    return F.grid_sample(image[None], places[None], mode=mode, padding_mode="reflection", align_corners=False)[0]


def adjust_grey(images: Tensor, drawn: Draw, how: Augmentation) -> Tensor:
    """(B, C, S, S) images as the network sees them, with other brightness, contrast, gamma, sharpness and noise."""

    def each(numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, 1, 1, 1)

    if how.gamma:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = ((images - low) / (high - low + 1e-6)) ** each(drawn.gamma) * (high - low) + low
    if how.contrast or how.brightness:
        images = images * each(drawn.contrast) + each(drawn.brightness)
    if how.blur:
        images = blur(images, drawn.blur, radius=math.ceil(2 * how.blur))
    if how.noise:
        rng = torch.Generator(images.device)
        noise = [
            torch.randn(images.shape[1:], generator=rng.manual_seed(int(seed)), device=images.device)
            for seed in drawn.noise_seed
        ]
        images = images + each(drawn.noise) * torch.stack(noise)
    return images


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """(B, C, S, S), each blurred by a Gaussian of its own standard deviation (B,) in pixels; 0 leaves it as it is."""
    n, channels, *_ = images.shape
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B, 2 radius + 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]  # (B C, 1, 1, 2 radius + 1)
    x = F.pad(images.reshape(1, n * channels, *images.shape[2:]), [radius] * 4, mode="reflect")
    x = F.conv2d(x, kernel, groups=n * channels)
    x = F.conv2d(x, kernel.transpose(2, 3), groups=n * channels)
    return x.reshape(images.shape)


def _uniform(n: int, limit: float, rng: torch.Generator) -> Tensor:
    """(n,) in -limit..limit."""
    return limit * (2 * torch.rand(n, generator=rng) - 1)


def _coin(n: int, rng: torch.Generator) -> Tensor:
    """(n,) of 0 and 1."""
    return torch.randint(2, (n,), generator=rng).float()
