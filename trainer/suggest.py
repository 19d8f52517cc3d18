"""What to annotate next: unlabelled images in the order of what they would teach, with `next.csv` and `next.png`.

An image teaches much where the network's answers for its eight rotations and flips disagree, unless it looks like one
that was learned from, or like one that is suggested already.
"""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist, squareform
from scipy.special import entr
from tqdm import tqdm

from trainer import pictures
from trainer.data.dataset import collect, images_below, read_image
from unet.files import replace_atomically
from unet.pixels import mirror
from unet.predictor import Predictor

CSV, SHEET = "next.csv", "next.png"
WINDOW = 512  # side of the part of an image that is looked at, its middle, in pixels as the network sees them
REGION = 64  # side of the regions of which the most uncertain one counts, in pixels
SHOWN = 12  # pictures in next.png

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Suggestion:
    """An unlabelled image, and why it would teach much or little."""

    file: str  # in the folder, with the page of a stack
    path: Path
    page: int  # from 0
    uncertainty: float  # disagreement of the views in the most uncertain region, 0..1
    similarity: float = 0.0  # to the most similar image that was learned from or ranks higher, 0..1

    @property
    def score(self) -> float:
        """What the image would teach, 0..1; it falls with the rank."""
        return self.uncertainty * (1 - self.similarity)


def suggest(
    predictor: Predictor,
    folder: Path,
    out: Path,
    training: Sequence[Array],
    channel: int | None = None,
    seconds: float = 600,
) -> list[Suggestion]:
    """Rank the images in a folder, or a channel of them, and write next.csv and next.png to `out`. `training`: images
    that are annotated. After `seconds` the others, chosen at random, are not looked at. Prints what is left out."""
    files = images_below(folder)
    found: list[Suggestion] = []
    features: list[FloatArray] = []
    problems: list[str] = []
    started, unseen, large = time.monotonic(), 0, 0
    order = np.random.default_rng(0).permutation(len(files))
    for i in tqdm(order, "what to annotate next", leave=False, unit="image", disable=None):
        if time.monotonic() - started > seconds:
            unseen += 1
            continue
        file = files[i].relative_to(folder).as_posix()
        with collect(problems, file):
            pages, _ = read_image([files[i]], channel)
            for page, image in enumerate(pages):
                name = f"{file} page {page + 1}" if len(pages) > 1 else file
                with collect(problems, name):
                    part = image[middle(image, predictor)]
                    uncertain = average_by_region(disagreement(predictor, part)).max()
                    features.append(bottom_features(predictor, part))
                    found.append(Suggestion(name, files[i], page, float(uncertain)))
                    large += part.shape[:2] != image.shape[:2]

    known = [bottom_features(predictor, image[middle(image, predictor)]) for image in training]
    ranked = rank([each.uncertainty for each in found], features, known)
    found = [replace(found[i], similarity=similarity) for i, similarity in ranked]
    if found:
        replace_atomically(out / CSV, table(found).encode())
        replace_atomically(out / SHEET, sheet(predictor, found[:SHOWN], channel))
        first = ", ".join(each.file for each in found[:3])
        print(f"next      annotate first: {first} (see {out / CSV}, {out / SHEET})")
    if large:
        print(f"          of {large} large ones among {len(found)} images only the middle was looked at")
    if unseen:
        print(f"          {unseen} of {len(files)} files, chosen at random, were not looked at in {seconds:.0f} s")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        print(f"          left out: {'; '.join(problems[:5])}{more}")
    return found


def middle(image: Array, predictor: Predictor) -> tuple[slice, slice]:
    """Rows and columns of the part that is looked at: at the scale that the network has learned, not all of it."""
    size = round(WINDOW / predictor.preprocessing.scale)
    top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
    return slice(top, top + size), slice(left, left + size)


def disagreement(predictor: Predictor, image: Array) -> FloatArray:
    """Disagreement of the answers for an image's rotations and flips, (H, W) in 0..1: the entropy of their mean
    less their mean entropy, in units of the largest possible one.

    That is the mutual information of BALD (Houlsby et al. 2011, https://arxiv.org/abs/1112.5745), with views in place
    of models (Wang et al. 2019, https://arxiv.org/abs/1807.07356). Where all views are undecided, as on an outline that
    nobody could draw more exactly, it is small.
    """
    mean: Any = 0.0
    mean_entropy: Any = 0.0
    for turns, flip in predictor.views:
        p = predictor(np.rot90(image, turns)[:, ::flip])  # (H', W') or (K, H', W')
        p = np.clip(np.stack([1 - p, p]) if predictor.binary else p, 0, 1)  # resizing may end beside 1
        p = np.rot90(p[:, :, ::flip], -turns, axes=(1, 2))  # (K, H, W)
        mean += p / len(predictor.views)
        mean_entropy += entr(p).sum(axis=0) / len(predictor.views)
    information = (entr(mean).sum(axis=0) - mean_entropy) / np.log(len(mean))
    return np.asarray(np.clip(information, 0, 1), np.float32)


def average_by_region(pixels: FloatArray) -> FloatArray:
    """Mean over the square region about each pixel, (H, W): one uncertain region of a large image counts in full, and
    one uncertain pixel does not."""
    height, width = (min(REGION, side) for side in pixels.shape)
    return np.asarray(cv2.blur(pixels, (width, height)), np.float32)


@torch.inference_mode()
def bottom_features(predictor: Predictor, image: Array) -> FloatArray:
    """Mean and standard deviation of each of the C channels at the bottom of the network: (2 C,)."""
    network, prepared = predictor.network, predictor.preprocess(image)
    size = predictor.preprocessing.padded_size(*prepared.pixels.shape[:2])
    pixels = mirror(prepared.pixels, *size, network.margin)
    x = replace(prepared, pixels=pixels).tensor()[None].to(predictor.device)
    for level in (network.inc, network.down1, network.down2, network.down3, network.down4):
        x = level(x)
    x = x[0].flatten(1)  # (C, pixels)
    return torch.cat([x.mean(dim=1), x.std(dim=1, correction=0)]).numpy(force=True)


def rank(
    uncertainty: Sequence[float], features: Sequence[FloatArray], known: Sequence[FloatArray]
) -> list[tuple[int, float]]:
    """Greedy order of images by uncertainty * (1 - similarity), each with its similarity to the most similar image
    that is known or ranks higher: exp(-d) at a distance d between standardised features, in units of the lower
    quartile of all distances. (The median may lie between two kinds of images: all of a kind would be alike.)"""
    if not features:
        return []
    x = np.stack([*features, *known]).astype(np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    distances = pdist(x)
    unit = max(float(np.quantile(distances, 0.25)), 1e-9) if len(distances) else 1.0
    n, similar = len(features), squareform(np.exp(-distances / unit))  # (N, N)
    nearest, left, order = similar[:n, n:].max(axis=1, initial=0), np.ones(n, bool), []
    for _ in range(n):
        i = int(np.argmax(np.where(left, np.asarray(uncertainty) * (1 - nearest), -1)))
        order.append((i, float(nearest[i])))
        left[i] = False
        nearest = np.where(left, np.maximum(nearest, similar[:n, i]), nearest)
    return order


def summary(suggestions: Sequence[Suggestion]) -> list[dict[str, Any]]:
    """The entry `next` of report.json: the first ten."""
    keys = ("file", "score", "uncertainty", "similarity")
    return [{key: getattr(each, key) for key in keys} for each in suggestions[:10]]


def table(suggestions: Sequence[Suggestion]) -> str:
    """CSV: a row for each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "file", "score", "uncertainty", "similarity"])
    for k, each in enumerate(suggestions, 1):
        writer.writerow([k, each.file, *(f"{v:.4f}" for v in (each.score, each.uncertainty, each.similarity))])
    return text.getvalue()


def sheet(predictor: Predictor, suggestions: Sequence[Suggestion], channel: int | None) -> bytes:
    """PNG: the suggested images, with the disagreement of the views in cyan, on one scale for all."""
    images = [read_image([each.path], channel)[0][each.page] for each in suggestions]
    uncertain = [disagreement(predictor, image[middle(image, predictor)]) for image in images]
    highest = max(float(each.max()) for each in uncertain) or 1.0
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for k, (axis, each, image, pixels) in enumerate(zip(axes, suggestions, images, uncertain, strict=False), 1):
        overlay = np.zeros((*pixels.shape, 4), np.float32)
        overlay[:, :, 1:3], overlay[:, :, 3] = 1, pixels / highest
        (height, width), (top, left) = image.shape[:2], (part.start for part in middle(image, predictor))
        axis.imshow(pictures.rgb(image), extent=(0, width, height, 0))
        axis.imshow(overlay, extent=(left, left + pixels.shape[1], top + pixels.shape[0], top))
        axis.set(xlim=(0, width), ylim=(height, 0))
        axis.set_title(f"{k}  {each.file}\nuncertainty {each.uncertainty:.3f}", fontsize="small")
    return pictures.png(figure)
