"""The training loop: step, validate, save, once per epoch; and where it stopped, to go on from there."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from trainer.batches import Batches
from trainer.dataset import Sample
from trainer.metrics import Scores, confusion, scores
from trainer.recipes import Recipe
from unet.network import UNet
from unet.predictor import Predictor

WARM_UP = 0.03
"""Share of the run over which the learning rate rises to its full height."""


class TrainingError(ValueError):
    """Training cannot go on. Says why and what to change."""


@dataclass
class Progress:
    """How far a run has come; all of it is in `last.pth`."""

    epoch: int = 0
    elapsed: float = 0.0
    """Seconds of training so far, those of interrupted processes included."""
    finished: bool = False
    best: dict[str, float] = field(default_factory=dict)
    """The row of `history` that `best_model.pth` belongs to."""
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    predictor: Predictor,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    validation: list[Sample],
    schedule: "Schedule",
    progress: Progress,
    save: Callable[[bool], None],
) -> None:
    """Trains the predictor's network from `progress` to the end of the schedule, an epoch at a time.

    `save(improved)` is called after every epoch, with `progress` up to date.
    """
    while not progress.finished:
        started = time.monotonic()
        epoch = progress.epoch + 1
        loss = run_epoch(predictor.network, optimizer, batches, epoch, schedule, progress.elapsed)
        result = validate(predictor, validation)
        seconds = time.monotonic() - started

        row = _row(epoch, loss, optimizer, result, predictor.class_values, seconds)
        improved = not progress.best or row["score"] > progress.best["score"]
        progress.epoch = epoch
        progress.elapsed += seconds
        progress.finished = schedule.over(epoch, progress.elapsed)
        progress.history.append(row)
        if improved:
            progress.best = row
        save(improved)
        _print(row, schedule.recipe.epochs, improved)


def run_epoch(
    network: UNet,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epoch: int,
    schedule: "Schedule",
    elapsed: float,
) -> float:
    """One pass; returns the mean loss. Stops early when the time is over. Raises TrainingError on a non-finite loss."""
    network.train()
    torch.manual_seed(batches.seed * 1_000_003 + epoch)  # drop-out repeats after a resume
    started, losses = time.monotonic(), []
    bar = tqdm(batches.epoch(epoch), f"epoch {epoch}", total=len(batches), leave=False, unit="step", disable=None)
    device = next(network.parameters()).device
    for step, (images, labels) in enumerate(bar):
        now = elapsed + time.monotonic() - started
        if schedule.time_over(now):
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr((epoch - 1) * len(batches) + step, now)
        logits = network(images.to(device, memory_format=torch.channels_last))
        loss = loss_of(logits, labels.to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in epoch {epoch}, step {step + 1}; nothing was saved of this step. Lower --lr"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value)
        bar.set_postfix(loss=f"{value:.4f}")
    bar.close()
    return sum(losses) / len(losses) if losses else math.nan


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K, H, W) and class indices (B, H, W): binary cross-entropy for K = 1, else cross-entropy."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    return F.cross_entropy(logits, labels)


def validate(predictor: Predictor, samples: list[Sample]) -> Scores:
    """The predictor's masks of whole images against their labels, counted over the whole set."""
    predictor.network.eval()
    n_classes = len(predictor.class_values)
    matrix = np.zeros((n_classes, n_classes), np.int64)
    for sample in tqdm(samples, "validation", leave=False, unit="image", disable=None):
        matrix += confusion(predictor.to_classes(predictor(sample.image)), sample.label, n_classes)
    return scores(matrix)


class Schedule:
    """The learning rate over the run, and when the run is over."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int, max_minutes: float | None) -> None:
        self.recipe = recipe
        self.n_steps = recipe.epochs * steps_per_epoch
        self.seconds = math.inf if max_minutes is None else 60 * max_minutes

    def over(self, epoch: int, elapsed: float) -> bool:
        return epoch >= self.recipe.epochs or self.time_over(elapsed)

    def time_over(self, elapsed: float) -> bool:
        return elapsed >= self.seconds

    def lr(self, step: int, elapsed: float) -> float:
        if self.recipe.schedule == "constant":
            return self.recipe.lr
        done = max(step / self.n_steps, elapsed / self.seconds)  # 0..1 of the run
        if done < WARM_UP:
            return self.recipe.lr * max(done / WARM_UP, 0.01)
        return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def make_optimizer(network: UNet, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
    return torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


def _row(
    epoch: int,
    loss: float,
    optimizer: torch.optim.Optimizer,
    result: Scores,
    class_values: tuple[int, ...],
    seconds: float,
) -> dict[str, float]:
    row = {"epoch": epoch, "loss": loss, "lr": optimizer.param_groups[0]["lr"], "score": result.score}
    for value, dice, iou in zip(class_values, result.dice, result.iou, strict=True):
        row |= {f"dice_{value}": dice, f"iou_{value}": iou}
    return row | {"pixel_error": result.pixel_error, "seconds": seconds}


def _print(row: Mapping[str, float], epochs: int, improved: bool) -> None:
    dice = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name.startswith("dice_"))
    print(
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.4f}  {dice}  score {row['score']:.4f}"
        f"  {row['seconds']:.1f} s{'  best' if improved else ''}",
        flush=True,
    )
