"""How an image differs from the training images, in words: simple statistics of grey values, detail and colour.

None depends on the gain, so that 8 and 16 bits of a picture are alike, nor on size or orientation. They are taken from
16 windows at full resolution: a large image takes little longer than one of 1024 x 1024.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from unet.pixels import unit_of, without_data

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

FEATURES = {
    "brightness": 0.5,  # log2 of mean / range of the dtype; for models that take brightness as it is
    "contrast": 0.25,  # log2 of deviation / (mean + deviation)
    "skew": 0.3,  # positive: bright things on a dark ground
    "octave 0": 0.3,  # log2 of the variance of structures of 1 to 2 pixels / all variance
    "octave 1": 0.2,  # 2 to 4 pixels, and so on
    "octave 2": 0.2,
    "octave 3": 0.2,
    "diagonal": 0.4,  # log2 of the mean square of differences along both axes / all variance: sharpness, noise
    "skew 1": 0.15,  # of octave 1: bright or dark dots and lines
    "skew 2": 0.15,
    "first": 0.15,  # log2 of the mean of the first channel / that of all: red
    "last": 0.3,  # likewise: blue
}
"""Statistics of an image, with the difference of each that is nothing, whatever the training images are."""
LESS_MORE = {
    ("brightness",): ("darker", "brighter"),
    ("contrast",): ("less contrast (other lighting?)", "more contrast (other lighting?)"),
    ("skew", "skew 1", "skew 2"): (
        "darker spots and lines (inverted, or another stain?)",
        "brighter spots and lines (inverted, or another stain?)",
    ),
    ("octave 0", "diagonal"): (
        "blurrier (out of focus, enlarged or compressed?)",
        "sharper or noisier (another objective, exposure or binning?)",
    ),
    ("octave 1", "octave 2", "octave 3"): (
        "coarser structures (was it taken at a higher magnification?)",
        "finer structures (was it taken at a lower magnification?)",
    ),
    ("first", "last"): ("other colours (another stain or white balance?)",) * 2,
}
"""Words for a difference of these features, less or more of the first two."""
NAMED = 2
"""Differences that are named at most: the largest, and the next if it is at least half as large."""
GRID, WINDOW, SMALLEST = 4, 256, 32
"""Windows along a side, and the pixels of a window's side at most and at least. Smaller images are not judged."""
PARTS, MOST = 8, 512
"""Parts of each training image that are measured, too, as people crop; and all of them, or all images, at most."""
TOLERANCE, STRANGE = 1.5, 3.0
"""Tolerated distance, as a multiple of that at which 4 of 5 training images and parts see another: 1 to STRANGE."""
GREY = 0.004
"""Largest mean difference of the channels of a grey image that is stored in colour, as a share of the values in use."""
NOTHING = float(np.log2(1e-5))
"""Level of details that are absent."""
UNUSED = 1e9
"""Scale of a feature that does not matter."""


@dataclass(frozen=True, eq=False)
class Likeness:
    """Statistics of training images, with which others are compared. Part of the checkpoint."""

    rows: Floats  # (N, 1 + F), channels and FEATURES of the training images and of parts of them
    scale: Floats  # (F,), differences that count as 1
    tolerance: float  # distance to the nearest row up to which an image is like the training images

    @classmethod
    def of(cls, images: Sequence[Array], standardised: bool) -> Self | None:
        """Statistics of training images (H, W) or (H, W, C); None if all are tiny. `standardised`: brightness does not
        matter."""
        chosen = images[:: -(-len(images) // MOST)]
        n_parts = min(PARTS, MOST // len(chosen))
        return cls.fit([measure_parts(image, n_parts, seed) for seed, image in enumerate(chosen)], standardised)

    @classmethod
    def fit(cls, measured: Sequence[Sequence[Floats]], standardised: bool) -> Self | None:
        """The same from what `measure_parts` gives for each image. The scale of a difference is its floor, its usual
        size between a whole image and a part, and that between an image and the most similar other one, added in
        quadrature."""
        images = [np.stack(rows) for rows in measured if rows]
        if not images:
            return None
        floor = np.array(list(FEATURES.values()))
        floor[0] = UNUSED if standardised else floor[0]
        whole = np.stack([rows[0] for rows in images])
        parts = np.concatenate([rows[:, 1:] - rows[0, 1:] for rows in images])
        scale = np.sqrt(floor**2 + (parts**2).sum(axis=0) / max(1, len(parts) - len(images)))
        steps = [_nearest(row, np.delete(whole, i, axis=0), scale) for i, row in enumerate(whole)]
        if found := [step**2 for step in steps if step is not None]:
            scale = scale * np.sqrt(1 + np.median(found, axis=0))
        apart = []
        for i, rows in enumerate(images):
            others = np.concatenate([rows[:0], *images[:i], *images[i + 1 :]])
            apart += [np.linalg.norm(step) for row in rows if (step := _nearest(row, others, scale)) is not None]
        usual = float(np.quantile(apart, 0.8)) if apart else STRANGE
        return cls(np.concatenate(images), scale, TOLERANCE * min(max(usual, 1.0), STRANGE))

    @classmethod
    def from_plain(cls, entry: Mapping[str, Any] | None) -> Self | None:
        """From the entry of a checkpoint; None if there is none, or one of other features. Raises ValueError."""
        if not entry or entry.get("features") != list(FEATURES):
            return None
        n, rows, scale = len(FEATURES), np.array(entry["rows"], float), np.array(entry["scale"], float)
        return cls(rows.reshape(-1, n + 1), scale.reshape(n), float(entry["tolerance"]))

    def to_plain(self) -> dict[str, Any]:
        """The entry of a checkpoint, in plain builtins."""
        numbers = {"rows": self.rows.round(4).tolist(), "scale": self.scale.tolist(), "tolerance": self.tolerance}
        return {"features": list(FEATURES), **numbers}

    def differences(self, image: Array) -> list[str]:
        """How an image (H, W) or (H, W, C) differs from the training images, in ASCII, the largest difference first;
        empty if it does not, or is too small to tell."""
        row = measure(image)
        return [] if row is None else self.compare(row)

    def compare(self, row: Floats) -> list[str]:
        """The same from what `measure` gives."""
        step = _nearest(row, self.rows, self.scale)
        if step is None:
            known = " or ".join(f"{n:.0f}" for n in np.unique(self.rows[:, 0]))
            return [f"{row[0]:.0f} channel{'' if row[0] == 1 else 's'} instead of {known}"]
        if np.linalg.norm(step) <= self.tolerance:
            return []
        if row[1 + list(FEATURES).index("octave 3")] <= NOTHING:
            return ["hardly anything to be seen (is it blank?)"]
        part = {names: step[[list(FEATURES).index(name) for name in names]] for names in LESS_MORE}
        size = {names: float((part[names] ** 2).sum()) for names in part}
        largest = sorted(size, key=size.__getitem__, reverse=True)[:NAMED]
        return [LESS_MORE[k][int(part[k][:2].sum() > 0)] for k in largest if size[k] >= size[largest[0]] / 2]


def _nearest(row: Floats, rows: Floats, scale: Floats) -> Floats | None:
    """Difference (F,) to the nearest row of as many channels, in units of `scale`; None if there is none."""
    steps = (row[1:] - rows[rows[:, 0] == row[0], 1:]) / scale
    return steps[(steps**2).sum(axis=1).argmin()] if len(steps) else None


def measure_parts(image: Array, n_parts: int, seed: int) -> list[Floats]:
    """Rows of an image and of random parts of it, with sides of 0.3 to 0.9 of its own."""
    rng, parts = np.random.default_rng(seed), [image]
    for share in rng.uniform(0.3, 0.9, n_parts):
        height, width = (min(side, max(SMALLEST, round(share * side))) for side in image.shape[:2])
        top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
        parts.append(image[top : top + height, left : left + width])
    return [row for part in parts if (row := measure(part)) is not None]


def measure(image: Array) -> Floats | None:
    """Channels and FEATURES, (1 + F,), of an image (H, W) or (H, W, C); None if it is tiny or has no data."""
    greys, colours, spread = [], [], []
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32
        for window in _windows(image):
            planes = cv2.split(window)
            greys.append(np.sum(planes, axis=0) / np.float32(len(planes)))
            colours.append([plane.mean() for plane in planes])
            spread.append(max(np.abs(plane - greys[-1]).mean() for plane in planes))
    if not greys or not np.isfinite(colours).all():
        return None
    in_use = max(grey.max() for grey in greys) - min(grey.min() for grey in greys)
    n_channels = 1 if np.mean(spread) <= GREY * in_use else len(colours[0])
    mean, deviation = (float(each[0, 0]) for each in cv2.meanStdDev(np.concatenate(greys)))
    deviation = max(deviation, 0.3 if image.dtype.kind in "bui" else 1e-6 * abs(mean), 1e-30)  # that of rounding
    cube, diagonal, energy, cubes = np.split(
        np.mean([_detail((grey - mean) / np.float32(deviation)) for grey in greys], axis=0), [1, 2, 6]
    )
    first, last = np.mean(colours, axis=0)[[0, -1]]
    of_all, first, last = (max(value, 0) + 0.05 * deviation for value in (mean, first, last))
    brightness = max(mean, 0) / unit_of(image.dtype) + 0.004
    shares = [brightness, deviation / (abs(mean) + deviation), *(energy + 1e-5), diagonal[0] + 1e-5]
    logs = np.log2([*shares, first / of_all, last / of_all])
    skews = np.arcsinh([*cube, *(cubes / (energy[1:3] + 1e-5) ** 1.5)])
    return np.array([n_channels, *logs[:2], skews[0], *logs[2:7], *skews[1:], *logs[7:]])


def _windows(image: Array) -> Iterator[npt.NDArray[np.float32]]:
    """Windows (h, w, C) of one size, evenly over an image. Pixels without data are given the mean of the others; a
    window with few others is left out."""
    image = image.reshape(*image.shape[:2], -1)
    if image.dtype == np.uint8 and image.shape[2] == 4:  # RGBA
        image = image[:, :, :3]
    step = max(1, max(image.shape[:2]) // 1024)
    framed = without_data(image[::step, ::step])
    if framed is not None:
        rows, columns = (np.flatnonzero(~framed.all(axis=axis)) * step for axis in (1, 0))
        image = image[rows[0] : rows[-1] + step, columns[0] : columns[-1] + step] if rows.size else image[:0]
    if min(image.shape[:2]) < SMALLEST:
        return
    for top, height in _spans(image.shape[0]):
        for left, width in _spans(image.shape[1]):
            part = image[top : top + height, left : left + width]
            window = part.astype(np.float32)
            missing = without_data(part) if part.dtype.kind == "f" else None
            if missing is not None:
                if missing.mean() > 0.5:
                    continue
                window[missing] = window[~missing].mean(axis=0)
            yield window


def _spans(side: int) -> list[tuple[int, int]]:
    count = min(GRID, side // SMALLEST)
    size = min(WINDOW, side // count)
    return [(round(start), size) for start in np.linspace(0, side - size, count).tolist()]


def _detail(grey: npt.NDArray[np.float32]) -> list[float]:
    """Moments of a normalised window: mean cube; mean square of diagonal differences; mean squares of four octaves, and
    mean cubes of the second and third."""
    squares: list[float] = []
    cubes: list[float] = []
    level: Array = grey
    for _ in range(4):
        smaller = cv2.pyrDown(level)
        octave = level - cv2.pyrUp(smaller, dstsize=level.shape[::-1])
        squares.append(float(np.vdot(octave, octave)) / octave.size)
        cubes.append(float(np.vdot(octave * octave, octave)) / octave.size)
        level = smaller
    diagonal = np.diff(np.diff(grey, axis=0), axis=1)
    cube = float(np.vdot(grey * grey, grey)) / grey.size
    return [cube, float(np.vdot(diagonal, diagonal)) / diagonal.size, *squares, *cubes[1:3]]
