"""The inference queue: fair turns and batches, which do not change any result."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, Spy, start

from service.queue import Queue, usable_cores
from unet import Predictor
from unet.prediction import Piece

Make = Callable[..., Path]
needs_two_cores = pytest.mark.skipif(usable_cores() == 1, reason="needs two cores")


def test_results_do_not_depend_on_other_predictions(predictor: Spy) -> None:
    queue = Queue(CPU)
    sizes = [40, 300, 40, 64, 200, 40, 280, 100]
    jobs = [queue.submit(start(predictor, side, seed)) for seed, side in enumerate(sizes)]
    masks = [job.result(60) for job in jobs]
    queue.close()
    assert all(job.seconds > 0 for job in jobs)
    for mask, (seed, side) in zip(masks, enumerate(sizes), strict=True):
        rng = np.random.default_rng(seed)
        np.testing.assert_array_equal(mask, predictor.mask(rng.integers(0, 256, (side, side), dtype=np.uint8)))


def test_a_small_image_overtakes_a_large_one(predictor: Spy, queue: Queue) -> None:
    finished: list[str] = []
    large, small = (queue.submit(start(predictor, side)) for side in (1000, 40))
    large.add_done_callback(lambda _: finished.append("large"))
    small.add_done_callback(lambda _: finished.append("small"))
    wait([large, small], 60)
    assert finished == ["small", "large"]


class Counting(Predictor):
    """Records the number of threads that each batch is computed with, when two of them meet."""

    def compute(self, pieces: Sequence[Piece]) -> None:
        self.n_threads = [*getattr(self, "n_threads", []), torch.get_num_threads()]
        if self.meeting:
            self.meeting.wait(10)
        super().compute(pieces)


@needs_two_cores
@pytest.mark.parametrize("workers", [1, 2])
def test_a_prediction_alone_gets_all_cores_and_others_one_each(make_checkpoint: Make, workers: int) -> None:
    predictor = Counting.load(make_checkpoint(), device="cpu")
    queue = Queue(CPU, workers, n_threads=2)
    predictor.meeting = None
    queue.submit(start(predictor, 40)).result(60)
    predictor.meeting = threading.Barrier(2)
    with queue._changed:  # both are there before a thread looks
        jobs = [queue.submit(start(predictor, 40, seed)) for seed in range(2)]
    wait(jobs, 60)
    queue.close()
    assert predictor.n_threads == [usable_cores() // workers, 1, 1]


def test_workers_share_the_cores() -> None:
    queues = [Queue(CPU, workers=workers) for workers in (1, 64)]
    assert [len(queue._threads) for queue in queues] == [min(usable_cores(), 4), 1]
    for queue in queues:
        queue.close()


def test_batches_have_one_shape(predictor: Spy, queue: Queue) -> None:
    """As on a GPU."""
    queue._batch_pixels = 3 * 48 * 48
    predictions = [start(predictor, side, seed) for seed, side in enumerate([48, 32, 48, 48, 48])]
    with queue._changed:
        jobs = [queue.submit(prediction) for prediction in predictions]
    masks = [job.result(60) for job in jobs]
    first, other, second, third, fourth = predictions
    assert predictor.computed == [[first, second], [other], [third, fourth]]  # room for three: a power of two is used
    alone = predictor.start(predictions[0].prepared.pixels, "mask")
    while not alone.finished:
        predictor.compute([alone.next()])
    assert (masks[0] == alone.result).mean() > 0.99  # a batch may round differently


def test_batches_have_one_model(make_checkpoint: Make, queue: Queue) -> None:
    """Requests of the model before a reload are still being computed."""
    queue._batch_pixels = 4 * 48 * 48
    former, present = (Spy.load(make_checkpoint(seed=seed), device="cpu") for seed in range(2))
    predictions = [start(model, 48) for model in (former, present, former, present)]
    with queue._changed:
        jobs = [queue.submit(prediction) for prediction in predictions]
    wait(jobs, 60)
    assert former.computed == [[predictions[0], predictions[2]]]
    assert present.computed == [[predictions[1], predictions[3]]]


def test_unfinished_jobs_of_a_batch_go_on_in_several_threads(make_checkpoint: Make) -> None:
    """Their second tiles have two shapes, so that each needs a thread."""
    predictor = Counting.load(make_checkpoint(bilinear=False), device="cpu")
    predictor.tile, predictor.meeting = 256, None
    queue = Queue(CPU, n_threads=2)
    queue._batch_pixels = 2 * 256 * 256
    images = [np.zeros((height, 40), np.uint8) for height in (300, 320)]
    with queue._changed:
        jobs = [queue.submit(predictor.start(image, "mask")) for image in images]
    assert [job.result(60).shape for job in jobs] == [(300, 40), (320, 40)]
    queue.close()


def test_a_cancelled_job_is_not_computed(predictor: Spy, queue: Queue) -> None:
    prediction = start(predictor, 1000)
    with queue._changed:
        assert queue.submit(prediction).cancel()
    queue.submit(start(predictor, 40)).result(60)
    assert [prediction] not in predictor.computed


def test_a_job_cancelled_halfway_ends_after_the_piece_in_hand(predictor: Spy, queue: Queue) -> None:
    prediction = start(predictor, 3000)
    job = queue.submit(prediction)
    assert predictor.begun.wait(60)
    assert job.cancel()
    for _ in range(4):
        queue.submit(start(predictor, 40)).result(60)
    assert predictor.computed.count([prediction]) <= 2
    assert not prediction.finished


class Failing(Predictor):
    def compute(self, pieces: Sequence[Piece]) -> None:
        raise RuntimeError("no result")


@pytest.mark.parametrize("kind", [Predictor, Failing])
def test_finished_predictions_are_freed(make_checkpoint: Make, queue: Queue, kind: type[Predictor]) -> None:
    """At once, without the garbage collector: their images may be large."""
    predictor = kind.load(make_checkpoint(), device="cpu")
    gc.disable()
    logging.disable()  # pytest keeps log records with their tracebacks
    try:
        prediction = start(predictor, 40)
        freed = threading.Event()
        weakref.finalize(prediction, freed.set)
        job = queue.submit(prediction)
        del prediction
        wait([job], 60)
        del job
        assert freed.wait(10)
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def test_closing_cancels_unfinished_jobs(predictor: Spy) -> None:
    queue = Queue(CPU)
    jobs = [queue.submit(start(predictor, 2000)) for _ in range(3)]
    queue.close()
    assert all(job.cancelled() for job in jobs)
    assert queue.submit(start(predictor, 40)).cancelled()
