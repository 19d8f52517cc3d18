"""GET /metrics."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Serve, png
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import ServeSettings
from unet import Predictor

Make = Callable[..., Path]
IMAGE = np.zeros((40, 30), np.uint8)


def scrape(client: TestClient) -> dict[str, float]:
    """`name{label=value,...}` -> value."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "{" + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())) + "}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_stages_and_pixels_are_counted(make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=make_checkpoint()) as client:
        before = scrape(client)
        for _ in range(2):
            assert client.post("/segment", content=png(IMAGE)).status_code == 200
        assert client.post("/segment", content=b"no image").status_code == 400
        found = scrape(client)
    assert found["unet_requests_total{route=/segment,status=200}"] == 2
    assert found["unet_requests_total{route=/segment,status=400}"] == 1
    assert found["unet_requests_total{route=/metrics,status=200}"] == 1
    assert found["unet_request_seconds_count{route=/segment}"] == 3
    assert found["unet_request_seconds_sum{route=/segment}"] > found["unet_stage_seconds_sum{stage=infer}"] > 0
    for stage in ("queue", "decode", "infer", "encode"):  # the request without an image came no further than the first
        assert found[f"unet_stage_seconds_count{{stage={stage}}}"] == 2
    assert found["unet_pixels_total{}"] == 2 * IMAGE.size
    assert found["unet_batch_size_count{}"] - before["unet_batch_size_count{}"] == 2
    assert found["process_resident_memory_bytes{}"] > 2**20
    assert "unet_gpu_memory_bytes{kind=allocated}" not in found  # no GPU is used


def test_unknown_paths_make_no_new_time_series(make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=make_checkpoint()) as client:
        client.get("/nothing")
        scrape(client)  # /metrics counts itself from now on
        before = scrape(client)
        for i in range(5):
            client.get(f"/nothing/{i}", headers={"X-Request-Id": str(i)})
            client.request(f"METHOD{i}", f"/{i}")
        found = scrape(client)
    assert found["unet_requests_total{route=other,status=404}"] == 11
    assert set(found) == set(before)


def test_requests_refused_by_middleware_count_for_their_route(make_checkpoint: Make, serve: Serve) -> None:
    with serve(model=make_checkpoint(), api_keys=["k"], max_bytes=10) as client:
        client.post("/segment", content=b"x")
        client.post("/segment", content=b"x" * 11, headers={"X-API-Key": "k"})
        found = scrape(client)
    assert found["unet_requests_total{route=/segment,status=401}"] == 1
    assert found["unet_requests_total{route=/segment,status=413}"] == 1


def test_in_flight_and_queue(make_checkpoint: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()
    compute = Predictor.compute

    def wait(*arguments: object) -> None:
        entered.release()
        go_on.wait(60)
        compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("service.queue.MAX_THREADS", 1)
    with serve(model=make_checkpoint()) as client:
        monkeypatch.setattr(Predictor, "compute", wait)
        queue = client.app.state.queue  # type: ignore[attr-defined]
        post = threading.Thread(target=lambda: client.post("/segment", content=png(IMAGE)))
        post.start()
        assert entered.acquire(timeout=60)
        assert (scrape(client)["unet_in_flight{}"], scrape(client)["unet_queue_length{}"]) == (1, 0)
        predictor = client.app.state.slot.current.predictor  # type: ignore[attr-defined]
        waiting = [queue.submit(predictor.start(IMAGE)) for _ in range(3)]
        assert scrape(client)["unet_queue_length{}"] == 3
        go_on.set()
        post.join()
        for future in waiting:
            future.result(60)
        assert (scrape(client)["unet_in_flight{}"], scrape(client)["unet_queue_length{}"]) == (0, 0)


def test_the_model_and_its_reloads(tmp_path: Path, make_checkpoint: Make, serve: Serve) -> None:
    def info(found: dict[str, float]) -> list[str]:
        return [name for name in found if name.startswith("unet_model_info{")]

    def reloads(found: dict[str, float]) -> tuple[float, float]:
        loaded, refused = (found[f"unet_model_reloads_total{{outcome={o}}}"] for o in ("loaded", "refused"))
        return loaded, refused

    with serve(model=tmp_path / "best_model.pth", watch_s=1000) as client:
        slot = client.app.state.slot  # type: ignore[attr-defined]
        found = scrape(client)
        assert (info(found), reloads(found)) == ([], (0, 0))

        make_checkpoint(n_classes=3)
        slot.refresh()
        found = scrape(client)
        model = client.get("/health").json()["model"]["id"]
        precision = client.get("/health").json()["precision"]
        assert info(found) == [f"unet_model_info{{classes=3,device=cpu,id={model},precision={precision}}}"]
        assert reloads(found) == (1, 0)
        assert found["unet_model_loaded_timestamp_seconds{}"] > found["process_start_time_seconds{}"]

        for content in (b"broken", b"broken in the same way"):
            (tmp_path / "best_model.pth").write_bytes(content)
            slot.refresh()
            slot.refresh()  # the same file is refused once
        found = scrape(client)
        assert reloads(found) == (1, 2)
        assert len(info(found)) == 1

        make_checkpoint(seed=1)
        slot.refresh()
        found = scrape(client)
        assert reloads(found) == (2, 2)
        assert len(info(found)) == 1  # the former is gone
        assert model not in info(found)[0]

        (tmp_path / "best_model.pth").unlink()
        slot.refresh()
        slot.refresh()  # it has vanished once
        assert reloads(scrape(client)) == (2, 3)


def test_it_is_declared(client: TestClient) -> None:
    answers = client.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]
    assert set(answers) == {"200", "413", "431", "500"}
    assert set(answers["200"]["content"]) == {"text/plain"}


@pytest.mark.gpu
def test_gpu_memory(make_checkpoint: Make) -> None:
    with TestClient(create_app(ServeSettings(device="cuda", model=make_checkpoint()))) as client:
        found = scrape(client)
    assert 0 < found["unet_gpu_memory_bytes{kind=allocated}"] <= found["unet_gpu_memory_bytes{kind=reserved}"]
