# ruff: noqa: F811  (parameters are named like the imported fixtures)
"""A model in the process of `unet-segment`: limits by memory, images computed by turns or together, signals."""

import os
import signal
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GREY, Make, png
from test_batch import files, images, model  # noqa: F401  (fixtures)

from batch.__main__ import main
from batch.work import Threads
from unet import Predictor
from unet.prediction import Piece, Prediction


def test_an_image_that_memory_has_no_room_for_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = bytearray(png(GREY))
    bomb[16:24] = (900_000).to_bytes(4) * 2  # width and height
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    (images / "bomb.png").write_bytes(bomb)
    assert main(["images"]) == 1
    assert "pixels (--max-pixels), found 900000 x 900000 on page 1" in capsys.readouterr().err
    assert main(["images", "--out", "small", "--max-pixels", "200"]) == 1
    assert "expected at most 200 pixels (--max-pixels), found 24 x 20 on page 1" in capsys.readouterr().err
    assert list(files(Path("small"))) == ["cell10_mask.png"]


def test_several_kinds_keep_the_probabilities_of_all_classes(
    images: Path, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_checkpoint("classes.pth", n_classes=3))
    monkeypatch.setattr("batch.local.memory", lambda: 120 * (16 + 8))  # for a plane of cell10
    assert main(["images/cell10.png", "--model", model]) == 0
    assert main(["images/cell10.png", "--model", model, "--output", "mask,probability"]) == 1
    assert "expected at most 72 pixels (--max-pixels)" in capsys.readouterr().err


def test_out_of_memory_smaller_tiles_are_computed(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "large.png").write_bytes(png(np.kron(GREY, np.ones((52, 50), np.uint8))))
    compute, sides = Predictor.compute, list[int]()

    def compute_small(predictor: Predictor, pieces: Sequence[Piece]) -> None:
        sides.append(max(pieces[0].input.pixels.shape))
        if sides[-1] > 400:
            raise torch.OutOfMemoryError
        compute(predictor, pieces)

    monkeypatch.setattr(Predictor, "compute", compute_small)
    assert main(["images/large.png"]) == 0
    assert sides[0] == 608
    assert max(sides[1:]) == 304


@pytest.mark.parametrize("n_bad", [0, 1])
def test_images_of_one_shape_are_computed_together_but_fail_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], n_bad: int
) -> None:
    (tmp_path / "many").mkdir()
    rng, n, white = np.random.default_rng(0), 8, 255
    for i in range(n):
        image = np.full((32, 48), white, np.uint8) if i < n_bad else rng.integers(0, white, (32, 48), np.uint8)
        (tmp_path / f"many/{i}.png").write_bytes(png(image))
    start, compute, sizes, all_started = Predictor.start, Predictor.compute, list[int](), threading.Barrier(n)

    def waits(predictor: Predictor, *arguments: Any, **options: Any) -> Prediction:
        all_started.wait(timeout=60)
        return start(predictor, *arguments, **options)

    def fails_for_white(predictor: Predictor, pieces: Sequence[Piece]) -> None:
        sizes.append(len(pieces))
        assert not any((piece.input.pixels == white).all() for piece in pieces)
        compute(predictor, pieces)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as in an actor with one core
    monkeypatch.setattr(Predictor, "compute", fails_for_white)
    assert main(["many", "--out", "single", "--concurrency", "1"]) == n_bad
    assert sizes == [1] * n
    monkeypatch.setattr(Predictor, "start", waits)
    assert main(["many", "--out", "together", "--concurrency", str(n)]) == n_bad
    assert max(sizes) > 1
    assert len(files(Path("together"))) == n - n_bad
    assert files(Path("together")) == files(Path("single"))
    assert capsys.readouterr().err.count(f"failed    {tmp_path}/many/0.png: a bug of unet-segment") == 2 * n_bad


def test_a_large_image_is_given_up_between_two_tiles(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "large.png").write_bytes(png(np.zeros((2000, 2000), np.uint8)))
    compute, n_pieces = Predictor.compute, 0

    def interrupted(predictor: Predictor, pieces: Sequence[Piece]) -> None:
        nonlocal n_pieces
        n_pieces += len(pieces)
        if n_pieces == 1:
            os.kill(os.getpid(), signal.SIGINT)  # to the main thread, as Ctrl-C
        compute(predictor, pieces)

    monkeypatch.setattr(Predictor, "compute", interrupted)
    assert main(["images/large.png"]) == 130
    assert 1 <= n_pieces < 9
    assert files(Path("masks")) == {}


def test_a_batch_that_fails_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "many").mkdir()
    for i in range(6):
        (tmp_path / f"many/{i}.png").write_bytes(png(GREY))
    start, compute, sizes, all_started = Predictor.start, Predictor.compute, list[int](), threading.Barrier(6)

    def waits(predictor: Predictor, *arguments: Any, **options: Any) -> Prediction:
        all_started.wait(timeout=60)
        return start(predictor, *arguments, **options)

    def fails_together(predictor: Predictor, pieces: Sequence[Piece]) -> None:
        sizes.append(len(pieces))
        assert len(sizes) < 100
        if len(pieces) > 1:
            raise MemoryError
        compute(predictor, pieces)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(Predictor, "start", waits)
    monkeypatch.setattr(Predictor, "compute", fails_together)
    assert main(["many", "--tta", "--concurrency", "6"]) == 0  # eight pieces of each
    assert sum(size > 1 for size in sizes) == 1
    assert "6 images segmented" in capsys.readouterr().out


def test_a_signal_that_a_library_tells_in_its_own_way_is_named(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_runner: Threads) -> str:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # as Ray does
        raise AssertionError("no signal")

    monkeypatch.setattr(Threads, "model", interrupted)
    assert main([str(images)]) == 128 + signal.SIGTERM
    said = "unet-segment: stopped by SIGTERM; the same command goes on"
    assert capsys.readouterr().err.splitlines()[-1] == said
