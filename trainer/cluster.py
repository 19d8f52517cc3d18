"""`--engine ray`: the runs of --fold all or --curve as tasks of a Ray cluster, each on a core or a GPU of its own.

The images travel through Ray; --out is on storage that all nodes share. A task whose process or node dies is tried
again, and goes on from `last.pth`.
"""

import os
import pickle
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError

from trainer.curve import Point
from trainer.folder import claim
from trainer.heartbeat import Heartbeat
from trainer.recipes import Recipe
from trainer.run import Part, conclude, memory_advice, prepare, train_part
from trainer.settings import TrainSettings
from trainer.stop import Stop
from unet.cluster import join
from unet.device import resolve_device
from unet.errors import UserError

LOG = "log.txt"


def run(settings: TrainSettings, recipe: Recipe, stop: Stop) -> None:
    """Read the data here, and train on the cluster. Raises UserError, and Stopped."""
    if not (settings.curve or settings.fold == "all") or dist.is_torchelastic_launched():
        raise UserError("--engine ray: expected --fold all or --curve, and no torchrun, which shares out a single run")
    kind, _ = join(settings.device)
    device = settings.device if settings.device != "auto" else {"GPU": "cuda", "CPU": "cpu"}[kind]
    try:
        with claim(settings.out):
            torch.set_num_threads(1)  # as a task has: `prepare` may time some steps
            conclude(settings, train_parts(prepare(settings, recipe, torch.device(device)), device, stop))
    finally:
        ray.shutdown()


def train_parts(parts: list[Part], device: str, stop: Stop) -> list[Point]:
    """Train on the cluster, and print a line for each run that ends. Raises UserError that names those that failed, and
    Stopped."""
    n_gpus = int(device.startswith("cuda"))
    kind = "GPU" if n_gpus else "core"
    print(f"cluster   {len(parts)} runs, each on a {kind}; what they print is in {LOG} in their folders", flush=True)
    task: Any = ray.remote(max_calls=1, num_cpus=1, num_gpus=n_gpus)(train_there)  # a new process for each
    # pickled here: arrays of Ray's object store are read-only, which torch does not take
    shared, here = ray.put(pickle.dumps(parts)), Path.cwd()
    runs = {task.options(name=f"{p.settings.out}").remote(shared, i, device, here): i for i, p in enumerate(parts)}
    points, failed, waiting = dict[int, Point](), [], list(runs)
    with stop.defer():  # Ray swallows what a signal handler raises
        while waiting and not stop.signal:
            done, waiting = ray.wait(waiting, timeout=1)
            for each in done:  # at most one
                i, out = runs[each], parts[runs[each]].settings.out
                try:
                    points[i] = ray.get(each)
                    said = f"{out}: score {points[i].score:.4f}"
                except RayError as error:  # of another kind than RayTaskError: its process was killed again and again
                    cause = error.cause if isinstance(error, RayTaskError) else error
                    if not isinstance(cause, UserError | OSError | RayError):
                        raise
                    said = f"{out} failed: {str(cause).partition(chr(10))[0]}"
                    failed.append(said)
                print(f"          {said}", flush=True)
    if failed:
        raise UserError("; ".join(failed))
    return [points[i] for i in sorted(points)]


def train_there(shared: bytes, i: int, choice: str, folder: Path) -> Point:
    """One of the runs, on a node of the cluster, with its output in a file."""
    os.chdir(folder)
    part: Part = pickle.loads(shared)[i]  # noqa: S301  (from `train_parts`)
    out, device = part.settings.out, resolve_device(choice)
    out.mkdir(parents=True, exist_ok=True)
    with (
        (out / LOG).open("a", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
        memory_advice(part.recipe, device),
        Heartbeat(out) as heartbeat,
    ):
        return train_part(part, device, Stop(), heartbeat)
