"""Hot reload: the model file may change at any time."""

import gc
import hashlib
import os
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import torch
from conftest import Serve, picture, png, running

from service import models
from service.models import ModelSlot
from unet import NetworkConfig
from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint
from unet.pixels import Preprocessing
from unet.prediction import Prediction

Make = Callable[..., Path]


def run(prediction: Prediction) -> None:
    while not prediction.finished:
        prediction.predictor.compute([prediction.next()])


def test_a_newer_file_is_served_and_a_broken_one_is_not(make_checkpoint: Make) -> None:
    path = make_checkpoint(seed=1)
    slot = ModelSlot(path, "cpu", "auto", warm_up=run)
    slot.refresh()
    first = slot.current
    assert first is not None
    slot.refresh()
    assert slot.current is first  # the same file is not loaded again

    make_checkpoint(seed=2)
    slot.refresh()
    second = slot.current
    assert second is not None
    assert second.id != first.id

    path.write_bytes(b"half a file")
    slot.refresh()
    assert slot.current is second
    assert slot.status == "ok"
    assert slot.refusal is not None

    path.unlink()
    slot.refresh()
    assert slot.current is second
    assert slot.refusal == "best_model.pth: no such file"

    make_checkpoint(seed=1)
    slot.refresh()
    assert slot.current is not None
    assert slot.current.id == first.id
    assert slot.refusal is None


def test_a_file_that_becomes_readable_is_served(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chmod changes neither content nor time of modification."""
    path = make_checkpoint()
    slot = ModelSlot(path, "cpu", "auto", warm_up=run)
    with monkeypatch.context() as patch:  # root may read everything
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        slot.refresh()
    assert slot.status == "failed"
    assert slot.refusal == "best_model.pth: cannot be read: Permission denied"
    path.chmod(0o640)
    slot.refresh()
    assert slot.status == "ok"


def test_a_file_is_tried_again_after_a_lack_of_memory(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RETRY_S", 0.0)
    outcomes: list[str] = []
    slot = ModelSlot(make_checkpoint(), "cpu", "auto", warm_up=run, on_outcome=outcomes.append)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", Mock(side_effect=MemoryError))
        for _ in range(2):
            slot.refresh()
    assert slot.refusal == "best_model.pth: cannot be read: there is no memory for it"
    slot.refresh()
    assert slot.status == "ok"
    assert outcomes == ["refused", "loaded"]


def test_without_a_watch_the_first_model_is_kept(
    tmp_path: Path, make_checkpoint: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best_model.pth"
    looks: list[bool] = []
    refresh = ModelSlot.refresh

    def counted(slot: ModelSlot) -> None:
        looks.append(path.exists())
        refresh(slot)

    monkeypatch.setattr(ModelSlot, "refresh", counted)
    monkeypatch.setattr(models, "FIRST_S", 0.01)
    with serve(model=path, watch_s=0) as client:
        path.write_bytes(b"damaged: not the first one")
        while client.get("/health").json()["status"] != "failed":
            pass
        make_checkpoint(seed=1)
        while client.get("/health").status_code == 503:
            pass
        first, n = client.get("/health").json()["model"]["id"], len(looks)
        make_checkpoint(seed=2)
        for _ in range(50):
            assert client.get("/health").json()["model"]["id"] == first
        assert len(looks) == n
    looks.clear()
    with serve(model=path, watch_s=0) as client:
        second = client.get("/health").json()["model"]["id"]
        assert second != first
        make_checkpoint(seed=1)
        assert client.get("/health").json()["model"]["id"] == second
    assert looks == [True]


def test_the_file_is_watched(tmp_path: Path, serve: Serve) -> None:
    path = tmp_path / "best_model.pth"
    with serve(model=path, watch_s=0.01) as client:
        assert client.get("/health").json()["status"] == "waiting"
        plain(path, foreground=False)
        while client.get("/health").status_code == 503:
            pass
        first = client.get("/health").json()["model"]["id"]
        plain(path, foreground=True)
        while client.get("/health").json()["model"]["id"] == first:
            pass


def test_a_file_whose_warm_up_failed_is_tried_again(
    make_checkpoint: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU shared with the trainer may have no memory for a moment, and there may be no newer file."""
    tries: list[Prediction] = []
    outcomes: list[str] = []

    def warm_up(prediction: Prediction) -> None:
        tries.append(prediction)
        if len(tries) < 3:
            raise torch.OutOfMemoryError("not now")
        run(prediction)

    slot = ModelSlot(make_checkpoint(), "cpu", "auto", warm_up=warm_up, on_outcome=outcomes.append)
    for _ in range(2):
        slot.refresh()
    assert len(tries) == 1  # not at every check: a try takes seconds
    tries.clear()
    outcomes.clear()
    caplog.clear()
    slot = ModelSlot(slot.path, "cpu", "auto", warm_up=warm_up, on_outcome=outcomes.append)
    monkeypatch.setattr(models, "RETRY_S", 0.0)
    for status in ("failed", "failed", "ok", "ok"):
        slot.refresh()
        assert slot.status == status
    assert len(tries) == 3
    assert outcomes == ["refused", "loaded"]
    assert len([record for record in caplog.records if record.exc_info]) == 1  # logged once


def plain(path: Path, *, foreground: bool, base_channels: int = 4) -> None:
    """A model that finds foreground everywhere, or nowhere: its answers tell which model made them."""
    network = NetworkConfig(base_channels=base_channels)
    weights = {name: torch.zeros_like(tensor) for name, tensor in network.build().state_dict().items()}
    weights["outc.conv.bias"] += 10 if foreground else -10
    checkpoints.save(Checkpoint(network=network, preprocessing=Preprocessing(), state_dict=weights), path)


def test_every_way_to_break_a_file_leaves_the_old_model_serving(
    tmp_path: Path, serve: Serve, make_checkpoint: Make
) -> None:
    path = make_checkpoint()
    whole = path.read_bytes()

    def foreign() -> None:
        torch.save({"some": torch.zeros(3)}, path)

    def nan() -> None:
        content = torch.load(path, weights_only=True)
        content["state_dict"]["outc.conv.bias"] += float("nan")
        torch.save(content, path)

    def folder() -> None:
        path.unlink()
        path.mkdir()

    breaks: dict[str, tuple[Callable[[], Any], str]] = {
        "damaged": (lambda: path.write_bytes(whole[:-100] + bytes(100)), "damaged"),
        "truncated": (lambda: path.write_bytes(whole[: len(whole) // 2]), "damaged"),
        "empty": (lambda: path.write_bytes(b""), "damaged"),
        "foreign": (foreign, "nor a state_dict of a U-Net"),
        "not a number": (nan, "NaN"),
        "vanished": (path.unlink, "no such file"),
        "a folder": (folder, "cannot be read"),
    }
    with serve(model=path, watch_s=1000) as client:
        slot = client.app.state.slot  # type: ignore[attr-defined]
        first = client.get("/health").json()["model"]["id"]
        for name, (damage, said) in breaks.items():
            damage()
            slot.refresh()
            health = client.get("/health")
            assert health.status_code == 200, name
            assert health.json()["status"] == "ok"
            assert re.search(said, health.json()["refused"]), (name, health.json()["refused"])
            assert str(tmp_path) not in health.json()["refused"]
            answer = client.post("/segment", content=png(np.zeros((20, 20), np.uint8)))
            assert (answer.status_code, answer.headers["x-model-id"]) == (200, first), name
            if path.is_dir():
                path.rmdir()
            path.write_bytes(whole)
            slot.refresh()
            assert client.get("/health").json()["refused"] is None, name


@pytest.mark.parametrize(("requests", "swaps"), [(60, 4), pytest.param(1000, 20, marks=pytest.mark.slow)])
def test_no_request_fails_while_models_are_swapped(tmp_path: Path, serve: Serve, requests: int, swaps: int) -> None:
    path = tmp_path / "best_model.pth"
    plain(path, foreground=False)
    image = png(np.zeros((32, 32), np.uint8))
    answers: list[tuple[int, str, float]] = []
    ids = {}
    with serve(model=path, watch_s=1000) as client:
        slot: ModelSlot = client.app.state.slot  # type: ignore[attr-defined]

        def ask() -> None:
            for _ in range(requests // 4):
                answer = client.post("/segment", content=image)
                answers.append((answer.status_code, answer.headers["x-model-id"], picture(answer.content).mean()))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for each in clients:
            each.start()
        for swap in range(swaps):
            while len(answers) < swap * requests // swaps:  # spread over the requests
                clients[0].join(0.001)
            plain(path, foreground=swap % 2 == 0)
            slot.refresh()
            assert slot.current
            ids[slot.current.id] = 255.0 if swap % 2 == 0 else 0.0
        for each in clients:
            each.join()
    assert Counter(status for status, _, _ in answers) == {200: requests}
    assert len(ids) == 2
    assert {(model, mean) for _, model, mean in answers} <= set(ids.items())


def test_an_old_model_is_freed(make_checkpoint: Make) -> None:
    slot = ModelSlot(make_checkpoint(seed=1), "cpu", "auto", warm_up=run)
    slot.refresh()
    assert slot.current
    old = weakref.ref(slot.current.predictor.network)
    make_checkpoint(seed=2)
    gc.collect()
    gc.disable()  # at once, without the garbage collector
    slot.refresh()
    gc.enable()
    assert old() is None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory where Linux has it")
def test_memory_of_the_service_after_fifty_swaps(tmp_path: Path) -> None:
    """Models of 15 MB each would show."""
    path = tmp_path / "best_model.pth"
    image = png(np.zeros((64, 64), np.uint8))

    def resident() -> int:
        return int(Path(f"/proc/{program.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with running("--model", str(path), "--watch-s", "0.05") as (program, url), httpx.Client(base_url=url) as client:
        for swap in range(60):
            plain(path, foreground=swap % 2 == 0, base_channels=32)
            wanted = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            while (client.get("/health").json()["model"] or {}).get("id") != wanted:
                threading.Event().wait(0.02)
            answer = client.post("/segment", content=image)
            assert (answer.status_code, answer.headers["x-model-id"]) == (200, wanted)
            if swap == 9:  # every thread has computed: malloc keeps memory for each
                before = resident()
        assert resident() < 1.1 * before
