"""The training loop: step, validate, save, once per epoch."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from trainer.data import Batch, Batches, Sample
from trainer.fused import fused
from trainer.losses import loss_of
from trainer.metrics import FloatArray, Labels, Scores, ThresholdCurve, confusion, scores
from trainer.recipes import Recipe
from trainer.stop import Stop, Stopped
from trainer.world import ALONE, World
from unet import replay
from unet.device import fast_bf16
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

    def rows(self) -> list[dict[str, float]]:
        """The history, with the best epoch as `best_model.pth` has it: a run that was killed before it wrote `last.pth`
        may have repeated that epoch, or ended before it."""
        return list({row["epoch"]: row for row in [*self.history, self.best]}.values())


@dataclass(frozen=True)
class Validation:
    scores: Scores
    threshold: float
    """Binary: the one that maximises the score. Several classes: of no meaning."""
    auc: float | None
    """Area under the ROC curve; binary only."""


class Average(nn.Module):
    """The exponential moving average of a network's weights and buffers, shorter in the first steps, so that it forgets
    the initial weights.

    Its count of steps is on the CPU. To ask a GPU for it, as torch's AveragedModel does, is to wait for all that the
    GPU has still to do, and then it has to wait for what comes next.
    """

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(network)
        self.register_buffer("n_averaged", torch.tensor(0))
        self.decay = decay
        averaged, current = ([*each.parameters(), *each.buffers()] for each in (self.module, network))
        real = [tensor.is_floating_point() for tensor in averaged]
        counters = [not is_real for is_real in real]  # batch norm's
        self._real = list(compress(averaged, real)), list(compress(current, real))
        self._counters = list(compress(averaged, counters)), list(compress(current, counters))

    @torch.no_grad()
    def update(self) -> None:
        """By the network as it is now."""
        n = int(self.n_averaged)
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        mine, theirs = self._real
        torch._foreach_lerp_(mine, theirs, 1 - keep)
        mine, theirs = self._counters
        if mine:
            torch._foreach_copy_(mine, theirs)
        self.n_averaged += 1


class Learner:
    """What one step changes: the network, its optimiser and the average of its weights."""

    def __init__(self, network: nn.Module, recipe: Recipe, world: World = ALONE) -> None:
        self.device = next(network.parameters()).device
        self.memory_format = memory_format(self.device)
        self.network = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.recipe = recipe
        self.world = world
        self.optimizer = make_optimizer(network, recipe)
        self.averaged = Average(network, recipe.ema) if recipe.ema else None
        self.mixed = recipe.mixed_precision and fast_bf16(self.device)
        alone = world.size == 1
        fuses = alone and self.mixed and self.device.type == "cuda"
        self.shared = fused(network) if fuses else world.wrap(network)
        self.on_gpu = on_gpu(self.optimizer)
        self._step = replay.recorded(self._one_step, self.device) if self.on_gpu and alone else self._one_step

    @property
    def result(self) -> nn.Module:
        """The network to validate and to save."""
        return self.averaged.module if self.averaged else self.network

    def step(self, batch: Batch, lr: float) -> Tensor:
        """One step of the optimiser; returns the loss before it. A loss that is no number changes no weights. A GPU is
        told what to do, not waited for."""
        for group in self.optimizer.param_groups:
            if self.on_gpu:
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        with self.world.together():
            loss = self._step(*batch)
        if self.averaged:
            self.averaged.update()
        return loss

    def _one_step(self, images: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits = self.shared(images.to(memory_format=self.memory_format))
        loss = loss_of(logits, labels, weights, self.recipe.loss, self.world)
        loss.backward()  # type: ignore[no-untyped-call]
        loss = self.world.sum(loss.detach()) / self.world.size
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        if self.on_gpu:
            self.optimizer.found_inf = 1 - loss.isfinite().float()  # type: ignore[attr-defined]  # 1: it does nothing
        if self.on_gpu or loss.isfinite():
            self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
        }

    def load_state_dict(self, state: Mapping[str, dict[str, object]]) -> None:
        self.network.load_state_dict(state["network"])
        # its settings are the recipe's, and the device's
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]["state"]})
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])


def fit(
    learner: Learner,
    batches: Batches,
    predictor: Predictor,
    validation: list[Sample],
    schedule: "Schedule",
    progress: Progress,
    save: Callable[[bool], bool],
    stop: Stop,
) -> None:
    """Trains from `progress` to the end of the schedule, an epoch at a time. `predictor` is of the learner's result.

    `save(improved)` is called after every epoch, with `progress` and the predictor's threshold up to date, and says
    whether all is in the files now. All processes validate, and so agree; the first one saves and prints. Told to stop,
    it raises Stopped before the next step or validated image, in all processes: none waits for one that is gone.
    """

    def check() -> None:
        if learner.world.mean(float(stop.signal is not None)):
            stop.signal = stop.signal or SIGTERM
            raise Stopped

    started = time.monotonic()
    while not progress.finished:
        epoch = progress.epoch + 1
        row = {"epoch": epoch} | run_epoch(learner, batches, epoch, schedule, progress.elapsed, check)
        trained = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=learner.mixed):  # a GPU's is recorded, in float32
            result = validate(predictor, validation, check)
        predictor.threshold = result.threshold
        validated = time.monotonic()
        seconds = learner.world.agree(validated - started)  # saving the last epoch included
        started = validated

        row |= _columns(result, predictor.class_values)
        row |= {"validation_seconds": validated - trained, "seconds": seconds}
        improved = not progress.best or row["score"] > progress.best["score"]
        progress.epoch = epoch
        progress.elapsed += seconds
        progress.finished = schedule.over(epoch, progress.elapsed)
        progress.history.append(row)
        if improved:
            progress.best = row
        if learner.world.agree(float(learner.world.first and save(improved))):
            stop.epoch = epoch
        if learner.world.first:
            _print(row, schedule.recipe.epochs, schedule.left(epoch, progress.elapsed), improved)


def run_epoch(
    learner: Learner,
    batches: Batches,
    epoch: int,
    schedule: "Schedule",
    elapsed: float,
    check: Callable[[], None],
) -> dict[str, float]:
    """One pass, shorter when the time is over, but at least one step; returns its columns of the history.

    `check()` is called before every step. Raises TrainingError on a loss that is no number.
    """
    # drop-out repeats after a resume, and is not the same in all processes
    torch.manual_seed((batches.seed * 1_000_003 + epoch) * learner.world.size + learner.world.rank)
    started, losses, lr, crops = time.monotonic(), [], 0.0, 0
    quiet = None if learner.world.first else True  # None: only on a terminal
    learner.shared.train()
    cut = batches.epoch(epoch)
    batch = next(cut)
    augmenting = time.monotonic() - started
    with tqdm(range(len(batches)), f"epoch {epoch}", leave=False, unit="step", disable=quiet) as bar:

        def account(loss: Tensor) -> None:
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"the loss became {losses[-1]} in epoch {epoch}, step {len(losses)}; this step was not taken. "
                    "Lower --lr"
                )
            bar.set_postfix(loss=f"{losses[-1]:.4f}")

        last: Tensor | None = None
        for step in bar:
            check()
            now = learner.world.agree(elapsed + time.monotonic() - started)
            if step and schedule.time_over(now):
                break
            lr = schedule.lr((epoch - 1) * len(batches) + step, now)
            crops += len(batch.images) * learner.world.size
            loss = learner.step(batch, lr)
            cutting = time.monotonic()
            batch = next(cut, batch)
            augmenting += time.monotonic() - cutting
            if last is not None:
                account(last)  # one step late: so a GPU has something to do while it is waited for
            last = loss
        assert last is not None
        account(last)
    return {
        "loss": sum(losses) / len(losses),
        "lr": lr,
        "crops": crops,
        "augmentation_seconds": augmenting,
        "training_seconds": time.monotonic() - started,
    }


def validate(predictor: Predictor, samples: list[Sample], check: Callable[[], None]) -> Validation:
    """The predictor's answers for whole images against their labels, counted over the whole set.

    `check()` is called before every image.
    """
    predictor.network.eval()
    n_classes = len(predictor.class_values)
    matrix, curve = np.zeros((n_classes, n_classes), np.int64), ThresholdCurve()

    def count(probabilities: FloatArray, label: Labels) -> None:
        if not np.isfinite(probabilities).all():
            raise TrainingError("the network's answers are no numbers any more. Lower --lr")
        if predictor.binary:
            curve.add(probabilities, label)
        else:
            matrix[:] += confusion(predictor.to_classes(probabilities), label, n_classes)

    with ThreadPoolExecutor(1) as pool:  # counts while the next image is computed, which takes a GPU as long
        counting: Future[None] | None = None
        for sample in tqdm(samples, "validation", leave=False, unit="image", disable=None):
            check()
            probabilities = predictor(sample.image)
            if counting:
                counting.result()
            counting = pool.submit(count, probabilities, sample.label)
        if counting:
            counting.result()
    if predictor.binary:
        threshold, best = curve.best()
        return Validation(best, threshold, curve.auc())
    return Validation(scores(matrix), predictor.threshold, None)


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

    def left(self, epoch: int, elapsed: float) -> float:
        """Seconds to the end, if epochs go on to take as long as they have."""
        return max(0.0, min(self.recipe.epochs * elapsed / epoch, self.seconds) - elapsed)

    def lr(self, step: int, elapsed: float) -> float:
        if self.recipe.schedule == "constant":
            return self.recipe.lr
        done = min(max(step / self.n_steps, elapsed / self.seconds), 1.0)  # of the run
        if done < WARM_UP:
            return self.recipe.lr * max(done / WARM_UP, 0.01)
        return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def memory_format(device: torch.device) -> torch.memory_format:
    """What a network learns fastest in: channels last, but with AVX2, for which oneDNN's gradients of weights want an
    order of their own and take three times as long from channels last (docs/benchmarks.md)."""
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if slow else torch.channels_last


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """With what `on_gpu` describes where there is one, but for RMSprop."""
    parameters, lr, decay = list(network.parameters()), recipe.lr, recipe.weight_decay
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, weight_decay=decay, momentum=recipe.momentum)
    gpu = parameters[0].is_cuda
    rate = torch.tensor(lr, device=parameters[0].device) if gpu else lr
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=gpu or None, capturable=gpu)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=recipe.momentum, fused=gpu or None)


def on_gpu(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all that decides about a step is on the GPU: the learning rate, and `found_inf`, which calls it off. Then
    nobody has to wait for the loss, and a step can be recorded."""
    return isinstance(optimizer.param_groups[0]["lr"], Tensor)


def _columns(result: Validation, class_values: tuple[int, ...]) -> dict[str, float]:
    row = {"score": result.scores.score}
    for value, dice, iou in zip(class_values, result.scores.dice, result.scores.iou, strict=True):
        if not math.isnan(dice):
            row |= {f"dice_{value}": dice, f"iou_{value}": iou}
    row["pixel_error"] = result.scores.pixel_error
    if result.auc is not None:
        row |= {"threshold": result.threshold, "auc": result.auc}
    return row


def _print(row: Mapping[str, float], epochs: int, left: float, improved: bool) -> None:
    dice = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name.startswith("dice_"))
    print(
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.4f}  {dice}  score {row['score']:.4f}"
        f"  {row['seconds']:.1f} s{f', {_duration(left)} to go' if left else ''}{'  best' if improved else ''}",
        flush=True,
    )


def _duration(seconds: float) -> str:
    """In the largest unit of which there is more than one and a half."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
