"""Training under `kill -9`:  python tests/benchmarks/kills.py --kills 50

A short run is killed at random moments, alternately at any time and while a file is being written, and started again
until it is finished; then the next run begins. After every kill `best_model.pth` and `last.pth` are read, and each
finished run is compared weight by weight with one that was not killed. Exit status 1 if anything differs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import sample
from trainer.folder import BEST, LAST
from unet import checkpoint as checkpoints
from unet.checkpoint import CheckpointError
from unet.imaging import write_png

TINY = ["--recipe", "quick", "--base-channels", "2", "--image-size", "32", "--batch-size", "2", "--device", "cpu"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    arguments = parser.parse_args()
    chance = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data")
        command = [sys.executable, "-u", "-m", "trainer", *TINY, "--epochs", str(arguments.epochs)]
        command += ["--data", str(folder / "data"), "--out"]
        started = time.monotonic()
        subprocess.run([*command, str(folder / "whole")], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        print(f"a run without kills: {seconds:.1f} s", flush=True)

        kills, broken, finished, different = Counter[str](), Counter[str](), 0, 0
        moment = "not started yet"
        while kills.total() < arguments.kills or moment:  # the last run may finish
            out = folder / f"run{finished}"
            aimed = kills.total() % 2 == 1 if kills.total() < arguments.kills else None
            moment = start_and_kill([*command, str(out)], out, chance.uniform(0, seconds * 0.7), aimed)
            if moment:
                kills[moment] += 1
                broken.update(unreadable(out))
                print(f"kill {kills.total()}: {moment}", file=sys.stderr, flush=True)
            else:
                finished += 1
                different += list(result(out)) != list(result(folder / "whole"))
    print(f"kills                      {kills.total()}: " + ", ".join(f"{n} {when}" for when, n in kills.items()))
    print(f"runs finished              {finished}")
    print(f"{BEST} that failed  {broken[BEST]}")
    print(f"{LAST} that failed        {broken[LAST]}")
    print(f"final weights equal        {'no' if different else 'yes'}")
    return 1 if different or broken.total() else 0


def write_data(folder: Path) -> None:
    for part in ("Training_Images", "Training_Labels"):
        (folder / part).mkdir(parents=True)
    for i in range(4):
        image, label = sample.generate(np.random.default_rng(i), 40)
        (folder / "Training_Images" / f"{i}.png").write_bytes(write_png(image))
        (folder / "Training_Labels" / f"{i}.png").write_bytes(write_png(label))


def start_and_kill(command: list[str], out: Path, after: float, aimed: bool | None) -> str:
    """Kill the run after `after` seconds, or if `aimed` at the first file that it writes from then on; None: never.

    Returns the moment of the kill; an empty string if the run had finished.
    """
    left_before = set(out.glob(".*.tmp"))  # left by the kill before this one
    log = out.with_suffix(".log")
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as program:
        if aimed is not None:
            try:
                program.wait(after)
            except subprocess.TimeoutExpired:
                while aimed and program.poll() is None and not set(out.glob(".*.tmp")) - left_before:
                    pass
                program.kill()
    said = log.read_text()
    if program.returncode == 0:
        return ""
    if program.returncode != -9:
        sys.exit(f"expected a run that is killed or finishes, found status {program.returncode}:\n{said}")
    if set(out.glob(".*.tmp")) - left_before:
        return "while a file was written"
    if "finished: " in said or "epoch" not in said.partition("device")[2]:
        return "at the start"
    return "between epochs"


def unreadable(out: Path) -> Iterator[str]:
    """The files that exist but cannot be read, or a model that last.pth knows and that is missing."""
    if (out / LAST).exists():
        try:
            progress = checkpoints.read(out / LAST)[0]["progress"]
        except CheckpointError:
            yield LAST
            return
        if progress["epoch"] and not (out / BEST).exists():
            yield BEST
    if (out / BEST).exists():
        try:
            checkpoints.load(out / BEST)
        except CheckpointError:
            yield BEST


def result(out: Path) -> Iterator[Any]:
    """The result of a run without its times: weights, model, scores, threshold and names of files."""
    state = checkpoints.read(out / LAST)[0]
    model = checkpoints.load(out / BEST)
    for weights in (state["learner"]["network"], model.state_dict):
        yield {name: tensor.tolist() for name, tensor in weights.items()}
    yield [(row["epoch"], row["loss"], row.get("score")) for row in state["progress"]["history"]]
    yield model.threshold
    yield sorted(path.name for path in out.iterdir())


if __name__ == "__main__":
    sys.exit(main())
