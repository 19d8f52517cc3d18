"""Admission control: places and deadlines for requests, room for large images, refusals while the service stops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import cycle

from starlette.exceptions import HTTPException

SMALL = 2**20  # pixels of an image that never waits: as many of them as there are places do not take much memory

GiveUp = Callable[[HTTPException], None]  # ends an admitted request before its deadline, with this answer


class Admission:
    """`max_in_flight` places, each held for at most `timeout_s` seconds. `on_change` is told how many are taken."""

    def __init__(self, max_in_flight: int, timeout_s: float, on_change: Callable[[int], object]) -> None:
        self.stopping = False  # new requests are refused; those in flight are finished
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._places: set[GiveUp] = set()
        self._left = asyncio.Event()
        self._retry_after = cycle(("1", "2", "3"))  # seconds, staggered so that retries spread out

    def check(self) -> None:
        """Raises HTTPException, 503, when all places are taken or the service is stopping."""
        if self.stopping:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise HTTPException(503, "the service is stopping; ask another one", headers)
        if len(self._places) >= self._max_in_flight:
            detail = f"{len(self._places)} requests are in flight already (--max-in-flight); try again"
            raise HTTPException(503, detail, {"Retry-After": next(self._retry_after)})

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[GiveUp]:
        """A place for a request. Raises HTTPException: 503 as `check`, 504 after `timeout_s`, or what `give_up` got."""
        self.check()
        answer = HTTPException(504, f"expected to be finished within {self._timeout_s:g} s (--timeout-s), found no end")

        def give_up(reason: HTTPException) -> None:
            nonlocal answer
            if not deadline.expired():
                answer = reason
                deadline.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                self._places.add(give_up)
                self._on_change(len(self._places))
                try:
                    yield give_up
                finally:
                    self._places.discard(give_up)
                    self._on_change(len(self._places))
                    self._left.set()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise answer from None

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests, waits until none is in flight, and after `grace_s` ends those that are left: 503."""
        self.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._places:
                    self._left.clear()
                    await self._left.wait()
        self.abandon()

    def abandon(self) -> None:
        """Ends all requests in flight: 503."""
        headers = {"Retry-After": "5", "Connection": "close"}
        for give_up in list(self._places):
            give_up(HTTPException(503, "the service was stopped before this was done", headers))


class PixelBudget:
    """Pixels in memory at a time, so that many large images do not exhaust it; first come, first served. An image above
    the whole budget is processed alone."""

    def __init__(self, pixels: int, max_waiting: int) -> None:
        self._all = self._free = pixels
        self._freed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._n_waiting = 0
        self._max_waiting = max_waiting

    @asynccontextmanager
    async def room(self, pixels: int) -> AsyncIterator[None]:
        """Waits for room for an image of so many pixels and holds it. Raises HTTPException, 503, when too many wait."""
        if pixels <= SMALL:
            yield
            return
        if self._n_waiting >= self._max_waiting:
            detail = f"{self._max_waiting} images above {SMALL} pixels are waiting already; try again"
            raise HTTPException(503, detail, {"Retry-After": "5"})  # a large image takes some seconds
        pixels = min(pixels, self._all)
        self._n_waiting += 1
        try:
            async with self._turn:
                while self._free < pixels:
                    self._freed.clear()
                    await self._freed.wait()
                self._free -= pixels
        finally:
            self._n_waiting -= 1
        try:
            yield
        finally:
            self._free += pixels
            self._freed.set()
