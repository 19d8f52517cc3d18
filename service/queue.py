"""The inference queue: threads that compute predictions by turns, piece by piece."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from math import log2
from typing import Any

import numpy.typing as npt
import torch
from starlette.exceptions import HTTPException

from unet import Predictor
from unet.device import out_of_memory
from unet.network import STRIDE
from unet.prediction import Prediction

log = logging.getLogger(__name__)

MAX_THREADS = 4  # inference threads on a CPU; each needs the memory of a forward pass
CUDA_THREADS = 2  # one fetches and hands out images while the GPU computes the other's batch
BATCH_PIXELS = 2**22  # pixels of a batch on an accelerator: 16 images of 512 x 512
SMALLEST_TILE = 256  # side in pixels; a device without memory for a tile of this size has none for any image


class Job(Future[npt.NDArray[Any]]):
    """A prediction in the queue, whose result it is to have. If cancelled, it ends after the piece in hand."""

    def __init__(self, prediction: Prediction, request_id: str) -> None:
        super().__init__()
        self.prediction = prediction
        self.request_id = request_id
        self.seconds = 0.0  # spent on computing it, without waiting


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Queue:
    """Predictions take turns, one piece (tile) at a time, so that a large image does not delay small ones.

    On a CPU there is an inference thread per core, up to `MAX_THREADS`: together they compute more than one thread
    that uses all cores. A prediction that is alone gets all cores. On an accelerator, pieces of one shape are computed
    as a batch.
    """

    def __init__(self, device: torch.device, workers: int = 1, n_threads: int | None = None) -> None:
        """`workers`: processes that share the cores; `n_threads`: inference threads (None: as the device needs)."""
        self.failure: str | None = None  # the last inference error and when it happened; None after a success
        self.lost = False  # the device does not answer, or an inference thread has ended: only a new process can help
        self.on_lost: Callable[[], object] = lambda: None
        self.on_batch: Callable[[int], object] = lambda size: None  # is told the size of each batch
        self._device = device
        self._batch_pixels = 0 if device.type == "cpu" else BATCH_PIXELS
        self._cores = max(1, usable_cores() // workers)
        if n_threads is None:
            n_threads = {"cpu": min(self._cores, MAX_THREADS), "cuda": CUDA_THREADS}.get(device.type, 1)
        self._waiting: deque[Job] = deque()
        self._n_computing = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name="inference", daemon=True) for _ in range(n_threads)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Predictions that wait for their next piece to be computed."""
        return len(self._waiting)

    def submit(self, prediction: Prediction, request_id: str = "") -> Job:
        """Appends a prediction. Its future raises HTTPException, 503, if the device has no memory for the image or does
        not answer any more; else what the predictor raises."""
        job = Job(prediction, request_id)
        with self._changed:
            if self._closed:
                job.cancel()
            else:
                self._waiting.append(job)
                self._changed.notify()
        return job

    def close(self) -> None:
        """Ends the threads after the pieces in hand; cancels the jobs that are not finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for job in self._waiting:
            job.cancel()

    def _run(self) -> None:
        torch.get_num_threads()  # initialises torch in this thread; later it would undo `set_num_threads`
        try:
            while self._take_turn():
                pass
        except Exception:  # a bug, after which nobody would do this thread's part
            log.exception("an inference thread has ended")
            self.lost = True
            self.on_lost()

    def _take_turn(self) -> bool:
        """Waits for a job and computes its next piece; False when the queue is closed. A method of its own, so that no
        local variable keeps an image alive while the thread waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return False
            batch = self._take_batch()
            alone = not self._waiting and not self._n_computing
            self._n_computing += 1
        unfinished = self._compute(batch, self._cores if alone and self._device.type == "cpu" else 1)
        with self._changed:
            self._n_computing -= 1
            self._waiting.extend(unfinished)
            self._changed.notify(len(unfinished))
        return True

    def _take_batch(self) -> list[Job]:
        """The job that has waited longest; on an accelerator with others of the same model whose next piece has the
        same shape. 1, 2, 4, 8 ... in all: each size is another shape to the engine."""
        first = self._waiting.popleft()
        model, shape = first.prediction.predictor, first.prediction.next_shape
        fitting = self._batch_pixels // (shape[0] * shape[1])
        if fitting < 2:
            return [first]
        same = [job for job in self._waiting if (job.prediction.predictor, job.prediction.next_shape) == (model, shape)]
        more = same[: 2 ** int(log2(min(fitting, 1 + len(same)))) - 1]
        for job in more:
            self._waiting.remove(job)
        return [first, *more]

    def _compute(self, batch: Sequence[Job], n_threads: int) -> list[Job]:
        """Computes the next piece of each job; returns the jobs that have more of them."""
        batch = [job for job in batch if not job.cancelled()]
        if not batch:
            return []
        started = time.perf_counter()
        predictor, side = batch[0].prediction.predictor, max(batch[0].prediction.next_shape)
        try:
            torch.set_num_threads(n_threads)  # for operators called from this thread
            predictor.compute([job.prediction.next() for job in batch])
            finished = [(job, job.prediction.result) for job in batch if job.prediction.finished]
        except Exception as error:
            return self._recover(batch, predictor, side, error)
        self.failure = None
        self.on_batch(len(batch))
        for job in batch:
            job.seconds += time.perf_counter() - started
        for job, result in finished:
            if job.set_running_or_notify_cancel():
                job.set_result(result)
        return [job for job in batch if not job.prediction.finished]

    def _recover(self, batch: list[Job], predictor: Predictor, side: int, error: Exception) -> list[Job]:
        """Out of memory: from now on half as many pixels are computed at a time, unless that is too little, and the
        jobs start again. Anything else is their result."""
        memory = out_of_memory(error)
        if memory and (len(batch) > 1 or side // 2 >= SMALLEST_TILE):
            if len(batch) > 1:
                self._batch_pixels //= 2
            else:
                predictor.tile = side // 2 // STRIDE * STRIDE
            found = predictor.tile, self._batch_pixels
            log.warning("out of memory: from now on tiles of %d, batches of %d pixels", *found)
            for job in batch:
                job.prediction.restart()
            return batch
        self.failure = f"{type(error).__name__} at {datetime.now(UTC).isoformat(timespec='seconds')}"
        if not answers(self._device):
            self.lost = True
            self.on_lost()
        ids = " ".join(job.request_id for job in batch)
        log.error("inference failed", exc_info=error, extra={"request_id": ids})
        # its frames know the jobs, which are to have it: a reference cycle would keep their images
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if memory or self.lost:
            detail = "not enough memory to compute this image" if memory else "the device has failed"
            error = HTTPException(503, detail, {"Retry-After": "5"})
        for job in batch:
            if job.set_running_or_notify_cancel():
                job.set_exception(error)
        return []


def answers(device: torch.device) -> bool:
    """Whether the device still computes. After an error in a kernel, a GPU refuses all further work of the process."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return out_of_memory(error)
    return True
