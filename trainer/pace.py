"""How far a run is, and the time that it still takes."""

import math
from dataclasses import dataclass

from trainer.folder import Progress
from trainer.schedule import Schedule

STEADY_STEPS, STEADY_S = 3, 5.0
"""Steps, and seconds after the first one, from which on they tell how long the run takes."""
VALIDATION = 1 / 3
"""Time for a pixel that is validated, a forward pass, relative to one that is learned from, a backward pass, too."""


@dataclass(frozen=True)
class Position:
    """A moment of a run."""

    epoch: int  # the present one, from 1; at the end the last one
    epochs: int | None  # None: the time ends the run before
    done: float  # share of the run
    seconds: float  # of training, those of interrupted processes included
    left: float  # seconds to the end; inf: not known yet


class Pace:
    """Seconds that an epoch takes: as the ones so far or, in the first one, as its steps say."""

    def __init__(self, schedule: Schedule, progress: Progress, validation: float) -> None:
        """`validation`: its time, relative to that of the steps of an epoch."""
        self.schedule, self.progress, self.validation = schedule, progress, validation
        self.steady = False
        self._estimate = math.inf
        self._first = 0.0, 0.0  # position after the first step, which is slower: it allocates memory
        self._n = 0

    def step(self, share: float, now: float) -> Position:
        """The position after a step, when a share of the epoch is over and the run has taken `now` seconds."""
        if not self.progress.epoch:
            self._n += 1
            if self._n == 1:
                self._first = share, now
            else:
                first, then = self._first
                self._estimate = (now - then) / (share - first) * (1 + self.validation)
                self.steady = self._n >= STEADY_STEPS and now - then >= STEADY_S
        return self.position(share, now)

    def position(self, share: float = 0.0, now: float | None = None) -> Position:
        """The position when a share of the present epoch is over; by default before its first step."""
        progress, epochs = self.progress, self.schedule.recipe.epochs
        now = progress.elapsed if now is None else now
        if progress.finished:
            return Position(progress.epoch, epochs if progress.epoch == epochs else None, 1.0, now, 0.0)
        epoch_s = progress.elapsed / progress.epoch if progress.epoch else self._estimate
        later = epochs - progress.epoch - 1
        left = max(epoch_s - (now - progress.elapsed), 0.0) + (later * epoch_s if later else 0.0)
        time_left = max(self.schedule.seconds - now, 0.0)
        return Position(
            progress.epoch + 1,
            epochs if left <= time_left else None,
            self.schedule.done(progress.epoch + share, now),
            now,
            min(left, time_left) if math.isfinite(left) else left,
        )
