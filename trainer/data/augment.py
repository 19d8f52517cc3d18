"""Augmentation as in the U-Net paper (section 3.1): smooth deformations make many training images of a few.

Rotation, flips, scale, shift and elastic deformation are composed into one sampling grid per crop, so that an image is
interpolated once and its label moves with it. Then brightness, contrast, gamma, blur and noise change the image alone.

Shapes: B crops in a batch, C channels, S side of a crop in pixels. Coordinates are (x, y) in pixels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.recipes import Augmentation


class RandomValues(NamedTuple):
    """Random values for B crops, drawn on the CPU, so that they are the same on every device."""

    place: Tensor  # (B, 2) in 0..1: x and y of the crop, from the first to the last place within the image
    elastic: Tensor  # (B, 2, G, G) displacements on the coarse grid, pixels
    matrix: Tensor  # (B, 2, 2) rotation, scale and flips
    gamma: Tensor  # (B,), as all that follow
    contrast: Tensor
    brightness: Tensor
    blur: Tensor
    noise: Tensor
    noise_seed: Tensor

    def select(self, crops: slice, device: torch.device) -> "RandomValues":
        """Values of some of the crops, on the device; `place` and `noise_seed` stay on the CPU, where they are used."""
        selected = RandomValues(*(values[crops] for values in self))
        moved = RandomValues(*(values.to(device, non_blocking=True) for values in selected))
        return moved._replace(place=selected.place, noise_seed=selected.noise_seed)


def draw(n: int, size: int, how: Augmentation, rng: torch.Generator) -> RandomValues:
    """Random values for `n` crops of side `size`."""

    def uniform(limit: float) -> Tensor:
        return limit * (2 * torch.rand(n, generator=rng) - 1)

    def half_of(limit: float) -> Tensor:
        return limit * torch.rand(n, generator=rng) * torch.randint(2, (n,), generator=rng).float()

    points = max(3, round(size / how.elastic_spacing) + 1)
    angle = torch.deg2rad(uniform(how.rotation))
    if how.quarter_turns:
        angle = angle + torch.randint(4, (n,), generator=rng) * (math.pi / 2)
    zoom = torch.exp(uniform(math.log1p(how.scale)))
    sign = torch.randint(2, (n, 2), generator=rng) * 2.0 - 1 if how.flip else torch.ones(n, 2)
    if how.upright:
        sign[:, 1] = 1
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    return RandomValues(
        place=torch.rand(n, 2, generator=rng),
        elastic=how.elastic * torch.randn(n, 2, points, points, generator=rng),
        matrix=torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2) * sign[:, None],
        gamma=torch.exp(uniform(math.log1p(how.gamma))),
        contrast=torch.exp(uniform(math.log1p(how.contrast))),
        brightness=uniform(how.brightness),
        blur=half_of(how.blur),
        noise=half_of(how.noise),
        noise_seed=torch.randint(2**62, (n,), generator=rng),
    )


def sampling_grid(values: RandomValues, size: int, how: Augmentation) -> Tensor:
    """Sampling grids (B, S, S, 2): where each pixel of a crop is read, in pixels from the centre of the crop."""
    axis = torch.arange(size, dtype=torch.float32, device=values.matrix.device) - (size - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None]  # (1, S, S, 2)
    if how.elastic:
        grid = grid + elastic_displacement(values, size, how)
    return grid @ values.matrix.transpose(1, 2)[:, None]


def elastic_displacement(values: RandomValues, size: int, how: Augmentation) -> Tensor:
    """Smooth displacements (B, S, S, 2) in pixels: the middle of the coarse grid, interpolated by bicubic splines."""
    reach = max(size, (values.elastic.shape[-1] - 1) * how.elastic_spacing)
    fine = F.interpolate(values.elastic, (reach, reach), mode="bicubic", align_corners=True)
    start = (reach - size) // 2
    return fine[:, :, start : start + size, start : start + size].permute(0, 2, 3, 1)


def to_image(grid: Tensor, centre: Tensor, size: Tensor) -> Tensor:
    """Grids for `sample_image`, (B, S, S, 2) in -1..1, the edges of the image: from grids around the centres of crops,
    (B, S, S, 2), centres, (B, 2), and image sizes, (B, 2), in pixels."""
    return (2 * (grid + centre[:, None, None]) + 1) / size[:, None, None] - 1


def sample_image(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Crop (C, S, S) of an image (C, H, W), read at the points of a grid (S, S, 2) in -1..1. Beyond the border pixels
    are mirrored, the outermost one twice; `unet.pixels.mirror` has it once."""
    return F.grid_sample(image[None], grid[None], mode=mode, padding_mode="reflection", align_corners=False)[0]


def adjust_grey(images: Tensor, values: RandomValues, how: Augmentation) -> Tensor:
    """Network input (B, C, S, S) with changed gamma, contrast, brightness, sharpness and noise."""

    def per_image(numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, 1, 1, 1)

    if how.gamma:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = ((images - low) / (high - low + 1e-6)) ** per_image(values.gamma) * (high - low) + low
    if how.contrast or how.brightness:
        images = images * per_image(values.contrast) + per_image(values.brightness)
    if how.blur:
        images = blur(images, values.blur, radius=math.ceil(2 * how.blur))
    if how.noise:
        rng, shape = torch.Generator(images.device), images.shape[1:]
        seeds = map(int, values.noise_seed)
        noise = [torch.randn(shape, generator=rng.manual_seed(seed), device=images.device) for seed in seeds]
        images = images + per_image(values.noise) * torch.stack(noise)
    return images


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of images (B, C, S, S), each with its own standard deviation (B,) in pixels; 0 changes nothing."""
    n, channels, *_ = images.shape
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B, 2 radius + 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]  # (B C, 1, 1, 2 radius + 1)
    x = F.pad(images.reshape(1, n * channels, *images.shape[2:]), [radius] * 4, mode="reflect")
    x = F.conv2d(x, kernel, groups=n * channels)
    x = F.conv2d(x, kernel.transpose(2, 3), groups=n * channels)
    return x.reshape(images.shape)
