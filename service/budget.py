"""Memory for large images: who may take it, and when."""

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

from service.problems import ProblemError

SMALL = 2**20
"""Pixels of an image that never waits: as many of them as there are in flight do not take much."""

RETRY_AFTER = 5
"""Seconds. Large images take some."""


class PixelBudget:
    """Admits so many pixels at a time, first come, first served. An image larger than all of it is processed alone."""

    def __init__(self, pixels: int, max_waiting: int) -> None:
        self._all = self._free = pixels
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._closed = False
        self._lock = threading.Lock()

    def take(self, pixels: int, until: "Future[Any]") -> "Future[None]":
        """Done as soon as there is room, which is given back when `until` is done. Cancelled when that comes first.
        Raises ProblemError, 503, when too many wait already."""
        turn: Future[None] = Future()
        if pixels <= SMALL:
            turn.set_result(None)
            return turn
        pixels = min(pixels, self._all)
        with self._lock:
            if len(self._waiting) < self._max_waiting:
                self._waiting.append((pixels, turn))
            else:
                detail = f"{self._max_waiting} images above {SMALL} pixels are waiting already; try again"
                turn.set_exception(ProblemError(503, detail, retry_after=RETRY_AFTER))
                return turn
        self._let_in()
        until.add_done_callback(lambda _: self._leave(pixels, turn))
        return turn

    def close(self) -> None:
        """Nobody is let in any more."""
        with self._lock:
            self._closed = True
        self._let_in()

    def _leave(self, pixels: int, turn: "Future[None]") -> None:
        gave_up = turn.cancel()
        with self._lock:
            if not gave_up:
                self._free += pixels
            elif (pixels, turn) in self._waiting:  # with all that its callbacks know
                self._waiting.remove((pixels, turn))
        self._let_in()

    def _let_in(self) -> None:
        """Those whose turn it is."""
        let_in, turned_away = [], []
        with self._lock:
            while self._waiting and (self._closed or self._waiting[0][0] <= self._free):
                pixels, turn = self._waiting.popleft()
                if self._closed:
                    turned_away.append(turn)
                elif turn.set_running_or_notify_cancel():
                    self._free -= pixels
                    let_in.append(turn)
        for turn in let_in:
            turn.set_result(None)
        for turn in turned_away:
            turn.cancel()
