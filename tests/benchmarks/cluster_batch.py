"""`unet-segment --engine ray` on two nodes of one core each:  python tests/benchmarks/cluster_batch.py MODEL [--kill]

Masks of 10,000 synthetic images of 256 x 256 pixels: images per second and core, from the first answers on, against a
plain loop in one thread of one process (read the file, `Predictor.predict`, encode, write). The loop runs before and
after, alone on a core and then on both at a time. And the largest memory so far of the program and of an actor, as the
run goes on. `--kill` kills an actor at the half. Exit status 1 if a mask is missing, there twice, or not the loop's.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

SIDE = 256
CORES = sorted(os.sched_getaffinity(0))[:2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
EVERY_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=10_000, metavar="N")
    parser.add_argument("--loop", type=int, default=500, metavar="N", help="images of the plain loop, %(default)s")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--as-loop", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_loop:
        print(loop(arguments.model, *arguments.as_loop, arguments.loop))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), arguments.model.resolve()
        write_images(folder / "images", arguments.images)
        alone, both = [], []

        def loops() -> None:
            alone.append(plain(model, folder, arguments.loop, CORES[:1]))
            both.append(plain(model, folder, arguments.loop, CORES))

        loops()
        with nodes() as address:
            rate, wrong = segment(address, model, folder, arguments.images, arguments.kill)
        loops()
        wrong += differences(folder, arguments.images)
    n_cores = len(CORES)
    per_core = rate / n_cores
    print(f"plain loop, alone           {statistics.mean(alone):8.4g} images/s")
    print(f"plain loop, on {n_cores} core(s)    {statistics.mean(both):8.4g} images/s and core")
    print(f"--engine ray                {per_core:8.4g} images/s and core")
    print(f"  of the loop alone         {per_core / statistics.mean(alone):8.3f}")
    print(f"  of the loops on all cores {per_core / statistics.mean(both):8.3f}")
    print("\n".join(wrong) or "masks: all there, once, and the loop's")
    return 1 if wrong else 0


def write_images(folder: Path, n: int) -> None:
    """Cuttings of a large picture of spots."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    spots = cv2.GaussianBlur(rng.normal(size=(4096, 4096)).astype(np.float32), (0, 0), 4)
    picture = (127 + 40 * spots / spots.std()).clip(0, 255).astype(np.uint8)
    for i, (top, left) in enumerate(rng.integers(0, 4096 - SIDE, (n, 2))):
        assert cv2.imwrite(str(folder / f"{i}.png"), picture[top : top + SIDE, left : left + SIDE])


def plain(model: Path, folder: Path, n: int, cores: list[int]) -> float:
    """Images per second of a loop on each of these cores; the mean."""
    command = [sys.executable, __file__, str(model), "--loop", str(n), "--as-loop", str(folder / "images")]
    loops = []
    for core in cores:
        os.sched_setaffinity(0, {core})
        environment = {**os.environ, **ONE_THREAD}
        out = str(folder / f"loop{core}")
        loops.append(subprocess.Popen([*command, out], env=environment, stdout=subprocess.PIPE, text=True))
    os.sched_setaffinity(0, CORES)
    return statistics.mean(float(each.communicate()[0]) for each in loops)


def loop(model: Path, images: Path, out: Path, n: int) -> float:
    from unet import Predictor, imaging
    from unet.outputs import KINDS, Legend, Results

    out.mkdir(exist_ok=True)
    predictor, kind = Predictor.load(model), KINDS["mask"]
    legend = Legend.of(predictor)
    for n_images in (10, n):  # the first warm up
        started = time.perf_counter()
        for i in range(n_images):
            picture = imaging.read((images / f"{i}.png").read_bytes())
            pages = [predictor.predict(page, kind.wants) for page in picture.pages]
            (out / f"{i}_mask.png").write_bytes(kind.encode(Results(pages, picture, legend)).body)
    return n / (time.perf_counter() - started)


@contextmanager
def nodes() -> Iterator[str]:
    """The address of a cluster of two nodes, each with its processes on a core of its own, if there are two."""
    from ray.cluster_utils import Cluster

    os.environ |= ONE_THREAD | {"RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster()
    try:
        for core in (CORES[0], CORES[-1]):
            os.sched_setaffinity(0, {core})
            cluster.add_node(num_cpus=1, object_store_memory=200 << 20, include_dashboard=False)
        os.sched_setaffinity(0, CORES)
        yield cluster.address
    finally:
        cluster.shutdown()


def segment(address: str, model: Path, folder: Path, n: int, kill: bool) -> tuple[float, list[str]]:
    """Images per second since the first answers, and what is wrong."""
    out = folder / "masks"
    manifest = out / ".unet-segment" / "manifest.jsonl"
    command = [sys.executable, "-m", "batch", str(folder / "images"), "--model", str(model), "--out", str(out)]
    program = subprocess.Popen([*command, "--engine", "ray"], env={**os.environ, "RAY_ADDRESS": address})
    begun, first, largest, done, shown, killed = time.monotonic(), (0.0, 0), [0.0, 0.0], 0, 0, False
    while program.poll() is None:
        time.sleep(EVERY_S)
        actors = actors_of_this_cluster()
        largest[0] = max(largest[0], memory(program.pid))
        largest[1] = max([largest[1], *map(memory, actors)])
        done = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
        if done and not first[1]:
            first = time.monotonic(), done
        if 4 * done // n > shown:
            shown = 4 * done // n
            print(f"{done:6} images: at most {largest[0]:.0f} MiB program, {largest[1]:.0f} MiB actor", flush=True)
        if kill and not killed and 2 * done >= n:
            os.kill(actors[0], signal.SIGKILL)
            killed = True
            print(f"{done:6} images: killed an actor", flush=True)
    ended = time.monotonic()
    print(f"whole run {ended - begun:.0f} s, {first[0] - begun:.0f} s of it until the first answers", flush=True)
    wrong = [f"exit status {program.returncode}"] if program.returncode else []
    return (n - first[1]) / (ended - first[0]), wrong + ["no actor was killed"] * (kill and not killed)


def actors_of_this_cluster(title: str = "ray::MapWorker") -> list[int]:
    """Processes that hold the model: children of a node's, which is a child of this process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    found = [line.split(maxsplit=2) for line in listed.splitlines()]
    ours = {pid for pid, parent, _ in found if parent == str(os.getpid())}
    return [int(pid) for pid, parent, text in found if parent in ours and text.startswith(title)]


def memory(pid: int) -> float:
    """Resident memory in MiB."""
    try:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024
    except (OSError, IndexError):  # it has just ended
        return 0


def differences(folder: Path, n: int) -> list[str]:
    """What is wrong with the masks of the run."""
    out = folder / "masks"
    stems = [json.loads(line)["stem"] for line in (out / ".unet-segment" / "manifest.jsonl").open()]
    there = {path.name for path in out.glob("*")} - {".unet-segment"}
    wrong = [f"{n} images, {len(stems)} lines in the manifest of {len(set(stems))} images"] * (
        not n == len(stems) == len(set(stems))
    )
    wrong += [f"{len(there)} masks"] * (there != {f"{i}_mask.png" for i in range(n)})
    wrong += ["staged answers are left"] * any((out / ".unet-segment" / "new").iterdir())
    of_loop = folder / f"loop{CORES[0]}"
    return wrong + [
        f"{path.name}: not the loop's"
        for path in of_loop.iterdir()
        if path.read_bytes() != (out / path.name).read_bytes()
    ]


if __name__ == "__main__":
    sys.exit(main())
