"""The embedded data set: synthetic pictures that resemble electron micrographs of tissue.

Cells meet at dark, irregular membranes and contain dark bodies; blur, noise and uneven illumination are added. Label
255 is the inside of a cell and 0 a membrane, as in the ISBI 2012 challenge.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from trainer.data.pairs import IMAGES, LABELS
from unet.files import replace_atomically
from unet.imaging import write_png

N_IMAGES = 16
SIZE = 256
SPACING = 36  # of the cells' centres, pixels
SEED = 2015

Bytes = npt.NDArray[np.uint8]
Field = npt.NDArray[Any]


def write(folder: Path) -> None:
    """Writes the files that are missing. Existing ones stay, since another processor or another version of OpenCV may
    give slightly different pixels, which would make it another data set."""
    for name in (IMAGES, LABELS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(N_IMAGES):
        paths = [folder / name / f"{i:02d}.png" for name in (IMAGES, LABELS)]
        if not all(path.exists() for path in paths):
            for path, pixels in zip(paths, generate(np.random.default_rng((SEED, i))), strict=True):
                replace_atomically(path, write_png(pixels))


def generate(rng: np.random.Generator, size: int = SIZE) -> tuple[Bytes, Bytes]:
    """One image and its label, (size, size) uint8 each; the label has the values 0 and 255."""
    warp = 7 * np.stack([_smooth_noise(rng, size, sigma=12), _smooth_noise(rng, size, sigma=12)])
    axis = np.arange(-SPACING, size + 2 * SPACING, SPACING)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)  # reaches beyond the image
    centres = grid + rng.uniform(-0.38, 0.38, grid.shape) * SPACING  # (N, 2) y, x: a jittered grid
    positions = np.moveaxis(np.mgrid[0:size, 0:size].astype(np.float32) + warp, 0, -1)  # (H, W, 2)
    nearest, second = np.moveaxis(KDTree(centres).query(positions, k=2)[0], -1, 0)  # distances (H, W)
    inside = second - nearest > 6  # membranes are about 6 pixels wide

    image: Field = np.where(inside, 0.66, 0.27).astype(np.float32)
    image += 0.05 * _smooth_noise(rng, size, sigma=2) * inside  # grainy cytoplasm
    image[_bodies(rng, size) & inside & (second - nearest > 14)] -= 0.3
    image = cv2.GaussianBlur(image, (0, 0), 1.0)
    image = image * (1 + 0.25 * _smooth_noise(rng, size, sigma=60))  # uneven illumination
    image += rng.normal(0, 0.08, image.shape).astype(np.float32)
    return (image.clip(0, 1) * 255).astype(np.uint8), np.where(inside, 255, 0).astype(np.uint8)


def _bodies(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    """Mask (size, size) of scattered small ellipses, bool."""
    canvas = np.zeros((size, size), np.uint8)
    for _ in range(size * size // 1800):
        y, x = (int(v) for v in rng.integers(0, size, 2))
        axes = (int(rng.integers(3, 7)), int(rng.integers(2, 5)))
        cv2.ellipse(canvas, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return canvas > 0


def _smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> Field:
    """Random field (size, size) of zero mean and unit variance, smooth over `sigma` pixels."""
    pad = int(2 * sigma)
    noise = rng.normal(size=(size + 2 * pad, size + 2 * pad)).astype(np.float32)
    field: Field = cv2.GaussianBlur(noise, (0, 0), sigma)[pad : pad + size, pad : pad + size]
    field -= field.mean()
    field /= field.std()
    return field
