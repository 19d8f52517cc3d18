"""Seconds and memory of the answers that list objects:  python tests/benchmarks/objects.py [--borders]

A page of probabilities with blobs at random places, some of which touch, is answered in each kind, each in a process of
its own. Milliseconds are of CPU. Peak memory is beyond that of the page and its probabilities; `find` is what all kinds
have in common.
"""

import argparse
import multiprocessing
import resource
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from unet.imaging import Picture
from unet.outputs import KINDS, Legend, Results
from unet.outputs.objects import of_pages

LEGEND = Legend(
    threshold=0.5,
    class_values=(0, 255),
    class_names=("background", "foreground"),
    class_colours=((0, 0, 0), (255, 138, 0)),
    objects=False,
    min_area=10,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, metavar="N", help="pixels, %(default)s")
    parser.add_argument("--objects", type=int, default=50_000, metavar="N", help="blobs on the page, %(default)s")
    parser.add_argument("--borders", action="store_true", help="as a model answers that has learned borders")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of `find` and the kinds of answers")
    arguments = parser.parse_args()
    kinds = arguments.kinds or ["find", *(name for name, kind in KINDS.items() if kind.wants == "objects")]
    print(f"{'kind':10} {'seconds':>8} {'of CPU':>7} {'ms/blob':>8} {'peak MiB':>9} {'answer':>14}")
    for kind in kinds:
        work = multiprocessing.get_context("spawn").Process(
            target=measure, args=(kind, arguments.side, arguments.objects, arguments.borders)
        )
        work.start()
        work.join()


def measure(kind: str, side: int, n: int, borders: bool) -> None:
    """Prints the row of a kind."""
    probability = page(side, n)
    picture = Picture([(probability * 200).astype(np.uint8)], "YX")
    pages = [np.stack([probability, probability - 0.2])] if borders else [probability]
    results = Results(pages, picture, replace(LEGEND, objects=borders), "page.png")
    before, started, cpu = peak(), time.perf_counter(), time.process_time()
    if kind == "find":
        said = f"{sum(len(found.area) for found in of_pages(results))} objects"
    else:
        said = f"{len(KINDS[kind].encode(results).body) / 2**20:.1f} MiB"
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    row = f"{kind:10} {seconds:8.1f} {cpu:7.1f} {1000 * cpu / n:8.3f} {peak() - before:9.0f} {said:>14}"
    print(row, flush=True)


def page(side: int, n: int) -> npt.NDArray[np.float32]:
    """Probabilities (side, side) of n ellipses with half axes of 6 to 12 pixels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-14:15, -14:15].astype(np.float32)
    probability = np.zeros((side, side), np.float32)
    for row, column in rng.integers(0, side - 29, (n, 2)):
        a, b = rng.uniform(6, 12, 2)
        blob = np.clip(1.25 - (x / a) ** 2 / 1.5 - (y / b) ** 2 / 1.5, 0, 1)
        around = probability[row : row + 29, column : column + 29]
        np.maximum(around, blob, out=around)
    return probability


def peak() -> float:
    """Peak resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
