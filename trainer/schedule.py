"""The learning rate over a run, and the end of the run."""

import math

from trainer.recipes import Recipe

WARM_UP = 0.03  # share of the run over which the learning rate rises linearly to its full height


class Schedule:
    """Constant, or linear warm-up and cosine decay to zero, by steps or by time, whichever is further."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int, max_minutes: float | None) -> None:
        self.recipe = recipe
        self.n_steps = recipe.epochs * steps_per_epoch
        self.seconds = math.inf if max_minutes is None else 60 * max_minutes

    def lr(self, step: int, elapsed: float) -> float:
        """Learning rate of a step, counted from the start of the run, after `elapsed` seconds of training."""
        if self.recipe.schedule == "constant":
            return self.recipe.lr
        done = min(max(step / self.n_steps, elapsed / self.seconds), 1.0)  # share of the run, 0..1
        if done < WARM_UP:
            return self.recipe.lr * max(done / WARM_UP, 0.01)
        return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))

    def finished(self, epoch: int, elapsed: float) -> bool:
        """Whether the run ends after this epoch."""
        return epoch >= self.recipe.epochs or elapsed >= self.seconds

    def remaining(self, epoch: int, elapsed: float) -> float:
        """Seconds to the end, if epochs take as long as they have so far."""
        return max(0.0, min(self.recipe.epochs * elapsed / epoch, self.seconds) - elapsed)
