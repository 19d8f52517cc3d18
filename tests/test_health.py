"""GET /health, and the model file that it tells of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Serve, png
from fastapi.testclient import TestClient

import unet
from service.models import ModelSlot
from unet.device import resolve_precision
from unet.predictor import Prediction

Make = Callable[..., Path]


def test_ok(client: TestClient, trained: Path) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    health = answer.json()
    assert health["status"] == "ok"
    assert (health["device"], health["precision"], health["version"]) == (
        "cpu",
        resolve_precision("auto", torch.device("cpu")),
        unet.__version__,
    )
    assert health["device_name"]
    assert health["uptime_s"] > 0
    assert health["refused"] is None
    model = health["model"]
    assert model["path"] == str(trained / "best_model.pth")
    assert (model["n_channels"], model["classes"]) == (1, [0, 255])
    assert model["score"] > 0.9
    assert model["epoch"] in (1, 2, 3, 4)


def test_waiting_then_ok(tmp_path: Path, make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=tmp_path / "best_model.pth", watch_s=1000) as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert (answer.json()["status"], answer.json()["model"]) == ("waiting", None)
        make_checkpoint("best_model.pth")
        client.app.state.slot.refresh()  # type: ignore[attr-defined]
        assert client.get("/health").json()["status"] == "ok"


def test_failed(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "best_model.pth").write_bytes(b"no model")
    with serve(model=tmp_path / "best_model.pth") as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["status"] == "failed"
        assert "damaged" in answer.json()["refused"]
        refused = client.post("/segment", content=png(np.zeros((32, 32), np.uint8)))
        assert refused.status_code == 503
        assert str(tmp_path) not in refused.text


def test_live_and_docs(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200


def run(prediction: Prediction) -> None:
    prediction.predictor.run(prediction)


def test_a_newer_file_is_taken_and_a_broken_one_is_not(make_checkpoint: Make) -> None:
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
    assert slot.refusal is None  # nothing is there to be refused

    make_checkpoint(seed=1)
    slot.refresh()
    assert slot.current is not None
    assert slot.current.id == first.id
    assert slot.refusal is None


def test_a_file_that_becomes_readable_is_taken(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chmod changes neither content nor time of modification."""
    path = make_checkpoint()
    slot = ModelSlot(path, "cpu", "auto", warm_up=run)
    with monkeypatch.context() as patch:  # who runs the tests as root may read everything
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        slot.refresh()
    assert slot.status == "failed"
    assert slot.refusal == "best_model.pth: cannot be read: Permission denied"
    path.chmod(0o640)
    slot.refresh()
    assert slot.status == "ok"
