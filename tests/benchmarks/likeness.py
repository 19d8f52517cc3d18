"""Warnings for images unlike the training images:  python tests/benchmarks/likeness.py DATA --n 2 8 --draws 8

DATA holds the folders of SETS. In each draw some images of a set stand for training images; the others of it should
raise no warning, and those of other sets should. Prints, for each number of training images, the share of images with
a warning (rows: trained on; columns: seen), and what changed images of the same set raise. No model is trained: the
statistics of `unet.likeness` are all there is.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from unet import imaging
from unet.likeness import PARTS, Floats, Likeness, measure, measure_parts

Array = npt.NDArray[Any]

SETS = ("isbi2012", "drive", "chase", "nuclei", "vnc", "camvid")


def part(image: Array, share: float, seed: int = 0) -> Array:
    """A random part with sides of this share of the image's."""
    height, width = (round(share * side) for side in image.shape[:2])
    rng = np.random.default_rng([seed, image.size])
    top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def jpeg(image: Array, quality: int) -> Array:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_UNCHANGED)


def resized(image: Array, factor: float) -> Array:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)


CHANGES: dict[str, Callable[[Array], Array]] = {
    "turned by 90 degrees": lambda image: np.rot90(image).copy(),
    "a part, sides x 0.7": lambda image: part(image, 0.7),
    "a part, sides x 0.5": lambda image: part(image, 0.5),
    "a part, sides x 0.33": lambda image: part(image, 0.33),
    "upper left quarter": lambda image: image[: image.shape[0] // 2, : image.shape[1] // 2],
    "16 bits": lambda image: image.astype(np.uint16) * 257,
    "brightness x 0.8": lambda image: (image * 0.8).round().astype(np.uint8),
    "JPEG, quality 90": lambda image: jpeg(image, 90),
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "blurred, sigma 1.5": lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
    "shrunk to a half": lambda image: resized(image, 0.5),
    "enlarged by 2": lambda image: resized(image, 2),
    "inverted": lambda image: 255 - image,
    "noise, deviation 15": lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 15, image.shape), 0, 255
    ).astype(np.uint8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--n", nargs="+", default=["2", "4", "8", "half"], help="training images, or half of a set")
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    images = {
        name: [imaging.read(path).pages[0] for path in sorted((arguments.data / name / "Training_Images").iterdir())]
        for name in SETS
    }
    parts = {name: [measure_parts(image, PARTS, i) for i, image in enumerate(images[name])] for name in SETS}
    changed = {
        name: {change: [measure(changing(image)) for image in images[name]] for change, changing in CHANGES.items()}
        for name in SETS
    }
    for n in arguments.n:
        models = {name: list(draw(parts[name], n, arguments.draws)) for name in SETS}
        print(f"\n| {n} images of | " + " | ".join(SETS) + " |\n|---" + "|---" * len(SETS) + "|")
        for trained in SETS:
            whole = {seen: [rows[0] for rows in parts[seen]] for seen in SETS}
            found = [said_first(models[trained], whole[seen], seen == trained) for seen in SETS]
            print(f"| {trained} | " + " | ".join(map(share, found)) + " |")
        print(f"\n| {n} images; others of the set | " + " | ".join(SETS) + " | said first |\n" + "|---" * 8 + "|")
        for change in CHANGES:
            found = [said_first(models[name], changed[name][change], True) for name in SETS]
            total = sum(found, Counter[str]())
            del total[""]
            words = ", ".join(f"{said.partition(' (')[0]} {k / total.total():.0%}" for said, k in total.most_common(2))
            print(f"| {change} | " + " | ".join(map(share, found)) + f" | {words} |", flush=True)


def draw(parts: list[list[Floats]], n: str, k: int) -> Iterator[tuple[set[int], Likeness]]:
    """Positions of n of all images, or of half of them, and their statistics, k times."""
    rng = np.random.default_rng(len(parts))
    for _ in range(k):
        drawn = rng.permutation(len(parts))[: len(parts) // 2 if n == "half" else int(n)].tolist()
        likeness = Likeness.fit([parts[i] for i in drawn], standardised=True)
        assert likeness
        yield set(drawn), likeness


def said_first(models: list[tuple[set[int], Likeness]], rows: list[Floats | None], same: bool) -> Counter[str]:
    """The first difference of each image by each model, "" for none; in the same set of images that it has not seen."""
    return Counter(
        next(iter(likeness.compare(row)), "")
        for drawn, likeness in models
        for i, row in enumerate(rows)
        if row is not None and not (same and i in drawn)
    )


def share(said: Counter[str]) -> str:
    return f"{1 - said[''] / max(1, said.total()):.0%}"


if __name__ == "__main__":
    main()
