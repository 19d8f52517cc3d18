"""GET /health and /health/live."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import Serve, png
from fastapi.testclient import TestClient

import unet
from unet.device import resolve_precision

Make = Callable[..., Path]


def test_health_of_a_service_with_a_model(client: TestClient, trained: Path) -> None:
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
    assert Path(model["path"]).samefile(trained / "best_model.pth")
    assert model["classes"] == [
        {"value": 0, "name": "background", "colour": [0, 0, 0]},
        {"value": 255, "name": "foreground", "colour": [255, 138, 0]},
    ]
    assert (model["n_channels"], model["channel"], model["objects"]) == (1, None, False)
    assert 0 < model["threshold"] < 1
    assert model["score"] > 0.9
    assert model["epoch"] in (1, 2, 3, 4)
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(model["trained_at"]) < timedelta(hours=1)
    assert model["n_images"] == 16


def test_health_of_a_bare_state_dict(make_checkpoint: Make, tmp_path: Path, serve: Serve) -> None:
    content = torch.load(make_checkpoint(), weights_only=True)
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    with serve(model=tmp_path / "bare.pth") as client:
        model = client.get("/health").json()["model"]
    assert [model[name] for name in ("epoch", "score", "trained_at", "n_images")] == [None] * 4


@pytest.mark.parametrize("path", ["/health", "/health/live", "/metrics"])
def test_head_requests_of_monitors(client: TestClient, path: str) -> None:
    """RFC 9110, section 9.1."""
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]


def test_health_without_a_model_file_and_when_it_appears(tmp_path: Path, make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=tmp_path / "best_model.pth", watch_s=1000) as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert (answer.json()["status"], answer.json()["model"]) == ("waiting", None)
        make_checkpoint("best_model.pth")
        client.app.state.slot.refresh()  # type: ignore[attr-defined]
        assert client.get("/health").json()["status"] == "ok"


def test_health_with_a_damaged_model_file(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "best_model.pth").write_bytes(b"no model")
    with serve(model=tmp_path / "best_model.pth") as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["status"] == "failed"
        assert "damaged" in answer.json()["refused"]
        refused = client.post("/segment", content=png(np.zeros((32, 32), np.uint8)))
        assert refused.status_code == 503
        assert str(tmp_path) not in refused.text


def test_a_file_name_that_is_not_utf_8(tmp_path: Path, make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint().rename(tmp_path / os.fsdecode(b"m\xff.pth"))
    with serve(model=path) as client:
        assert Path(client.get("/health").json()["model"]["path"]).name == "m\ufffd.pth"


def test_a_pipe_is_refused_as_a_model_file(tmp_path: Path, serve: Serve) -> None:
    os.mkfifo(tmp_path / "pipe")
    with serve(model=tmp_path / "pipe") as client:
        refused = client.get("/health").json()["refused"]
        assert refused == "pipe: expected a file, found a pipe"


def test_the_last_inference_error_is_shown_until_a_success(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    image = png(np.zeros((32, 32), np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr("unet.Predictor.compute", Mock(side_effect=MemoryError))
        answer = client.post("/segment", content=image)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.headers["retry-after"]
        health = client.get("/health")
        assert health.status_code == 200  # the next image may be another matter
        assert health.json()["failure"].startswith("MemoryError at 20")
    assert client.post("/segment", content=image).status_code == 200
    assert client.get("/health").json()["failure"] is None


def test_liveness_and_docs(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200
