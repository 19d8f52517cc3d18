"""Width and length of a run that the flags leave open: what a CPU can do in half an hour, found by timing a few steps.

On a GPU that is all of the recipe, and nothing is timed.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from trainer.data import Batches, DataSet, Sample
from trainer.folder import LAST
from trainer.learner import Learner
from trainer.muon import suited
from trainer.recipes import Recipe
from trainer.settings import TrainSettings
from unet import checkpoint as checkpoints
from unet.checkpoint import CheckpointError
from unet.device import device_name, out_of_memory
from unet.pixels import Preprocessing

MINUTES = 28.0  # of half an hour: the rest is for reading, validation and the report
WIDTHS = (16, 32, 64)  # base channels
ENOUGH_STEPS = 4000
"""Optimiser steps that a width should have: small data sets were learned well in 2000 to 3000 steps at base 16."""
TIMED_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """A choice of width and length; part of a run's identity, so that a resumed run keeps it."""

    base_channels: int
    max_minutes: float | None  # None: all epochs of the recipe


def plan(
    settings: TrainSettings, recipe: Recipe, data: DataSet, samples: list[Sample], device: torch.device
) -> Plan | None:
    """The plan of this run as it began, or a new one; None if there is nothing to choose."""
    if not is_open(settings, device):
        return None
    if before := begun(settings)[0]:
        return replace(before, max_minutes=settings.max_minutes or before.max_minutes)
    return choose(settings, recipe, data, samples, device)


def is_open(settings: TrainSettings, device: torch.device) -> bool:
    """Whether there is a choice: the recipe `default` on a CPU, no flag that sets its width or its epochs, and no
    torchrun, after whose restarts there may be more or fewer processes."""
    asked = settings.base_channels or settings.epochs or settings.init_from
    return settings.recipe == "default" and not asked and device.type != "cuda" and not dist.is_torchelastic_launched()


def minutes(settings: TrainSettings, device: torch.device) -> float | None:
    """How long the run may take; None if the epochs decide."""
    return settings.max_minutes or (MINUTES if is_open(settings, device) else None)


def optimizer(settings: TrainSettings, recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with the optimiser that suits the device; a resumed run keeps its own, whatever the device."""
    _, before = begun(settings)
    return recipe.override(optimizer=before) if before and recipe.optimizer == "muon" else suited(recipe, device)


def begun(settings: TrainSettings) -> tuple[Plan | None, str | None]:
    """Plan and optimiser of an interrupted or finished run of the same recipe in --out; None where there is none that
    can be read, or none with an epoch."""
    with suppress(CheckpointError, KeyError, TypeError):
        state = {} if settings.force else checkpoints.read(settings.out / LAST)[0]
        run = state["run"]
        if state["progress"]["epoch"] and run["recipe"]["name"] == settings.recipe:
            return Plan(**run["plan"]) if run["plan"] else None, str(run["recipe"]["optimizer"])
    return None, None


def choose(settings: TrainSettings, recipe: Recipe, data: DataSet, samples: list[Sample], device: torch.device) -> Plan:
    """The widest network with ENOUGH_STEPS in the time. Prints it, and the flags that ask for more."""
    minutes = settings.max_minutes or MINUTES
    for width in WIDTHS:
        try:
            seconds, epoch = time_step(replace(recipe, base_channels=width), data, samples, device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or width == WIDTHS[0]:
                raise
            break
        if width > WIDTHS[0] and 60 * minutes / seconds < ENOUGH_STEPS:
            break
        chosen, steps, whole = width, 60 * minutes / seconds, seconds * epoch * recipe.epochs / 60
    if whole <= minutes:
        print(
            f"length    base {chosen}, all {recipe.epochs} epochs: about {whole:.0f} minutes on {device_name(device)}"
        )
        return Plan(chosen, settings.max_minutes)
    all_of_it = whole * (recipe.base_channels / chosen) ** 2 / 60
    print(
        f"length    base {chosen} for {minutes:g} minutes: about {steps:.0f} steps on {device_name(device)}. All of "
        f"the recipe would take about {all_of_it:.0f} hours: --base-channels {recipe.base_channels} --epochs "
        f"{recipe.epochs}. More time: --max-minutes 120",
        flush=True,
    )
    return Plan(chosen, minutes)


def time_step(recipe: Recipe, data: DataSet, samples: list[Sample], device: torch.device) -> tuple[float, int]:
    """Seconds of a training step, its crops included, and the number of steps in an epoch."""
    network = recipe.build(data.n_channels, data.n_classes).to(device)
    learner = Learner(network, recipe)
    batches = Batches(samples, network, Preprocessing(standardise=recipe.standardise), recipe, seed=0)
    times = []
    crops = batches.epoch(0)
    for _ in range(1 + TIMED_STEPS):
        started = time.monotonic()
        learner.step(next(crops), recipe.lr).item()
        times.append(time.monotonic() - started)
    return min(times[1:]), len(batches)  # the first one allocates memory
