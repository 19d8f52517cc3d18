"""A budget of pixels, so that many large images at once do not exhaust memory."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.problems import ProblemError

SMALL = 2**20
"""Pixels of an image that never waits: as many of them as there are places do not take much memory."""
RETRY_AFTER = 5
"""Seconds. A large image takes some."""


class PixelBudget:
    """Admits so many pixels at a time, first come, first served. An image above the whole budget is processed alone."""

    def __init__(self, pixels: int, max_waiting: int) -> None:
        self._all = self._free = pixels
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, pixels: int) -> AsyncIterator[None]:
        """Waits for room for an image of so many pixels and holds it. Raises ProblemError, 503, when too many wait."""
        if pixels <= SMALL:
            yield
            return
        pixels = min(pixels, self._all)
        if len(self._waiting) >= self._max_waiting:
            detail = f"{self._max_waiting} images above {SMALL} pixels are waiting already; try again"
            raise ProblemError(503, detail, retry_after=RETRY_AFTER)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():  # before it was admitted
                self._waiting.remove((pixels, turn))
            else:
                self._free += pixels
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free and not self._waiting[0][1].cancelled():
            pixels, turn = self._waiting.popleft()
            self._free -= pixels
            turn.set_result(None)
