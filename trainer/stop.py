"""How a run is told to stop: SIGTERM (`docker compose stop`, a batch system) and SIGINT (Ctrl-C).

It stops before the next step, without saving: `last.pth` holds the epochs up to the last one that was saved, and the
same command goes on from there, to the same weights. A `kill -9` loses no more than that.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """This process was told to stop. Like KeyboardInterrupt, no `except Exception` may hold it up."""


class Stop:
    """Whether this process was told to stop, and how far it had come."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.epoch = 0
        """The last one that is saved; 0: none, or not known yet."""
        self._held = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """From here on a signal raises Stopped, but see `hold`. What the caller has set to be ignored stays ignored."""
        wanted = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) is not signal.SIG_IGN]
        before = [signal.signal(s, self._told) for s in wanted]
        try:
            yield
        finally:
            for s, handler in zip(wanted, before, strict=True):
                signal.signal(s, handler)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """In here a signal waits for the caller to look at `signal`, so that nothing is left half done."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.signal:
            raise Stopped

    def __str__(self) -> str:
        saved = f"after epoch {self.epoch}" if self.epoch else "after the last epoch that was saved"
        name = self.signal.name if self.signal else "nobody"
        return f"stopped by {name}; the same command, without --force, goes on {saved}"

    def _told(self, number: int, _frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or signal.Signals(number)
        if first and not self._held:  # a second one must not interrupt the end
            raise Stopped
