"""How an image differs from the training images, in a biologist's words. Arrays only, imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GREY = 0.02
"""Largest difference of channels, as a share of the values in use, with which an image of several is a grey one."""


@dataclass(frozen=True)
class Likeness:
    """Statistics of training images, with which others are compared. Part of the checkpoint."""

    channels: tuple[int, ...]  # numbers of channels that they have; 1 for grey images stored as RGB, too

    @classmethod
    def of(cls, images: Iterable[Array]) -> Self:
        """Statistics of images (H, W) or (H, W, C) of any integer or float dtype."""
        return cls(tuple(sorted({n_channels(image) for image in images})))

    def differences(self, image: Array) -> list[str]:
        """What an image has that the training images had not: the most important first, in ASCII."""
        found = n_channels(image)
        if found in self.channels:
            return []
        return [f"{found} channel{'s' * (found != 1)}, training images had {' or '.join(map(str, self.channels))}"]


def n_channels(image: Array) -> int:
    """Channels of an image that differ: 1 for a grey one stored as RGB."""
    if image.ndim == 2:
        return 1
    step = max(1, round((image.shape[0] * image.shape[1]) ** 0.5 / 512))
    seen = np.nan_to_num(image[::step, ::step].astype(np.float32))
    spread = float(np.ptp(seen, axis=2).mean())
    return 1 if spread <= GREY * float(np.ptp(seen)) else image.shape[2]
