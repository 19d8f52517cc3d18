"""One epoch of training, and its validation."""

import math
import time
from collections.abc import Callable
from itertools import repeat
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trainer import world
from trainer.data import Batches, Sample
from trainer.learner import Learner
from trainer.metrics import ThresholdCurve, confusion, scores, standard_error
from trainer.schedule import Schedule
from trainer.stop import Stop, Stopped
from unet.errors import UserError
from unet.predictor import Predictor


def train_epoch(
    learner: Learner,
    batches: Batches,
    epoch: int,
    schedule: Schedule,
    elapsed: float,
    until: float,
    stop: Stop,
    unlabelled: Batches | None = None,
    on_step: Callable[[int, float], object] = lambda share, seconds: None,
) -> dict[str, float]:
    """One pass over the data, cut short after `until` seconds of training, but at least one step; returns its columns
    of history.csv. `elapsed`: seconds of training before this epoch; `on_step` is called with the share of the epoch
    that is over, and the seconds of the run. Raises UserError on a non-finite loss, and Stopped."""
    # seeds dropout: the same after a resume, different in each process
    torch.manual_seed((batches.seed * 1_000_003 + epoch) * world.size() + world.rank())
    learner.parallel.train()
    losses: list[Tensor] = []
    lr, started = 0.0, time.monotonic()
    crops = batches.epoch(epoch)
    others = unlabelled.epoch(epoch, len(batches)) if unlabelled else repeat(None)
    with tqdm(range(len(batches)), f"epoch {epoch}", leave=False, unit="step", disable=quiet()) as bar:
        batch, other = next(crops), next(others)
        augmenting = time.monotonic() - started
        for step in bar:
            raise_if_stopped(stop)
            now = world.broadcast(elapsed + time.monotonic() - started)
            if step and now >= until:
                break
            done = schedule.done(epoch - 1 + step / len(batches), now)
            lr = schedule.lr(done)
            losses.append(learner.step(batch, lr, other, schedule.consistency(done)))
            cutting = time.monotonic()
            batch, other = next(crops, batch), next(others, other)
            augmenting += time.monotonic() - cutting
            if step:  # read a step late, while a GPU computes this one
                bar.set_postfix(loss=f"{finite_loss(losses[-2], epoch, step):.4f}")
            on_step((step + 1) / len(batches), elapsed + time.monotonic() - started)
    return {
        "epoch": epoch,
        "loss": sum(finite_loss(loss, epoch, step) for step, loss in enumerate(losses, 1)) / len(losses),
        "lr": lr,
        "crops": len(losses) * learner.recipe.batch_size,
        "augmentation_seconds": augmenting,
        "training_seconds": time.monotonic() - started,
    }


def quiet() -> bool | None:
    """`disable` of a progress bar: None, which is on terminals only, but in the first process of a run."""
    return None if world.is_first() else True


def finite_loss(loss: Tensor, epoch: int, step: int) -> float:
    """The loss as a number. Raises UserError if it is infinite or NaN."""
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(f"the loss became {value} in epoch {epoch}, step {step}; this step was not taken. Lower --lr")
    return value


def validate(predictor: Predictor, samples: list[Sample], stop: Stop, mixed: bool = False) -> dict[str, float]:
    """Compare the predictor's answers for whole images with their labels, counted over the whole set; returns columns
    of history.csv: the score, its standard error over the images, Dice and IoU of each class that the labels have,
    pixel error, and seconds. For a binary problem these are at the threshold of `ThresholdCurve.threshold`, which is a
    column, like the area under the ROC curve. `mixed`: compute in bfloat16 on a CPU. Raises UserError on non-finite
    probabilities, and Stopped."""
    started = time.monotonic()
    predictor.network.eval()
    n = len(predictor.class_values)
    matrices, curve = [], ThresholdCurve()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for sample in tqdm(samples, "validation", leave=False, unit="image", disable=quiet()):
            raise_if_stopped(stop)
            probabilities = predictor(sample.image)
            if not np.isfinite(probabilities).all():
                raise UserError("the network's probabilities are no longer finite. Lower --lr")
            if predictor.binary:
                curve.add(probabilities, sample.label)
            else:
                matrices.append(confusion(predictor.to_classes(probabilities), sample.label, n))
    columns: dict[str, float] = {}
    if predictor.binary:
        threshold = curve.threshold()
        matrices = curve.confusions(threshold)
        columns = {"threshold": threshold, "auc": curve.auc()}
    found = scores(np.sum(matrices, axis=0))
    row = {"score": found.score, "score_error": standard_error([scores(each).score for each in matrices])}
    for value, dice, iou in zip(predictor.class_values, found.dice, found.iou, strict=True):
        if not math.isnan(dice):
            row |= {f"dice_{value}": dice, f"iou_{value}": iou}
    row |= {"pixel_error": found.pixel_error} | columns
    return row | {"validation_seconds": time.monotonic() - started}


def raise_if_stopped(stop: Stop) -> None:
    """Raise Stopped in all processes as soon as one was told to stop, so that none waits for one that is gone."""
    if world.any_of(stop.signal is not None):
        stop.signal = stop.signal or SIGTERM
        raise Stopped
