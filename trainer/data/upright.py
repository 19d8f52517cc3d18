"""Whether images have an up, as streets, layers of skin and chests have: turned upside down they would teach wrong."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Sample

ALIKE = 0.2
"""Agreement of images above which they have an up: 0.98 in street scenes (CamVid), below 0.003 in electron micrographs,
nuclei and fundus photographs, and at most 0.05 in any four of these."""


def are_upright(samples: Sequence[Sample], n_values: int) -> bool:
    """Whether some of the `n_values` classes lie higher than others, in all images alike: whether their shares of the
    upper third less those of the lower third are much the same vector in any two images. Three images at least."""
    if len(samples) < 3:
        return False
    shares = np.array([_shares(upper, n_values) - _shares(lower, n_values) for upper, lower in map(_thirds, samples)])
    products = shares @ shares.T
    pairs = len(samples) * (len(samples) - 1)
    return bool((products.sum() - np.trace(products)) / pairs > ALIKE)


def _thirds(sample: Sample) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    third = max(1, len(sample.label) // 3)
    return sample.label[:third], sample.label[-third:]


def _shares(label: npt.NDArray[np.uint8], n_values: int) -> npt.NDArray[np.float64]:
    """Share of each class among the pixels with one."""
    counts = np.bincount(label.ravel(), minlength=n_values)[:n_values]
    return np.asarray(counts / max(1, counts.sum()))
