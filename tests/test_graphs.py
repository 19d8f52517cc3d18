"""CUDA graph capture: when, for which shapes, by which thread. A recorder stands in for the GPU."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
import torch
from torch import Tensor

from unet import Predictor
from unet.engines import graphs
from unet.engines.graphs import Arguments, Function, GraphCache, recorded

Make = Callable[..., Path]


class Recorder:
    """Captures functions of one tensor; notes the lengths captured and replayed."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, function: Function, examples: Arguments) -> Function:
        (example,) = examples
        assert example is not None
        self.captured.append(len(example))

        def replay(x: Tensor) -> Tensor:
            assert x.shape == example.shape
            self.replayed.append(len(x))
            return function(x)

        return replay


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_on_a_cpu_the_function_stays_as_it_is() -> None:
    assert recorded(double, torch.device("cpu")) is double


def test_shape_is_captured_at_its_second_call() -> None:
    recorder = Recorder()
    cache = GraphCache(double, recorder)
    for n in (3, 3, 3, 5):
        torch.testing.assert_close(cache(torch.arange(n)), 2 * torch.arange(n))
    assert recorder.captured == [3]
    assert recorder.replayed == [3, 3]


def test_another_dtype_is_another_graph() -> None:
    recorder = Recorder()
    cache = GraphCache(double, recorder)
    for x in (torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)):
        assert cache(x).dtype == x.dtype
    assert recorder.replayed == [3]


def test_least_recently_used_graph_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    recorder = Recorder()
    cache = GraphCache(double, recorder)
    for n in (1, 1, 2, 2, 1, 3):  # 3 takes the place of 2
        cache(torch.arange(n))
    assert recorder.replayed == [1, 2, 1]
    for n in (1, 2, 2):
        cache(torch.arange(n))
    assert recorder.replayed == [1, 2, 1, 1, 2]
    assert recorder.captured == [1, 2, 2]


def test_thread_captures_only_after_its_first_call() -> None:
    recorder = Recorder()
    cache = GraphCache(double, recorder)
    cache(torch.arange(3))
    with ThreadPoolExecutor(1) as second:
        for n, captured in ((3, []), (3, [3]), (4, [3])):
            second.submit(cache, torch.arange(n)).result()
            assert recorder.captured == captured
    with ThreadPoolExecutor(1) as third:  # it replays a graph, which does not initialise it
        for n, captured in ((3, [3]), (4, [3]), (4, [3, 4])):
            third.submit(cache, torch.arange(n)).result()
            assert recorder.captured == captured


def test_two_caches_never_capture_at_once() -> None:
    """As the old and the new model do while the service changes to the new one."""
    meeting = Barrier(2)
    met = []

    def capture(function: Function, examples: Arguments) -> Function:
        try:
            meeting.wait(0.2)
            met.append(examples)
        except BrokenBarrierError:
            meeting.reset()
        return function

    def call_twice(cache: GraphCache) -> None:
        for n in (3, 3):
            cache(torch.arange(n))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(call_twice, [GraphCache(double, capture) for _ in range(2)]))
    assert not met


def test_failed_capture_is_computed_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Function, examples: Arguments) -> Function:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand advice")

    cache = GraphCache(double, refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            torch.testing.assert_close(cache(torch.arange(3)), 2 * torch.arange(3))
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph for (3,), which is slower: CUDA error: operation not permitted when stream is capturing"
    ]


def test_errors_of_the_computation_reach_the_caller() -> None:
    """The service halves a batch that is out of memory."""

    def fail(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    cache = GraphCache(fail, Recorder())
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            cache(torch.zeros(3))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"n_classes": 3}, {"bilinear": False}])
def test_replayed_graph_on_a_gpu_answers_as_the_first_call(make_checkpoint: Make, options: dict[str, object]) -> None:
    predictor = Predictor.load(make_checkpoint(**options), device="cuda", precision="fp32")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (200, 150), dtype=np.uint8) for _ in range(3)]
    first = [predictor(image) for image in images]
    for image, before in zip(images, first, strict=True):
        np.testing.assert_allclose(predictor(image), before, atol=2e-3)  # other kernels round differently


@pytest.mark.gpu
def test_two_threads_capture_on_a_gpu(make_checkpoint: Make) -> None:
    predictor = Predictor.load(make_checkpoint(bilinear=False), device="cuda", precision="fp32")
    images = [np.full((side, side), 100, np.uint8) for side in range(32, 352, 16)]

    def answer(_: int) -> None:
        stream = torch.cuda.current_stream()
        for image in images:
            for _ in range(3):
                predictor.mask(image)
        assert torch.cuda.current_stream() == stream

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(answer, range(2)))
