"""Between HTTP and the model: how many requests at a time, on which threads, for how long."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from service.problems import ProblemError

P = ParamSpec("P")
R = TypeVar("R")


class Engine:
    """One thread computes, so that requests do not fight over the cores or the GPU; two more decode and encode."""

    def __init__(self, max_in_flight: int, timeout_s: float) -> None:
        self.max_in_flight = max_in_flight
        self.timeout_s = timeout_s
        self.in_flight = 0
        self._inference = ThreadPoolExecutor(1, "inference")
        self._codecs = ThreadPoolExecutor(2, "codec")

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """A place for one request. Raises ProblemError: 503 when all are taken, 504 when it takes too long."""
        if self.in_flight >= self.max_in_flight:
            raise ProblemError(503, f"{self.in_flight} requests are in flight already; try again", retry_after=1)
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                yield
        except TimeoutError:
            raise ProblemError(504, f"not finished within {self.timeout_s:g} s") from None
        finally:
            self.in_flight -= 1

    async def codec(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function on a codec thread."""
        return await asyncio.get_running_loop().run_in_executor(self._codecs, lambda: function(*args, **kwargs))

    async def infer(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
        """Runs the function on the inference thread; also returns the seconds that it ran, without those it waited."""

        def timed() -> tuple[R, float]:
            started = time.perf_counter()
            return function(*args, **kwargs), time.perf_counter() - started

        return await asyncio.get_running_loop().run_in_executor(self._inference, timed)

    def close(self) -> None:
        for pool in (self._inference, self._codecs):
            pool.shutdown(wait=True, cancel_futures=True)
