"""Graceful shutdown on SIGTERM (`docker compose stop`, batch systems) and SIGINT (Ctrl-C).

Training stops before the next step and saves nothing: `last.pth` holds the epochs up to the last one that was saved,
and the same command resumes there, with the same weights in the end. `kill -9` loses no more than that.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was told to stop. Like KeyboardInterrupt, it passes every `except Exception`."""


class Stop:
    """Signal handlers of a run, and how far the run has come."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.epoch = 0  # the last saved one; 0: none, or not known yet
        self._deferred = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """In this block a signal raises Stopped, unless `defer` is active. Signals that the parent process ignores stay
        ignored."""
        handled = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) is not signal.SIG_IGN]
        before = {s: signal.signal(s, self._handle) for s in handled}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """In this block a signal is only noted in `signal`, so that no file is left half-written; Stopped is raised at
        the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.signal:
            raise Stopped

    def __str__(self) -> str:
        saved = f"after epoch {self.epoch}" if self.epoch else "after the last saved epoch"
        name = self.signal.name if self.signal else "no signal"
        return f"stopped by {name}; the same command, without --force, goes on {saved}"

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:  # a second signal must not interrupt the cleanup
            self.signal = signal.Signals(number)
            if not self._deferred:
                raise Stopped
