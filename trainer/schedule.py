"""The learning rate over a run, and the end of the run."""

import math

from trainer.recipes import Recipe

RAMP = 0.1, 0.4  # shares of the run between which the weight of unlabelled images rises
WARM_UP = 0.03  # share of the run over which the learning rate rises linearly to its full height


class Schedule:
    """Constant, or linear warm-up and cosine decay to zero, by epochs or by time, whichever is further."""

    def __init__(self, recipe: Recipe, max_minutes: float | None) -> None:
        self.recipe = recipe
        self.seconds = math.inf if max_minutes is None else 60 * max_minutes

    def done(self, epochs: float, elapsed: float) -> float:
        """Share of the run that is over, 0..1, after so many epochs and seconds of training."""
        return min(max(epochs / self.recipe.epochs, elapsed / self.seconds), 1.0)

    def lr(self, done: float) -> float:
        """Learning rate when a share `done` of the run is over."""
        if self.recipe.schedule == "constant":
            return self.recipe.lr
        if done < WARM_UP:
            return self.recipe.lr * max(done / WARM_UP, 0.01)
        return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))

    def consistency(self, done: float) -> float:
        """Weight of the loss of unlabelled images: 0 while the network's answers are of no use, then up to 1."""
        return min(max((done - RAMP[0]) / (RAMP[1] - RAMP[0]), 0.0), 1.0)

    def remaining(self, epoch: int, elapsed: float) -> float:
        """Seconds to the end, if epochs take as long as they have so far."""
        return max(0.0, min(self.recipe.epochs * elapsed / epoch, self.seconds) - elapsed)
