"""One epoch of training, and its validation."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trainer import world
from trainer.data import Batches, Sample
from trainer.learner import Learner
from trainer.metrics import FloatArray, Labels, Scores, ThresholdCurve, confusion, scores
from trainer.schedule import Schedule
from trainer.stop import Stop, Stopped
from unet.errors import UserError
from unet.predictor import Predictor


class TrainingError(UserError):
    """Training cannot start or go on: why, and what to change."""


def train_epoch(
    learner: Learner, batches: Batches, epoch: int, schedule: Schedule, elapsed: float, stop: Stop
) -> dict[str, float]:
    """One pass over the data, cut short when the time is up, but at least one step; returns its columns of history.csv.

    `elapsed`: seconds of training before this epoch. Raises TrainingError on a non-finite loss, and Stopped.
    """
    # seeds dropout: the same after a resume, different in each process
    torch.manual_seed((batches.seed * 1_000_003 + epoch) * world.size() + world.rank())
    learner.parallel.train()
    losses, steps, lr = _Losses(epoch), 0, 0.0
    started = time.monotonic()
    crops = batches.epoch(epoch)
    batch = next(crops)
    augmenting = time.monotonic() - started
    quiet = None if world.is_first() else True  # None: a progress bar on terminals only
    for step in (bar := tqdm(range(len(batches)), f"epoch {epoch}", leave=False, unit="step", disable=quiet)):
        raise_if_stopped(stop)
        now = world.broadcast(elapsed + time.monotonic() - started)
        if step and schedule.time_is_up(now):
            break
        lr = schedule.lr((epoch - 1) * len(batches) + step, now)
        loss = learner.step(batch, lr)
        cutting = time.monotonic()
        batch = next(crops, batch)
        augmenting += time.monotonic() - cutting
        losses.add(loss)
        bar.set_postfix(loss=f"{losses.latest:.4f}")
        steps += 1
    bar.close()
    return {
        "epoch": epoch,
        "loss": losses.mean(),
        "lr": lr,
        "crops": steps * learner.recipe.batch_size,
        "augmentation_seconds": augmenting,
        "training_seconds": time.monotonic() - started,
    }


class _Losses:
    """Losses of the steps of an epoch, read one step late: a GPU has the next step queued while this one waits."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.latest = math.nan
        self._sum, self._n = 0.0, 0
        self._unread: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Read the loss of the step before. Raises TrainingError if it is not finite."""
        self._read()
        self._unread = loss

    def mean(self) -> float:
        """Mean over all steps. Raises TrainingError if the last one is not finite."""
        self._read()
        self._unread = None
        return self._sum / self._n

    def _read(self) -> None:
        if self._unread is None:
            return
        self.latest = self._unread.item()
        self._sum, self._n = self._sum + self.latest, self._n + 1
        if not math.isfinite(self.latest):
            raise TrainingError(
                f"the loss became {self.latest} in epoch {self.epoch}, step {self._n}; this step was not taken. "
                "Lower --lr"
            )


@dataclass(frozen=True)
class Validation:
    """Result over a whole validation set."""

    scores: Scores
    threshold: float
    """Binary: the threshold with the highest score. Several classes: without meaning."""
    auc: float | None
    """Area under the ROC curve, for a binary problem."""

    def columns(self, class_values: tuple[int, ...]) -> dict[str, float]:
        """Columns of history.csv. A class that no label has, has none."""
        row = {"score": self.scores.score}
        for value, dice, iou in zip(class_values, self.scores.dice, self.scores.iou, strict=True):
            if not math.isnan(dice):
                row |= {f"dice_{value}": dice, f"iou_{value}": iou}
        row["pixel_error"] = self.scores.pixel_error
        if self.auc is not None:
            row |= {"threshold": self.threshold, "auc": self.auc}
        return row


class _Counts:
    """Confusion matrix of a validation set; for a binary problem at every threshold."""

    def __init__(self, predictor: Predictor) -> None:
        n = len(predictor.class_values)
        self.predictor = predictor
        self.matrix, self.curve = np.zeros((n, n), np.int64), ThresholdCurve()

    def add(self, probabilities: FloatArray, label: Labels) -> None:
        """Count one image: probabilities as from the predictor, (H, W) class indices."""
        if not np.isfinite(probabilities).all():
            raise TrainingError("the network's probabilities are no longer finite. Lower --lr")
        if self.predictor.binary:
            self.curve.add(probabilities, label)
        else:
            self.matrix += confusion(self.predictor.to_classes(probabilities), label, len(self.matrix))

    def result(self) -> Validation:
        if self.predictor.binary:
            threshold, best = self.curve.best()
            return Validation(best, threshold, self.curve.auc())
        return Validation(scores(self.matrix), self.predictor.threshold, None)


def validate(predictor: Predictor, samples: list[Sample], stop: Stop, mixed: bool = False) -> Validation:
    """Scores of the predictor's answers for whole images, counted over the whole set.

    `mixed`: compute in bfloat16 on a CPU. Raises TrainingError on non-finite probabilities, and Stopped.
    """
    predictor.network.eval()
    counts = _Counts(predictor)
    counting: Future[None] | None = None
    bar = tqdm(samples, "validation", leave=False, unit="image", disable=None)
    with ThreadPoolExecutor(1) as pool, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for sample in bar:
            raise_if_stopped(stop)
            probabilities = predictor(sample.image)
            if counting:
                counting.result()
            counting = pool.submit(counts.add, probabilities, sample.label)  # while the next image is computed
        if counting:
            counting.result()
    return counts.result()


def raise_if_stopped(stop: Stop) -> None:
    """Raise Stopped in all processes as soon as one was told to stop, so that none waits for one that is gone."""
    if world.any_of(stop.signal is not None):
        stop.signal = stop.signal or SIGTERM
        raise Stopped
