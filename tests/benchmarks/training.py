"""Speed of training steps:  python tests/benchmarks/training.py DATA [--steps 20] [--json FILE]

The default recipe, by default at base 64 with batches of 16 crops of 512 x 512. Prints images per second; the share of
the peak that forward and backward pass reach (peak: the faster of one large matrix product and one large convolution in
the same precision; a step counts as three forward passes); the share of time for crops and augmentation; and memory.
"""

import argparse
import json
import math
import resource
import time
from dataclasses import replace
from pathlib import Path

import unet.engines.process  # noqa: F401  isort: skip  (before torch)
import torch
from model import peak
from torch.utils.flop_counter import FlopCounterMode

from trainer.data import Batches, read_folder
from trainer.fit import train_epoch
from trainer.learner import Learner
from trainer.recipes import RECIPES
from trainer.schedule import Schedule
from trainer.stop import Stop
from unet.device import device_name, resolve_device
from unet.pixels import Preprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--base-channels", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    recipe = replace(
        RECIPES["default"],
        base_channels=arguments.base_channels,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        min_steps=arguments.steps,
    )
    device = resolve_device("auto")
    data = read_folder(arguments.data)
    network = recipe.build(data.n_channels, data.n_classes).to(device)
    learner = Learner(network, recipe)
    preprocessing = Preprocessing(input_range=recipe.input_range, standardise=recipe.standardise)
    batches = Batches(data.samples, network, preprocessing, recipe, seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(next(batches.epoch(1)).images[:1])
    gflop = 3 * recipe.batch_size * counter.get_total_flops() / 1e9
    schedule = Schedule(recipe, max_minutes=None)
    for epoch in (1, 2):  # the first one warms up
        row = train_epoch(learner, batches, epoch, schedule, 0.0, math.inf, Stop())
    seconds = row["training_seconds"]
    started = now(device)  # once more without steps, since a GPU overlaps the two
    for _ in batches.epoch(3):
        pass
    augmenting = now(device) - started
    dtype = torch.bfloat16 if learner.mixed else torch.float32
    results = {
        "device": device_name(device),
        "recipe": f"base {recipe.base_channels}, {recipe.batch_size} x {recipe.image_size} x {recipe.image_size}",
        "precision": "bf16" if learner.mixed else "fp32",
        "images/s": row["crops"] / seconds,
        "gflop per step": gflop,
        "% of peak": 100 * gflop * len(batches) / seconds / peak(device, dtype),
        "% augmentation": 100 * augmenting / seconds,
        "memory MiB": peak_memory(device) / 2**20,
    }
    for name, value in results.items():
        print(f"{name:16}{value:.4g}" if isinstance(value, float) else f"{name:16}{value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def now(device: torch.device) -> float:
    """Time in seconds, when all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or of this process (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
