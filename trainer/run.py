"""A training run, from settings to files: read, build, loop, save, account."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from trainer import pictures, report, world
from trainer.data import Batches, DataSet, Sample
from trainer.fit import TrainingError, train_epoch, validate
from trainer.folder import CURVES, Progress, RunFolder, claim
from trainer.inputs import divide, read
from trainer.learner import Learner
from trainer.recipes import Recipe
from trainer.schedule import Schedule
from trainer.settings import TrainSettings
from trainer.stop import Stop
from trainer.tensorboard import TensorBoard
from unet import Predictor, UNet
from unet.checkpoint import Checkpoint
from unet.device import out_of_memory
from unet.pixels import Preprocessing


def run(settings: TrainSettings, stop: Stop | None = None) -> None:
    """Train as the settings say. Raises UserError, OSError for a file that cannot be written, and Stopped."""
    recipe, stop = settings.resolved_recipe(), stop or Stop()
    with (
        world.join(settings.device) as device,
        claim(settings.out) if world.is_first() else nullcontext(),
        memory_advice(recipe, device),
    ):
        data = world.first_alone(lambda: read(settings))
        train, val = divide(settings, data)
        report.print_start(settings, recipe, device, data, train, val)
        parts = build(settings, recipe, device, data, train)
        progress = Progress() if settings.force else parts.folder.restore(parts.learner)
        if progress.finished and parts.folder.report.exists():
            print(f"already finished: {report.outcome(progress, parts.folder)}. To train again: --force")
            return
        with stop.defer():
            loop(parts, progress, val, stop)
        if world.is_first():
            report.account(parts.folder, recipe, data, val, progress, device)


@dataclass(frozen=True)
class Parts:
    """Everything that the loop needs, built before it starts."""

    settings: TrainSettings
    recipe: Recipe
    data: DataSet
    learner: Learner
    predictor: Predictor
    """Predicts with the learner's result, whose weights change with every step."""
    batches: Batches
    schedule: Schedule
    folder: RunFolder


def build(settings: TrainSettings, recipe: Recipe, device: torch.device, data: DataSet, train: list[Sample]) -> Parts:
    torch.manual_seed(settings.seed)
    network = recipe.build(data.n_channels, data.n_classes).to(device)
    learner = Learner(network, recipe)
    preprocessing = Preprocessing(input_range=recipe.input_range, standardise=recipe.standardise)
    batches = Batches(
        train,
        preprocessing,
        network.config.n_channels,
        len(data.class_values),
        recipe,
        margin=network.margin,
        seed=settings.seed,
        device=device,
    )
    return Parts(
        settings,
        recipe,
        data,
        learner,
        Predictor(cast(UNet, learner.result), preprocessing, class_values=data.class_values),
        batches,
        Schedule(recipe, len(batches), settings.max_minutes),
        RunFolder(settings.out, identity(settings, recipe, data)),
    )


def loop(parts: Parts, progress: Progress, val: list[Sample], stop: Stop) -> None:
    """Train, validate and save, an epoch at a time, from `progress` to the end of the schedule."""
    learner, predictor, schedule, folder = parts.learner, parts.predictor, parts.schedule, parts.folder
    board = None
    if progress.epoch:
        print(f"going on after epoch {progress.epoch}, where an earlier run was interrupted")
    if world.is_first():
        if parts.settings.tensorboard:
            board = TensorBoard(folder.path, progress.epoch + 1)
        folder.save_last(progress, learner)  # if the folder cannot be written, that is known now, not after an epoch
        folder.report.unlink(
            missing_ok=True
        )  # the report of an earlier run: as long as there is none, this one goes on
    throttle, unsaved_best = Throttle(), None
    stop.epoch = progress.epoch
    started = time.monotonic()
    while not progress.finished:
        row = train_epoch(learner, parts.batches, progress.epoch + 1, schedule, progress.elapsed, stop)
        trained = time.monotonic()
        result = validate(predictor, val, stop, learner.mixed)
        predictor.threshold = result.threshold
        validated = time.monotonic()
        row |= result.columns(predictor.class_values)
        row["validation_seconds"] = validated - trained
        row["seconds"] = world.broadcast(validated - started)  # and of saving the epoch before
        started = validated

        if improved := progress.add(row):
            unsaved_best = best_model(parts, row)
        progress.finished = schedule.finished(progress.epoch, progress.elapsed)
        if board:
            board.add(row)
        if world.is_first() and (progress.finished or throttle.due()):
            with throttle:
                save(parts, progress, unsaved_best)
            unsaved_best, stop.epoch = None, progress.epoch
        stop.epoch = int(world.broadcast(stop.epoch))
        report.print_epoch(row, parts.recipe.epochs, schedule.remaining(progress.epoch, progress.elapsed), improved)


def save(parts: Parts, progress: Progress, best: Checkpoint | None) -> None:
    """Write the files of the epochs so far; `best`: a best model that is not in its file yet."""
    folder, rows = parts.folder, progress.rows()
    if best:
        folder.save_best(best)
    folder.save_history(rows)
    folder.save_file(CURVES, pictures.curves(rows, parts.data.class_values))
    folder.save_last(
        progress, parts.learner
    )  # last: a run that dies before this line repeats the epoch, with all its files


def best_model(parts: Parts, row: dict[str, float]) -> Checkpoint:
    """A copy of the model as it is now, after the epoch of `row`."""
    predictor = parts.predictor
    return Checkpoint(
        network=predictor.network.config,
        preprocessing=predictor.preprocessing,
        state_dict={name: tensor.detach().clone() for name, tensor in predictor.network.state_dict().items()},
        class_values=predictor.class_values,
        threshold=predictor.threshold,
        training=report.summary(parts.recipe, parts.data, row),
    )


def identity(settings: TrainSettings, recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """What two runs must share to be the same run. The device is not part of it."""
    return {
        "recipe": asdict(recipe),
        "max_minutes": settings.max_minutes,
        "val_fraction": settings.val_fraction,
        "val_split": settings.val_split,
        "folds": settings.folds,
        "fold": settings.fold,
        "seed": settings.seed,
        "data": data.files,
    }


class Throttle:
    """Limit on how often something slow is done: `if throttle.due(): with throttle: ...` takes a fifth of the time."""

    SHARE = 0.2

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ended = -math.inf

    def due(self) -> bool:
        return time.monotonic() - self._ended >= self._seconds * (1 / self.SHARE - 1)

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self._seconds = self._ended - self._started


@contextmanager
def memory_advice(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that names the flags to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"{device} ran out of memory: lower --batch-size ({recipe.batch_size}), --image-size "
            f"({recipe.image_size}) or --base-channels ({recipe.base_channels}), or cut large images into smaller "
            "ones: all of them are kept on the device, at 8 bytes per pixel and more"
        ) from error
