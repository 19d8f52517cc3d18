"""When computing fails: the client is told, the others have their masks, and the engine goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CPU, Spy, run, start

from service.engine import Engine, InferenceError, Steps
from unet import Predictor
from unet.predictor import Piece, Prediction

Make = Callable[..., Path]


def test_a_stream_that_ends_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make_checkpoint: Make
) -> None:
    monkeypatch.setattr(Engine, "_batch", Mock(side_effect=ZeroDivisionError))
    engine = Engine(max_in_flight=32, timeout_s=60, device=CPU)
    engine.submit(start(Predictor.load(make_checkpoint(), device="cpu"), 40))
    while not engine.lost:
        pass
    assert "a stream has ended" in caplog.text
    engine.close()


def test_work_that_fails_says_why(predictor: Spy, one_stream: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(sent: int) -> Steps[None]:
        for _ in range(sent):
            yield start(predictor, 40)
        raise ValueError("no image")

    for sent in (0, 1):
        with pytest.raises(ValueError, match="no image"):
            run(one_stream.work(steps(sent)))
    monkeypatch.setattr(Predictor, "compute", lambda *_: 1 / 0)
    with pytest.raises(InferenceError):
        run(one_stream.work(steps(1)))


def test_work_that_cannot_be_handed_on_is_told_and_the_thread_goes_on(
    predictor: Spy, one_stream: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps() -> Steps[int]:
        mask, _ = yield start(predictor, 40)
        return len(mask)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "submit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(one_stream.work(steps()))
    assert run(one_stream.work(steps())) == 40


def test_a_failure_is_told_and_the_next_one_works(
    predictor: Spy, one_stream: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "compute", lambda *_: 1 / 0)
        with pytest.raises(InferenceError):
            one_stream.submit(start(predictor, 40)).result(60)
        assert one_stream.failure is not None
        assert one_stream.failure.startswith("ZeroDivisionError at 20")
    mask, _ = one_stream.submit(start(predictor, 40)).result(60)
    assert mask.shape == (40, 40)
    assert one_stream.failure is None


def test_a_result_that_cannot_be_made_is_told_and_the_others_have_theirs(
    predictor: Spy, one_stream: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no memory for it. The thread that computes has to go on."""
    one_stream._batch_pixels = 4 * 48 * 48
    bad, good = start(predictor, 48, 0), start(predictor, 48, 1)
    result = Prediction.result.fget
    assert result

    def failing(self: Prediction) -> Any:
        if self is bad:
            raise MemoryError
        return result(self)

    monkeypatch.setattr(Prediction, "result", property(failing))
    with one_stream._changed:
        futures = [one_stream.submit(prediction) for prediction in (bad, good)]
    with pytest.raises(InferenceError):
        futures[0].result(60)
    assert futures[1].result(60)[0].shape == (48, 48)
    assert predictor.computed == [[bad, good]]
    assert one_stream.submit(start(predictor, 40)).result(60)[0].shape == (40, 40)


class Small(Spy):
    """On a device without memory for more than so many pixels at a time."""

    limit = 0

    def compute(self, pieces: Sequence[Piece]) -> None:
        if sum(piece.pixels.size for piece in pieces) > self.limit:
            raise torch.OutOfMemoryError("no memory for that many")
        super().compute(pieces)


def test_out_of_memory_is_mended_by_smaller_tiles(make_checkpoint: Make, one_stream: Engine) -> None:
    predictor = Small.load(make_checkpoint(bilinear=False), device="cpu")
    predictor.limit = 500 * 500
    mask, _ = one_stream.submit(start(predictor, 800)).result(60)
    assert predictor.tile == 400
    np.testing.assert_array_equal(
        mask, Predictor.load(make_checkpoint(bilinear=False), device="cpu").run(start(predictor, 800))
    )
    assert one_stream.failure is None


def test_out_of_memory_is_mended_by_smaller_batches(make_checkpoint: Make, one_stream: Engine) -> None:
    predictor = Small.load(make_checkpoint(bilinear=False), device="cpu")
    predictor.limit = 300 * 300  # two of 208 x 208, not four
    one_stream._batch_pixels = 4 * 208 * 208
    jobs = [start(predictor, 200, seed) for seed in range(4)]
    with one_stream._changed:  # so that all are there when the stream looks
        futures = [one_stream.submit(job) for job in jobs]
    assert [future.result(60)[0].shape for future in futures] == [(200, 200)] * 4
    assert predictor.computed == [jobs[:2], jobs[2:]]


def test_out_of_memory_for_the_smallest_is_a_failure(make_checkpoint: Make, one_stream: Engine) -> None:
    predictor = Small.load(make_checkpoint(), device="cpu")
    with pytest.raises(InferenceError):
        one_stream.submit(start(predictor, 800)).result(60)
    assert one_stream.failure is not None
    assert one_stream.failure.startswith("OutOfMemoryError at 20")
    assert not one_stream.lost  # the device still answers


@pytest.mark.parametrize(
    ("error", "lost"),
    [(RuntimeError("CUDA error: an illegal memory access"), True), (torch.OutOfMemoryError("no memory"), False)],
    ids=["no answer", "no memory"],
)
def test_a_device_that_does_not_answer_after_a_failure_is_lost(
    predictor: Spy, one_stream: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool
) -> None:
    monkeypatch.setattr(Predictor, "compute", lambda *_: 1 / 0)
    monkeypatch.setattr(torch, "zeros", Mock(side_effect=error))
    with pytest.raises(InferenceError):
        one_stream.submit(start(predictor, 40)).result(60)
    assert one_stream.lost is lost
