"""Failures of a computation: the client is told, other requests are answered, and the queue goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CPU, Spy, start
from starlette.exceptions import HTTPException

from service.queue import Queue
from unet import Predictor
from unet.prediction import Piece

Make = Callable[..., Path]


def test_a_bug_in_an_inference_thread_loses_the_queue(
    predictor: Spy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would do the work of the thread that has ended: a new process must."""
    monkeypatch.setattr(Queue, "_take_batch", Mock(side_effect=ZeroDivisionError))
    queue = Queue(CPU, n_threads=1)
    told: list[bool] = []
    queue.on_lost = lambda: told.append(True)
    queue.submit(start(predictor, 40))
    queue._threads[0].join(60)
    assert queue.lost
    assert told == [True]
    assert "an inference thread has ended" in caplog.text


def test_an_error_is_the_result_and_the_next_prediction_works(
    predictor: Spy, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "compute", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            queue.submit(start(predictor, 40)).result(60)
        assert queue.failure is not None
        assert queue.failure.startswith("ZeroDivisionError at 20")
    assert queue.submit(start(predictor, 40)).result(60).shape == (40, 40)
    assert queue.failure is None
    assert not queue.lost


class Small(Spy):
    """A predictor on a device without memory for more than `limit` pixels at a time."""

    limit = 0

    def compute(self, pieces: Sequence[Piece]) -> None:
        if sum(piece.input.pixels.size for piece in pieces) > self.limit:
            raise torch.OutOfMemoryError("no memory for that many")
        super().compute(pieces)


def test_out_of_memory_halves_the_tiles(make_checkpoint: Make, queue: Queue) -> None:
    small, large = (kind.load(make_checkpoint(bilinear=False), device="cpu") for kind in (Small, Predictor))
    small.limit = 500 * 500
    mask = queue.submit(start(small, 800)).result(60)
    assert small.tile == 400
    expected = queue.submit(start(large, 800)).result(60)
    assert (mask == expected).mean() > 0.999
    assert queue.failure is None


def test_out_of_memory_halves_the_batches(make_checkpoint: Make, queue: Queue) -> None:
    predictor = Small.load(make_checkpoint(bilinear=False), device="cpu")
    predictor.limit = 300 * 300  # two of 208 x 208, not four
    queue._batch_pixels = 4 * 208 * 208
    predictions = [start(predictor, 200, seed) for seed in range(4)]
    with queue._changed:  # all are there when the thread looks
        jobs = [queue.submit(prediction) for prediction in predictions]
    assert [job.result(60).shape for job in jobs] == [(200, 200)] * 4
    assert predictor.computed == [predictions[:2], predictions[2:]]


def test_out_of_memory_for_the_smallest_tile_is_an_error(make_checkpoint: Make, queue: Queue) -> None:
    predictor = Small.load(make_checkpoint(), device="cpu")
    with pytest.raises(HTTPException, match="not enough memory"):
        queue.submit(start(predictor, 800)).result(60)
    assert queue.failure is not None
    assert queue.failure.startswith("OutOfMemoryError at 20")
    assert not queue.lost  # the device still answers


@pytest.mark.parametrize(
    ("error", "lost"),
    [(RuntimeError("CUDA error: an illegal memory access"), True), (torch.OutOfMemoryError("no memory"), False)],
    ids=["no answer", "no memory"],
)
def test_a_device_that_does_not_answer_after_an_error_is_lost(
    predictor: Spy, queue: Queue, monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool
) -> None:
    monkeypatch.setattr(Predictor, "compute", lambda *_: 1 / 0)
    monkeypatch.setattr(torch, "zeros", Mock(side_effect=error))
    with pytest.raises(HTTPException if lost else ZeroDivisionError):
        queue.submit(start(predictor, 40)).result(60)
    assert queue.lost is lost


def test_an_error_in_one_result_is_not_the_others(predictor: Spy, queue: Queue) -> None:
    """Cancelled jobs of a batch neither get a result nor keep the others from theirs."""
    queue._batch_pixels = 4 * 48 * 48
    with queue._changed:
        jobs = [queue.submit(start(predictor, 48, seed)) for seed in range(2)]
        jobs[0].cancel()
    assert jobs[1].result(60).shape == (48, 48)
    np.testing.assert_equal(jobs[0].cancelled(), True)
