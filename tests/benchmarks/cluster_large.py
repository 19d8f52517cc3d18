"""One large image with `unet-segment --engine ray`:  python tests/benchmarks/cluster_large.py MODEL [--side 20000]

A tiled TIFF of SIDE x SIDE pixels, 8-bit grey, on one core by the local engine, and on two nodes of one core each: the
seconds of both runs, whole processes with reading and writing, and the largest memory of the program and of an actor.
Exit status 1 if the answers differ, or if no object lies across a seam.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile
from cluster_batch import CORES, ONE_THREAD, actors_of_this_cluster, memory, nodes

from unet import imaging
from unet.tiles import CONTEXT, cut

EVERY_S = 0.2
TILE = 896


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--side", type=int, default=20_000, metavar="PIXELS")
    parser.add_argument("--output", default="mask")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image(folder / "large.tif", arguments.side)
        command = [sys.executable, "-m", "batch", str(folder / "large.tif"), "--output", arguments.output]
        command += ["--model", str(arguments.model.resolve()), "--out"]
        os.sched_setaffinity(0, CORES[:1])
        seconds = [run([*command, str(folder / "local")], os.environ | ONE_THREAD)]
        os.sched_setaffinity(0, CORES)
        with nodes() as address:
            environment = {**os.environ, "RAY_ADDRESS": address}
            seconds.append(run([*command, str(folder / "ray"), "--engine", "ray"], environment))
        wrong = differences(folder)
    one, two = seconds
    print(f"{one:.0f} s on one core, {two:.0f} s on two nodes of one core each: {one / two:.2f} times as fast")
    print("\n".join(wrong) or "answers: the same")
    return 1 if wrong else 0


def write_image(path: Path, side: int) -> None:
    """Spots, repeated."""
    rng = np.random.default_rng(0)
    spots = cv2.GaussianBlur(rng.normal(size=(2000, 2000)).astype(np.float32), (0, 0), 6)
    picture = (127 + 40 * spots / spots.std()).clip(0, 255).astype(np.uint8)
    image = np.tile(picture, (-(-side // 2000),) * 2)[:side, :side]
    tifffile.imwrite(path, image, tile=(512, 512), compression="zlib")
    print(f"image: {path.stat().st_size / 1e6:.0f} MB, {image.nbytes / 1e6:.0f} MB of pixels", flush=True)


def run(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a whole run. Prints its largest memory."""
    largest = [0.0, 0.0]
    started = time.monotonic()
    program = subprocess.Popen(command, env=environment)
    while program.poll() is None:
        time.sleep(EVERY_S)
        largest = [
            max(largest[0], memory(program.pid)),
            max([largest[1], *map(memory, actors_of_this_cluster("ray::"))]),
        ]
    seconds = time.monotonic() - started
    assert program.returncode == 0
    print(f"{seconds:.0f} s, at most {largest[0]:.0f} MiB of the program, {largest[1]:.0f} MiB of an actor", flush=True)
    return seconds


def differences(folder: Path) -> list[str]:
    names = sorted(path.name for path in (folder / "local").glob("large*"))
    wrong = [name for name in names if (folder / "local" / name).read_bytes() != (folder / "ray" / name).read_bytes()]
    answers = [name for name in names if name in ("large_mask.tif", "large_labels.tif")]
    (page,) = imaging.read(folder / "ray" / answers[0]).pages
    seams = [span.keep_stop for span in cut(len(page), TILE, CONTEXT)[:-1]]
    across = sum(int(((page[seam - 1] == page[seam]) & (page[seam] > 0)).sum()) for seam in seams)
    print(f"{across} pixels of objects on {len(seams)} seams go on below")
    return [f"{name} differs" for name in wrong] + ["no object lies across a seam"] * (not across)


if __name__ == "__main__":
    sys.exit(main())
