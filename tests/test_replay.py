"""A forward pass that is recorded when its shape comes again, and computes the same as before."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer import fit
from trainer.data import Batches, Sample, sample
from trainer.fit import Learner
from trainer.recipes import RECIPES
from unet import Predictor, replay
from unet.forward import Output
from unet.pixels import Preprocessing
from unet.replay import Arguments, Function, Replay

Make = Callable[..., Path]


class Recorder:
    """Stands in for a GPU: notes which shapes are recorded, and which recordings are used."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, function: Function, examples: Arguments) -> Function:
        (example,) = examples
        assert example is not None
        self.recorded.append(len(example))

        def again(x: Tensor) -> Tensor:
            assert x.shape == example.shape
            self.replayed.append(len(x))
            return function(x)

        return again


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    recorder = Recorder()
    double = Replay(lambda x: 2 * x, recorder)
    for n in (3, 3, 3, 5):
        torch.testing.assert_close(double(torch.arange(n)), 2 * torch.arange(n))
    assert recorder.recorded == [3]
    assert recorder.replayed == [3, 3]


def test_what_was_used_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST", 2)
    recorder = Recorder()
    double = Replay(lambda x: 2 * x, recorder)
    for n in (1, 1, 2, 2, 1, 3):  # 3 takes the place of 2
        double(torch.arange(n))
    for n in (1, 2, 2):
        double(torch.arange(n))
    assert recorder.recorded == [1, 2, 2]


def test_a_thread_records_only_after_it_has_computed_step_by_step() -> None:
    recorder = Recorder()
    double = Replay(lambda x: 2 * x, recorder)
    double(torch.arange(3))
    with ThreadPoolExecutor(1) as other:
        for n, recorded in ((3, []), (3, [3]), (4, [3])):
            other.submit(double, torch.arange(n)).result()
            assert recorder.recorded == recorded
    with ThreadPoolExecutor(1) as third:  # it has the use of a recording, but that does not make it ready
        for n, recorded in ((3, [3]), (4, [3]), (4, [3, 4])):
            third.submit(double, torch.arange(n)).result()
            assert recorder.recorded == recorded


def test_two_threads_never_record_at_once() -> None:
    """Each has a Replay of its own, as the outputs of a model have, and a new model beside the old."""
    meeting = Barrier(2)
    overlaps = []

    def record(function: Function, examples: Arguments) -> Function:
        try:
            meeting.wait(0.2)
            overlaps.append(examples)
        except BrokenBarrierError:
            meeting.reset()
        return function

    def twice(double: Replay) -> None:
        for n in (3, 3):
            double(torch.arange(n))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(twice, [Replay(lambda x: 2 * x, record) for _ in range(2)]))
    assert not overlaps


def test_another_dtype_is_another_recording() -> None:
    recorder = Recorder()
    double = Replay(lambda x: 2 * x, recorder)
    for x in (torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)):
        assert double(x).dtype == x.dtype
    assert recorder.replayed == [3]


def test_what_cannot_be_recorded_is_computed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Function, examples: Arguments) -> Function:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand advice")

    double = Replay(lambda x: 2 * x, refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            torch.testing.assert_close(double(torch.arange(3)), 2 * torch.arange(3))
    assert [record.getMessage() for record in caplog.records] == [
        "computing (3,) step by step: CUDA error: operation not permitted when stream is capturing"
    ]


def test_a_failure_of_the_computation_is_one() -> None:
    """Out of memory, say: the engine has to know."""

    def fail(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    computed = Replay(fail, Recorder())
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            computed(torch.zeros(3))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"n_classes": 3}, {"bilinear": False}])
def test_recorded_on_a_gpu_it_answers_the_same(make_checkpoint: Make, options: dict[str, object]) -> None:
    predictor = Predictor.load(make_checkpoint(**options), device="cuda", precision="fp32")
    step = predictor._passes["probabilities"]
    assert isinstance(step, Replay)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (200, 150), dtype=np.uint8) for _ in range(3)]
    first = [predictor(image) for image in images]  # the first step by step, the others recorded
    assert [known is None for known in step._known.values()] == [False]
    for image, before in zip(images, first, strict=True):
        np.testing.assert_allclose(predictor(image), before, atol=2e-3)  # other kernels round differently
    batch = [predictor.start(image) for image in images]
    for _ in range(3):
        for each in batch:
            each.restart()
        predictor.compute([each.next() for each in batch])
        for each, before in zip(batch, first, strict=True):
            np.testing.assert_allclose(each.result, before, atol=2e-3)
    middle = float(np.median(first[0])) if predictor.binary else None  # so that it takes part
    masks = [predictor.mask(images[0], middle) for _ in range(3)]
    assert (masks[2] != masks[0]).mean() < 0.1
    assert not predictor.binary or 0.4 < (masks[2] == 255).mean() < 0.6


@pytest.mark.gpu
def test_two_threads_record_on_a_gpu_what_each_needs(make_checkpoint: Make) -> None:
    predictor = Predictor.load(make_checkpoint(bilinear=False), device="cuda", precision="fp32")
    images = [np.full((side, side), 100, np.uint8) for side in range(32, 352, 16)]

    def answer(output: Output) -> None:
        stream = torch.cuda.current_stream()
        for image in images:
            for _ in range(3):
                predictor.run(predictor.start(image, output))
        assert torch.cuda.current_stream() == stream

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(answer, ("mask", "probability")))
    for output in ("mask", "probability"):
        step = predictor._passes[output]
        assert isinstance(step, Replay)
        assert step._function not in step._known.values()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_answers_are_those_of_the_weights_as_they_are_now(device: str) -> None:
    learner, batches = small_learner(torch.device(device))
    predictor = Predictor(learner.result, Preprocessing())
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for batch in islice(batches.epoch(1), 4):  # the first answer step by step, the others recorded
        learner.step(batch, 1e-2)
        learner.result.eval()
        x = predictor.preprocessing(image, 1).tensor()[None].to(device)
        with torch.inference_mode():
            expected = learner.result(x).sigmoid()[0, 0].cpu().numpy()
        np.testing.assert_allclose(predictor(image), expected, atol=2e-3)


def small_learner(device: torch.device, **settings: object) -> tuple[Learner, Batches]:
    recipe = replace(RECIPES["default"], base_channels=8, image_size=64, batch_size=2, dropout=0, mixed_precision=False)
    recipe = replace(recipe, **settings)
    drawn = [sample.generate(np.random.default_rng(i), size=96) for i in range(2)]
    samples = [Sample("", image, label // 255) for image, label in drawn]
    torch.manual_seed(0)
    learner = Learner(recipe.build(1, 1).to(device), recipe)
    return learner, Batches(samples, Preprocessing(), 1, 2, recipe, margin=0, seed=0, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"mixed_precision": True}, {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05}])
def test_training_recorded_on_a_gpu_learns_the_same(settings: dict[str, object]) -> None:
    losses = {}
    for recorded in (False, True):
        learner, batches = small_learner(torch.device("cuda"), **settings)
        assert isinstance(learner._step, Replay)
        if not recorded:
            learner._step = learner._one_step
        rates = torch.linspace(0.5, 1, 12) * learner.recipe.lr  # they take part in what is recorded
        steps = zip(batches.epoch(1), rates.tolist(), strict=False)
        losses[recorded] = [float(learner.step(batch, lr)) for batch, lr in steps]
        if recorded:
            assert None not in learner._step._known.values()
            assert learner._step._function not in learner._step._known.values()
    assert losses[True] == pytest.approx(losses[False], rel=0.03)
    assert losses[True][-1] < losses[True][0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_step_whose_loss_is_no_number_changes_no_weights(device: str, optimizer: str) -> None:
    learner, batches = small_learner(torch.device(device), optimizer=optimizer)
    *fine, last = islice(batches.epoch(1), 4)
    for batch in fine:
        assert learner.step(batch, 1e-3).isfinite()
    before = [parameter.clone() for parameter in learner.network.parameters()]
    assert learner.step(last._replace(images=last.images * torch.nan), 1e-3).isnan()
    assert all(torch.equal(*pair) for pair in zip(before, learner.network.parameters(), strict=True))
    learner.step(fine[0], 1e-3)
    assert not torch.equal(before[0], next(learner.network.parameters()))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_step_is_as_long_as_its_learning_rate_says(device: str, optimizer: str) -> None:
    learner, batches = small_learner(torch.device(device), optimizer=optimizer)
    moved = []
    for batch, lr in zip(batches.epoch(1), (1e-3, 0.0, 1e-3, 0.0, 1e-3), strict=False):
        before = [parameter.clone() for parameter in learner.network.parameters()]
        learner.step(batch, lr)
        moved.append(not all(torch.equal(*pair) for pair in zip(before, learner.network.parameters(), strict=True)))
    assert moved == [True, False, True, False, True]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_longer_gradients_are_shortened(device: str) -> None:
    learner, batches = small_learner(torch.device(device), optimizer="sgd", weight_decay=0.0, clip_norm=0.01)
    for batch in islice(batches.epoch(1), 3):
        before = [parameter.clone() for parameter in learner.network.parameters()]
        learner.step(batch, 0.5)
        moved = [(b - a).flatten() for a, b in zip(before, learner.network.parameters(), strict=True)]
        assert float(torch.cat(moved).detach().norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_order_of_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for order in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(fit, "memory_format", lambda device, order=order: order)
        learner, batches = small_learner(torch.device("cpu"))
        assert learner.network.inc.double_conv[3].weight.is_contiguous(memory_format=order)
        losses[order] = [float(learner.step(batch, 1e-3)) for batch in islice(batches.epoch(1), 4)]
    assert losses[torch.contiguous_format] == pytest.approx(losses[torch.channels_last], rel=1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_step_moves_the_average(device: str) -> None:
    learner, batches = small_learner(torch.device(device))
    expected = None
    for n, batch in enumerate(islice(batches.epoch(1), 4)):
        learner.step(batch, 1e-3)
        now = next(learner.network.parameters()).detach().clone()
        keep = (1 + n) / (10 + n)
        expected = now if expected is None else keep * expected + (1 - keep) * now
        torch.testing.assert_close(next(learner.result.parameters()), expected)
