"""Kind `overlay`: the image with the outlines of what was found, in the colours of the classes."""

import cv2
import numpy as np
import numpy.typing as npt

from unet.imaging import Array
from unet.outputs.image import as_image
from unet.outputs.kind import Answer, Legend, Results
from unet.outputs.labels import FloatArray, Mask, find_objects
from unet.outputs.outlines import line_colours

Pixels = npt.NDArray[np.uint8]

WINDOW = 1, 99
"""Percentiles of a channel that become black and white."""
SAMPLE = 1000
"""Rows and columns, about, that are looked at for the percentiles."""
STRIP = 1024
"""Rows that are converted at once."""


def encode(results: Results) -> Answer:
    """Results of "objects" and the picture's pages -> RGB PNG or TIFF."""
    both = zip(results.picture.pages, results.pages, strict=True)
    return as_image([draw(image, result, results.legend) for image, result in both], results.picture)


def draw(image: Array, result: FloatArray, legend: Legend) -> Pixels:
    """The image (H, W, 3) with outlines: of objects, where the model separates them, else of the regions of all classes
    but the first as the mask has them, without a smallest area."""
    if legend.objects:
        regions = find_objects(result, legend)
    elif result.ndim == 2:
        regions = (result > legend.threshold).astype(np.uint8)
    else:
        regions = result.argmax(axis=0).astype(np.uint8)
    drawn = to_rgb(image)
    line = outline(regions)
    colours = np.array(line_colours(legend), np.uint8)
    drawn[line] = colours[np.minimum(regions[line], len(colours) - 1)]  # objects are all of the last class
    return drawn


def outline(regions: npt.NDArray[np.integer]) -> Mask:
    """Pixels (H, W) of regions, 1 and above, at most two from another region, the background or the image's edge."""
    edge = np.zeros(regions.shape, np.uint8)
    edge[[0, -1]] = edge[:, [0, -1]] = 1
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = regions[one] != regions[other]
        edge[one] |= differ
        edge[other] |= differ
    return (cv2.dilate(edge, np.ones((3, 3), np.uint8)) > 0) & (regions > 0)


def to_rgb(image: Array) -> Pixels:
    """Any image as (H, W, 3): the first three channels, or the first alone where there are fewer. What is not uint8 is
    stretched between percentiles of each channel; pixels without data are black."""
    channels = image.reshape(*image.shape[:2], -1)
    channels = channels[..., : 3 if channels.shape[2] >= 3 else 1]
    if channels.dtype != np.uint8:
        channels = np.stack([_stretch(channels[..., c]) for c in range(channels.shape[2])], axis=-1)
    return np.broadcast_to(channels, (*channels.shape[:2], 3)).copy()


def _stretch(channel: Array) -> Pixels:
    rows, columns = (max(1, side // SAMPLE) for side in channel.shape)
    sample = channel[::rows, ::columns].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    stretched = np.empty(channel.shape, np.uint8)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        low, high = np.percentile(sample, WINDOW) if sample.size else (0.0, 0.0)
        # infinite for a window of no width: what is brighter is white then, the rest black
        scale = np.float64(255) / (high - low)
        for top in range(0, len(channel), STRIP):
            strip = (channel[top : top + STRIP].astype(np.float64) - low) * scale
            stretched[top : top + STRIP] = np.nan_to_num(strip.clip(0, 255))
    return stretched
