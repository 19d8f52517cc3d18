"""Between HTTP and the model: how many requests at a time, on which threads, for how long."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from math import log2
from traceback import clear_frames
from typing import Any, TypeVar

import numpy.typing as npt
import torch

from service import cores
from service.budget import PixelBudget
from service.logs import request_id
from service.problems import ProblemError
from unet.device import out_of_memory
from unet.network import STRIDE
from unet.predictor import Prediction, Predictor

log = logging.getLogger(__name__)

R = TypeVar("R")

MAX_STREAMS = 4
"""Each needs the memory of a forward pass."""
GPU_STREAMS = 2
"""One fetches and hands out images while the GPU computes the other's."""
BATCH_PIXELS = 2**22
"""On a GPU, pieces of one shape are computed together up to this many pixels: 16 of 512 x 512."""
PIXELS_PER_CODEC = 2**24
"""Pixels of images that are being decoded, computed or encoded at a time; for two codec threads or more. An image of
4096 x 4096, in colour or with `tta`, takes up to half a GiB."""
SMALLEST_TILE = 256
"""A device without memory for this much has none for anything."""
RETRY_AFTER = (1, 2, 3)
"""Seconds, in turn: those who are refused together shall not come back together."""


Computed = tuple[npt.NDArray[Any], float]
"""A prediction's result, and the seconds of computing it, without those it waited."""

Steps = Generator[Prediction | int, Any, R]
"""For `Engine.work`."""


class InferenceError(RuntimeError):
    """The model failed on an image; the reason is in the log."""


class _Job(Future[Computed]):
    """A prediction, for the streams."""

    def __init__(self, prediction: Prediction, request_id: str) -> None:
        super().__init__()
        self.prediction = prediction
        self.request_id = request_id
        self.seconds = 0.0
        """Spent computing it."""


class _Work(Future[Any]):
    """For `Engine.work`. Given up, it lets go of what it has and of what it waits for."""

    def __init__(self, steps: Steps[Any], request_id: str) -> None:
        super().__init__()
        self.steps: Steps[Any] | None = steps
        self.request_id = request_id
        self.awaits: Future[Any] | None = None
        """Its result is what the steps are sent next."""

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            awaits, self.awaits, self.steps = self.awaits, None, None  # they know each other
            if awaits:
                awaits.cancel()
        return cancelled


class Engine:
    """Predictions are computed piece by piece, those of different requests in turn, so that a large image does not keep
    small ones waiting. Each is with one thread at a time: its result does not depend on the others.

    On a CPU there are several streams of one or few threads, which together do more than one stream of all cores; a
    prediction that is alone gets all cores. On a GPU, pieces of one shape go as a batch.

    Decoding and encoding are for codec threads. Where every core has a stream already, the streams do that, too: more
    threads than cores get less done, as they evict each other's caches and wait for Python's lock.
    """

    def __init__(
        self,
        max_in_flight: int,
        timeout_s: float,
        device: torch.device,
        on_batch: Callable[[int], object] = lambda size: None,
        workers: int = 1,
    ) -> None:
        """`workers`: processes like this one, which share the cores."""
        self.max_in_flight = max_in_flight
        self.timeout_s = timeout_s
        self.in_flight = 0
        self._retry_after = cycle(RETRY_AFTER)
        self._on_batch = on_batch
        self.stopping = False
        """Refuses what is new; what is in flight is finished."""
        self.failure: str | None = None
        """What the last computation failed of, and when; None when it worked."""
        self.lost = False
        """The device does not answer any more, or a stream: only a new process can help."""
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._batch_pixels = BATCH_PIXELS if self._on_gpu else 0
        self._cores = cores.usable()
        self._n_streams = GPU_STREAMS if self._on_gpu else max(1, min(len(self._cores), MAX_STREAMS) // workers)
        self._queue: deque[_Job | _Work] = deque()
        self._working = 0
        self._closed = False
        self._changed = threading.Condition()
        self._streams = [
            threading.Thread(target=self._stream, args=(i,), name=f"inference-{i}", daemon=True)
            for i in range(self._n_streams)
        ]
        for stream in self._streams:
            stream.start()
        n_codecs = max(2, len(self._cores) // 2 // workers) if self._on_gpu else 2  # a GPU is fed by many
        spare = self._on_gpu or len(self._cores) > self._n_streams * workers
        self._codecs = ThreadPoolExecutor(n_codecs, "codec") if spare else None
        max_waiting = max(1, max_in_flight // 2)  # the rest of the places is for small ones
        self._budget = PixelBudget(n_codecs * PIXELS_PER_CODEC, max_waiting)

    @property
    def queued(self) -> int:
        """What waits for a stream: for its next piece to be computed, or to be begun."""
        return len(self._queue)

    def check_places(self) -> None:
        """Raises ProblemError, 503, when all places are taken or the service is stopping."""
        if self.stopping:
            raise ProblemError(503, "the service is stopping; ask another one", retry_after=1, close=True)
        if self.in_flight >= self.max_in_flight:
            detail = f"{self.in_flight} requests are in flight already; try again"
            raise ProblemError(503, detail, retry_after=next(self._retry_after))

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """A place for one request. Raises ProblemError: 503 as `check_places`, 504 when it takes too long."""
        self.check_places()
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                yield
        except TimeoutError:
            raise ProblemError(504, f"not finished within {self.timeout_s:g} s") from None
        finally:
            self.in_flight -= 1

    async def work(self, steps: Steps[R]) -> R:
        """What the generator returns. It runs on threads of the engine. A prediction that it yields comes back as
        `Computed`. When it yields a number of pixels, it goes on once there is room for so many; the room is given back
        when it ends. None of that passes the event loop, which would have to wake up for it.

        If the caller stops waiting (time-out, hang-up), the generator ends after the step or piece in hand. Raises what
        the generator raises, InferenceError, and ProblemError, 503, when too many wait for room.
        """
        work = _Work(steps, request_id.get())
        self._hand_over(work)
        return await asyncio.wrap_future(work)

    def _hand_over(self, work: _Work) -> None:
        """For its next step, to whoever does them."""
        if self._codecs:
            self._codecs.submit(self._step, work)
        else:
            self._wait_in_line(work)

    def _step(self, work: _Work, *, first: bool = False) -> None:
        """Runs the generator up to the next thing that it has to wait for, or to its end. `first`: called by a stream
        in the work's turn; its prediction then goes to the front of the queue."""
        while steps := work.steps:
            got, work.awaits = work.awaits, None  # what is over is let go of; it knows the work
            go_on = self._hand_over
            if got and (failed := got.exception()):
                steps.close()
                _settle(work.set_exception, failed)
                return
            try:
                wanted = steps.send(got.result() if got else None)
                if isinstance(wanted, int):
                    awaits: Future[Any] = self._budget.take(wanted, until=work)
                else:
                    awaits = self.submit(wanted, work.request_id, first=first)
                    if not self._codecs:
                        go_on = self._step  # on the stream that has computed it
            except StopIteration as end:
                _settle(work.set_result, end.value)
                return
            except Exception as error:  # for who waits; the thread goes on
                _settle(work.set_exception, _without_variables(error))
                return
            work.awaits = awaits
            if work.cancelled():  # meanwhile
                awaits.cancel()
            if not awaits.done() or awaits.cancelled():
                awaits.add_done_callback(partial(_resume, work, go_on))
                return

    def submit(self, prediction: Prediction, request_id: str = "", *, first: bool = False) -> "Future[Computed]":
        """To the streams, `first` before all others; cancel the future to stop after the piece in hand. Raises
        InferenceError."""
        job = _Job(prediction, request_id)
        self._wait_in_line(job, first=first)
        return job

    def _wait_in_line(self, what: _Job | _Work, *, first: bool = False) -> None:
        with self._changed:
            for given_up in [waiting for waiting in self._queue if waiting.cancelled()]:
                self._queue.remove(given_up)  # it holds an image, and its turn may be far
            if not self._closed:
                (self._queue.appendleft if first else self._queue.append)(what)
                self._changed.notify()
                return
        what.cancel()

    def close(self) -> None:
        """Stops after the pieces in hand; what is not finished is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for stream in self._streams:
            stream.join()
        self._budget.close()
        for waiting in list(self._queue):
            waiting.cancel()
        if self._codecs:
            self._codecs.shutdown(wait=True)  # who works there is told at the next prediction

    def _stream(self, index: int) -> None:
        """A thread's life. It keeps to cores of its own while others compute, too: left to itself, the kernel puts two
        streams on one core now and then, and leaves another idle."""
        cores.yield_to_others()
        torch.get_num_threads()  # sets this thread up; later, that could undo what `set_num_threads` has said
        n_own = len(self._cores) // self._n_streams
        try:
            while self._turn(self._cores[index * n_own : (index + 1) * n_own]):
                pass
        except Exception:  # a mistake of ours, after which nobody would do this stream's part
            log.exception("a stream has ended")
            self.lost = True

    def _turn(self, own: Sequence[int]) -> bool:
        """Waits for something to do, and does it; False when the engine is closed. A method of its own, so that no
        local variable keeps an image alive while there is nothing to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return False
            first = self._queue.popleft()
            if isinstance(first, _Job):
                batch = self._batch(first)
                alone = not self._queue and not self._working
                self._working += 1
        if isinstance(first, _Work):
            self._step(first, first=True)
            return True
        chosen = self._cores if alone else own
        if not self._on_gpu:
            cores.keep_to(chosen)
        unfinished = self._advance(batch, 1 if self._on_gpu else len(chosen))
        with self._changed:
            self._working -= 1
            self._queue.extend(unfinished)
            self._changed.notify(len(unfinished))
        return True

    def _batch(self, first: _Job) -> list[_Job]:
        """The job that has waited longest, and on a GPU others whose next piece has the same shape: 1, 2, 4, 8 ... in
        all, since each number is another shape to the predictor."""
        if not self._batch_pixels:
            return [first]
        shape = first.prediction.next_shape
        at_most = max(1, self._batch_pixels // (shape[0] * shape[1]))
        model = first.prediction.predictor
        jobs = [waiting for waiting in self._queue if isinstance(waiting, _Job)]
        same = [j for j in jobs if j.prediction.predictor is model and j.prediction.next_shape == shape]
        n = 2 ** int(log2(min(at_most, 1 + len(same))))
        for job in same[: n - 1]:
            self._queue.remove(job)
        return [first, *same[: n - 1]]

    def _advance(self, jobs: Sequence[_Job], n_threads: int) -> list[_Job]:
        """Computes the next piece of each; returns those that have more."""
        jobs = [job for job in jobs if not job.cancelled()]
        if not jobs:
            return []
        started = time.perf_counter()
        predictor = jobs[0].prediction.predictor
        side = max(jobs[0].prediction.next_shape)
        try:
            torch.set_num_threads(n_threads)  # of this thread's computations
            predictor.compute([job.prediction.next() for job in jobs])
        except Exception as error:  # whatever it is, the stream goes on
            if out_of_memory(error) and self._lower(predictor, len(jobs), side):
                for job in jobs:
                    job.prediction.restart()
                return jobs
            self._fail(jobs, error)
            return []
        self.failure = None
        seconds = time.perf_counter() - started
        self._on_batch(len(jobs))
        for job in jobs:
            job.seconds += seconds
            if job.prediction.finished:
                self._finish(job)
        return [job for job in jobs if not job.prediction.finished]

    def _finish(self, job: _Job) -> None:
        try:
            result = job.prediction.result
        except Exception as error:  # memory for it, say; the stream and the other jobs of the batch go on
            self._fail([job], error)
        else:
            _settle(job.set_result, (result, job.seconds))

    def _lower(self, predictor: Predictor, n_jobs: int, side: int) -> bool:
        """Out of memory: from now on half as much at a time. False if that is too little."""
        if n_jobs > 1:
            self._batch_pixels //= 2
        elif side // 2 < SMALLEST_TILE:
            return False
        else:
            predictor.tile = side // 2 // STRIDE * STRIDE
        log.warning("out of memory: from now on tiles of %d, batches of %d pixels", predictor.tile, self._batch_pixels)
        return True

    def _fail(self, jobs: Sequence[_Job], error: Exception) -> None:
        ids = " ".join(job.request_id for job in jobs)
        log.error("inference failed", exc_info=error, extra={"request_id": ids})
        self.failure = f"{type(error).__name__} at {datetime.now(UTC).isoformat(timespec='seconds')}"
        self.lost = self.lost or not answers(self._device)
        for job in jobs:
            _settle(job.set_exception, InferenceError("inference failed"))


def answers(device: torch.device) -> bool:
    """Whether the device still computes. After an error in one of its kernels, a GPU refuses this process for good."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
    return True


def _resume(work: _Work, go_on: Callable[[_Work], None], awaited: "Future[Any]") -> None:
    if awaited.cancelled():
        work.cancel()
    else:
        go_on(work)


def _without_variables(error: Exception) -> Exception:
    """Clears the local variables in the tracebacks of an error and of its causes: they may hold an upload, and a
    reference cycle with the waiting future would keep it until garbage collection."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None  # the first is of `_step`, which still runs
    chain: list[BaseException] = []
    each: BaseException | None = error.with_traceback(trace)
    while each and each not in chain:  # it may come from itself
        chain.append(each)
        clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__
    return error


def _settle(settle: Callable[[R], None], value: R) -> None:
    """Nobody minds if the future has been cancelled meanwhile."""
    with suppress(InvalidStateError):
        settle(value)
