"""The engine: who is computed when, and that it does not matter to the result."""

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CPU, N_CORES, Spy, run, start

from service import cores
from service import engine as engines
from service.engine import Engine, Steps
from service.problems import ProblemError
from unet import Predictor
from unet.images import ImageError
from unet.predictor import Piece, Prediction

Make = Callable[..., Path]


class Placed(Predictor):
    """Notes on which cores it is computed."""

    def compute(self, pieces: Sequence[Piece]) -> None:
        cores = frozenset(os.sched_getaffinity(0))
        self.seen = [*getattr(self, "seen", []), (threading.current_thread().name, cores, torch.get_num_threads())]
        super().compute(pieces)


def test_among_others_as_alone(predictor: Spy) -> None:
    engine = Engine(max_in_flight=32, timeout_s=60, device=CPU)
    sizes = [40, 300, 40, 64, 200, 40, 280, 100]
    futures = [engine.submit(start(predictor, side, seed)) for seed, side in enumerate(sizes)]
    found = [future.result(60) for future in futures]
    engine.close()
    for (mask, seconds), (seed, side) in zip(found, enumerate(sizes), strict=True):
        np.testing.assert_array_equal(mask, predictor.run(start(predictor, side, seed)))
        assert seconds > 0


@pytest.mark.skipif(not cores.LINUX or N_CORES == 1, reason="needs Linux and two cores")
def test_streams_keep_to_cores_of_their_own_unless_alone(make_checkpoint: Make) -> None:
    everywhere = frozenset(os.sched_getaffinity(0))
    predictor = Placed.load(make_checkpoint(bilinear=False), device="cpu")
    predictor.tile = 256
    engine = Engine(max_in_flight=32, timeout_s=60, device=CPU)
    wait([engine.submit(start(predictor, 600, seed)) for seed in range(4)], 60)
    together, predictor.seen = predictor.seen, []
    engine.submit(start(predictor, 40)).result(60)
    engine.close()
    assert predictor.seen[0][1:] == (everywhere, len(everywhere))
    own = {name: cores for name, cores, _ in together if cores != everywhere}
    assert len(own) > 1
    assert all(n_threads == len(cores) for _, cores, n_threads in together)
    assert sum(map(len, own.values())) == len(frozenset.union(*own.values()))  # none in common
    assert frozenset(os.sched_getaffinity(0)) == everywhere  # others are where they were


class Meeting(Placed):
    """Computes a piece by itself when another stream does, too."""

    def compute(self, pieces: Sequence[Piece]) -> None:
        if len(pieces) == 1:
            self.meet.wait(10)
        super().compute(pieces)


@pytest.fixture
def meeting(make_checkpoint: Make) -> Meeting:
    predictor = Meeting.load(make_checkpoint(bilinear=False), device="cpu")
    predictor.meet, predictor.tile = threading.Barrier(2), 256
    return predictor


@pytest.mark.skipif(not cores.LINUX, reason="needs Linux")
def test_the_last_in_the_queue_is_not_alone_while_another_is_computed(meeting: Meeting, two_streams: Engine) -> None:
    everywhere = frozenset(os.sched_getaffinity(0))
    with two_streams._changed:
        futures = [two_streams.submit(start(meeting, 40, seed)) for seed in range(2)]
    assert [future.result(60)[0].shape for future in futures] == 2 * [(40, 40)]
    assert all(cores < everywhere for _, cores, _ in meeting.seen)


def test_what_a_batch_leaves_unfinished_wakes_another_stream(meeting: Meeting, two_streams: Engine) -> None:
    """Their next pieces are of two shapes."""
    two_streams._batch_pixels = 2 * 256 * 256
    images = [np.zeros((height, 40), np.uint8) for height in (300, 320)]
    with two_streams._changed:
        futures = [two_streams.submit(meeting.start(image, "mask")) for image in images]
    assert [future.result(60)[0].shape for future in futures] == [(300, 40), (320, 40)]


@pytest.mark.skipif(not cores.LINUX, reason="niceness is a thread's own on Linux only")
def test_streams_yield_to_others_of_a_process_that_is_nice_itself(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: Make
) -> None:
    """And compute where a sandbox does not let them."""
    wanted: list[int] = []

    def forbidden(which: int, who: int, niceness: int) -> None:
        wanted.append(niceness)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "getpriority", lambda *_: 10)
    monkeypatch.setattr(os, "setpriority", forbidden)
    engine = Engine(max_in_flight=32, timeout_s=60, device=CPU)
    predictor = Predictor.load(make_checkpoint(), device="cpu")
    assert engine.submit(start(predictor, 40)).result(60)[0].shape == (40, 40)
    engine.close()
    assert set(wanted) == {15}


def test_a_small_image_does_not_wait_for_a_large_one(predictor: Spy, one_stream: Engine) -> None:
    finished: list[str] = []
    large, small = (one_stream.submit(start(predictor, side)) for side in (1000, 40))
    large.add_done_callback(lambda _: finished.append("large"))
    small.add_done_callback(lambda _: finished.append("small"))
    wait([large, small], 60)
    assert finished == ["small", "large"]


def test_what_is_given_up_is_not_computed(predictor: Spy, one_stream: Engine) -> None:
    prediction = start(predictor, 1000)
    assert one_stream.submit(prediction).cancel()
    one_stream.submit(start(predictor, 40)).result(60)
    computed = len(predictor.computed)
    one_stream.submit(start(predictor, 40)).result(60)
    assert len(predictor.computed) == computed + 1
    assert not prediction.finished


def test_what_is_given_up_leaves_the_queue(predictor: Spy, one_stream: Engine) -> None:
    with one_stream._changed:  # the stream waits for it
        for _ in range(3):
            one_stream.submit(start(predictor, 40)).cancel()
        assert one_stream.queued == 1  # the last; no other has come since


class Held(Predictor):
    """Computes as soon as it may, or fails."""

    def compute(self, pieces: Sequence[Piece]) -> None:
        self.begun.set()
        assert self.may.wait(10)
        if self.fails:
            raise RuntimeError("no result")
        super().compute(pieces)


@pytest.mark.parametrize("end", ["finished", "failed", "model failed", "waits", "given up"])
def test_nothing_is_kept_of_what_is_over(make_checkpoint: Make, one_stream: Engine, end: str) -> None:
    """Its image may be large, and the next request far."""
    predictor = Held.load(make_checkpoint(), device="cpu")
    predictor.begun, predictor.may, predictor.fails = threading.Event(), threading.Event(), end == "model failed"
    gone = threading.Event()
    if end == "waits":  # for another one's room
        one_stream._budget.take(2**30, until=Future())

    def header(_: Prediction) -> None:
        raise ValueError("no header")

    def broken(prediction: Prediction) -> None:
        try:
            header(prediction)
        except ValueError as error:
            raise ImageError("no image") from error

    def steps() -> Steps[None]:
        prediction = start(predictor, 40)
        weakref.finalize(prediction, gone.set)
        if end == "waits":
            predictor.begun.set()
            yield 2**30
        yield prediction
        if end == "failed":
            broken(prediction)

    async def work() -> None:
        working = asyncio.create_task(one_stream.work(steps()))
        await asyncio.to_thread(predictor.begun.wait)
        if end in ("waits", "given up"):
            working.cancel()
            await asyncio.wait([working])
        predictor.may.set()
        await asyncio.wait([working])

    gc.disable()  # it would find it
    logging.disable()  # pytest keeps what is logged, with its traceback
    try:
        run(work())
        assert gone.wait(10)
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def test_work_is_sent_what_it_asked_for(predictor: Spy, one_stream: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "time", Mock(perf_counter=Mock(side_effect=count())))  # a second for each piece

    def steps() -> Steps[int]:
        sides = []
        for side, n_pieces in ((40, 1), (600, 7 * 7)):
            mask, seconds = yield start(predictor, side)
            assert seconds == n_pieces
            sides.append(len(mask))
        return sum(sides)

    assert run(one_stream.work(steps())) == 640


def test_codecs_have_threads_of_their_own_where_there_are_cores_for_them(predictor: Spy, beside_codecs: Engine) -> None:
    assert all(name.startswith("codec") for name in threads_of_steps(predictor, beside_codecs))


def test_streams_do_it_all_where_every_core_has_one(predictor: Spy, all_by_itself: Engine) -> None:
    assert threads_of_steps(predictor, all_by_itself) == ["inference-0"] * 3


def threads_of_steps(predictor: Predictor, engine: Engine) -> list[str]:
    names = []

    def steps() -> Steps[None]:
        for _ in range(2):
            names.append(threading.current_thread().name)
            yield start(predictor, 40)
        names.append(threading.current_thread().name)

    run(engine.work(steps()))
    return names


def test_what_is_begun_is_computed_in_the_same_turn(predictor: Spy, all_by_itself: Engine) -> None:
    """The next of several pages is another turn."""
    order: list[str] = []

    def steps(name: str, n_pages: int) -> Steps[None]:
        order.append(f"{name} begins")
        for page in range(n_pages):
            yield start(predictor, 40)
            order.append(f"{name}, page {page}")

    async def work() -> None:
        with all_by_itself._changed:  # so that all are there when the stream looks
            working = [asyncio.create_task(all_by_itself.work(steps(*each))) for each in (("a", 2), ("b", 1), ("c", 1))]
            await asyncio.sleep(0)
        await asyncio.gather(*working)

    run(work())
    assert order == ["a begins", "a, page 0", "b begins", "b, page 0", "c begins", "c, page 0", "a, page 1"]


def test_work_on_large_images_waits_for_room_and_small_ones_pass(predictor: Spy, beside_codecs: Engine) -> None:
    order: list[str] = []
    holding, leave = threading.Event(), threading.Event()

    def large(name: str) -> Steps[None]:
        yield 2**30  # more than there is room for
        order.append(name)
        holding.set()
        leave.wait(60)

    def small() -> Steps[int]:
        yield 40 * 40
        mask, _ = yield start(predictor, 40)
        order.append("small")
        return len(mask)

    async def work() -> None:
        first = asyncio.create_task(beside_codecs.work(large("first")))
        await asyncio.to_thread(holding.wait)
        others = [asyncio.create_task(beside_codecs.work(large(name))) for name in ("impatient", "second")]
        assert await beside_codecs.work(small()) == 40
        others[0].cancel()
        await asyncio.wait(others[:1])  # it takes a turn of the event loop
        leave.set()
        await asyncio.gather(first, others[1])

    run(work())
    assert order == ["first", "small", "second"]


def test_large_images_wait_on_half_of_the_places() -> None:
    engine = Engine(max_in_flight=4, timeout_s=60, device=CPU)
    leave = threading.Event()

    def large() -> Steps[None]:
        yield 2**30
        leave.wait(60)

    async def work() -> None:
        working = [asyncio.create_task(engine.work(large())) for _ in range(4)]
        done, waiting = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(ProblemError, match="2 images above 1048576 pixels are waiting already"):
            await done.pop()
        leave.set()
        await asyncio.gather(*waiting)

    run(work())
    engine.close()


def test_work_that_nobody_waits_for_ends(predictor: Spy, one_stream: Engine) -> None:
    prediction = start(predictor, 3000)

    def steps() -> Steps[None]:
        yield prediction

    async def give_up() -> None:
        working = asyncio.create_task(one_stream.work(steps()))
        await asyncio.to_thread(predictor.begun.wait)
        working.cancel()

    run(give_up())
    for _ in range(6):  # in turn with pieces of the large one, if it went on
        one_stream.submit(start(predictor, 40)).result(60)
    assert predictor.computed.count([prediction]) <= 2
    assert not prediction.finished


def test_work_that_is_given_up_during_a_step_ends_with_it(predictor: Spy, one_stream: Engine) -> None:
    prediction = start(predictor, 40)
    stepping, given_up = threading.Event(), threading.Event()

    def steps() -> Steps[None]:
        stepping.set()
        assert given_up.wait(60)
        yield prediction

    async def give_up() -> None:
        working = asyncio.create_task(one_stream.work(steps()))
        await asyncio.to_thread(stepping.wait)
        working.cancel()
        await asyncio.wait([working])
        given_up.set()

    run(give_up())
    for _ in range(2):
        one_stream.submit(start(predictor, 40)).result(60)
    assert [prediction] not in predictor.computed


def test_batches_are_of_one_shape(predictor: Spy, one_stream: Engine) -> None:
    """As on a GPU."""
    one_stream._batch_pixels = 3 * 48 * 48
    jobs = [start(predictor, side, seed) for seed, side in enumerate([48, 32, 48, 48, 48])]
    with one_stream._changed:
        futures = [one_stream.submit(prediction) for prediction in jobs]
    wait(futures, 60)
    assert predictor.computed == [[jobs[0], jobs[2]], [jobs[1]], [jobs[3], jobs[4]]]  # there is room for three: two go
    for future, (seed, side) in zip(futures, enumerate([48, 32, 48, 48, 48]), strict=True):
        mask, _ = future.result()
        assert (mask == predictor.run(start(predictor, side, seed))).mean() > 0.99  # bfloat16 may round differently


def test_batches_are_of_one_model(make_checkpoint: Make, one_stream: Engine) -> None:
    """Where another one has come meanwhile."""
    one_stream._batch_pixels = 4 * 48 * 48
    former, present = (Spy.load(make_checkpoint(seed=seed), device="cpu") for seed in range(2))
    jobs = [start(model, 48) for model in (former, present, former, present)]
    with one_stream._changed:
        futures = [one_stream.submit(prediction) for prediction in jobs]
    wait(futures, 60)
    assert (former.computed, present.computed) == ([[jobs[0], jobs[2]]], [[jobs[1], jobs[3]]])


def test_closing_cancels_what_waits(predictor: Spy) -> None:
    engine = Engine(max_in_flight=32, timeout_s=60, device=CPU)

    def steps() -> Steps[None]:
        yield 2**30
        yield start(predictor, 2000)

    async def work() -> None:
        working = [asyncio.create_task(engine.work(steps())) for _ in range(3)]  # two of them wait for room
        await asyncio.to_thread(engine.close)
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*working, return_exceptions=True)
        )

    futures = [engine.submit(start(predictor, 2000)) for _ in range(3)]
    run(work())
    assert all(future.cancelled() for future in futures)
    assert engine.submit(start(predictor, 40)).cancelled()
