"""GET /health, and the model file that it tells of."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Serve, png
from fastapi.testclient import TestClient

import unet
from unet.device import resolve_precision

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


@pytest.mark.parametrize("path", ["/health", "/health/live", "/metrics"])
def test_who_only_wants_to_know_whether(client: TestClient, path: str) -> None:
    """HEAD, as some monitors ask (RFC 9110, section 9.1)."""
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]


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


def test_a_path_of_any_bytes(tmp_path: Path, make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint().rename(tmp_path / os.fsdecode(b"m\xff.pth"))
    with serve(model=path) as client:
        assert client.get("/health").json()["model"]["path"] == str(tmp_path / "m\ufffd.pth")


def test_a_pipe_is_not_waited_for(tmp_path: Path, serve: Serve) -> None:
    os.mkfifo(tmp_path / "pipe")
    with serve(model=tmp_path / "pipe") as client:
        refused = client.get("/health").json()["refused"]
        assert refused == "pipe: expected a file, found a pipe, which would be waited for"


def test_a_failed_computation_is_told_until_one_works(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    image = png(np.zeros((32, 32), np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr("unet.Predictor.compute", lambda *_: 1 / 0)
        answer = client.post("/segment", content=image)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.headers["retry-after"]
        health = client.get("/health")
        assert health.status_code == 200  # the next image may be another matter
        assert health.json()["failure"].startswith("ZeroDivisionError at 20")
    assert client.post("/segment", content=image).status_code == 200
    assert client.get("/health").json()["failure"] is None


def test_live_and_docs(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200
