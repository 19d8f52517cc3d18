"""Cost and effect of tiles:  python tests/benchmarks/large.py MODEL DATA [--side 4096] [--whole 1536] [--json FILE]

The first image of DATA is extended to a square by mirroring. Prints for `--side` the seconds and the peak memory
beyond that of the loaded model; and for the smaller `--whole`, which is also computed without tiles, the largest
difference between probabilities, the share of pixels of the mask that differ, and the ratio of times.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import unet.engines.process  # noqa: F401  isort: skip  (before torch)
import numpy as np

from trainer.data import read_folder
from unet import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--whole", type=int, default=1536)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = read_folder(arguments.data).samples[0].image
    predictor = Predictor.load(arguments.model)
    predictor.mask(image[:64, :64])
    idle = peak()
    large = square(image, arguments.side)
    started = time.perf_counter()
    predictor.mask(large)
    row = {
        "base": predictor.network.config.base_channels,
        "bilinear": predictor.network.config.bilinear,
        "precision": predictor.precision,
        "tile": predictor.tile,
        "seconds": time.perf_counter() - started,
        "MiB above idle": peak() - idle,
    }
    small = square(image, arguments.whole)
    started = time.perf_counter()
    tiled = predictor(small)
    between = time.perf_counter()
    predictor.tile = 2 * arguments.whole
    whole = predictor(small)
    row |= {
        "largest difference": float(np.abs(tiled - whole).max()),
        "mask differs %": 100 * float(((tiled > predictor.threshold) != (whole > predictor.threshold)).mean()),
        "time against whole": (between - started) / (time.perf_counter() - between),
    }
    for name, value in row.items():
        print(f"{name:20} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=2) + "\n")


def square(image: Any, side: int) -> Any:
    height, width = image.shape[:2]
    pad = ((0, max(0, side - height)), (0, max(0, side - width))) + ((0, 0),) * (image.ndim - 2)
    return np.pad(image, pad, mode="symmetric")[:side, :side]


def peak() -> float:
    """Peak resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
