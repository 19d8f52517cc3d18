"""Graceful shutdown: on a signal, requests in flight are finished before the server stops."""

import asyncio
import os
import signal
from collections.abc import Callable
from multiprocessing import parent_process
from types import FrameType
from typing import cast

from service.admission import Admission

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST_ANSWERS_S = 0.5
"""Seconds for the answers to abandoned requests."""


class Draining:
    """Refuses new requests after SIGTERM or SIGINT, and stops the server when none is in flight any more, or after
    `grace_s`. The same signal a second time stops at once.

    A worker process also drains when its parent is gone.
    """

    def __init__(self, admission: Admission, grace_s: float) -> None:
        """Called in the event loop, when uvicorn's signal handlers, which stop the server, are installed."""
        self._admission = admission
        self._grace_s = grace_s
        self._received: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._stop = cast(Callable[[int, FrameType | None], None], signal.getsignal(signal.SIGTERM))
        self._loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._receive, number)
        if parent := parent_process():
            self._loop.add_reader(parent.sentinel, self._orphaned, parent.sentinel)

    def stop(self) -> None:
        """Stops the server at once; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._stop, signal.SIGTERM, None)

    def _receive(self, number: int) -> None:
        if number in self._received:
            self._admission.abandon()
            self._loop.call_later(LAST_ANSWERS_S, os._exit, 0)
        self._received.add(number)
        if not self._task:
            self._task = asyncio.create_task(self._drain())

    def _orphaned(self, sentinel: int) -> None:
        self._loop.remove_reader(sentinel)
        self._receive(signal.SIGTERM)

    async def _drain(self) -> None:
        await self._admission.drain(self._grace_s)
        self._stop(signal.SIGTERM, None)
