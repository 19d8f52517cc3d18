"""The service on a real Ray cluster of two nodes: hot reload, back-pressure, updates, lost replicas and nodes."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from conftest import Make, png, until
from test_segment import problem

if TYPE_CHECKING:
    from ray_cluster import Servers

cluster = pytest.mark.cluster
IMAGE = png(np.zeros((64, 64), np.uint8))
SLOW = png(np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8))
REPLICA = b"ray::ServeReplica:"


def test_the_middleware_of_the_proxies_loads_nothing_large() -> None:
    """A proxy that needs more than seconds to start is replaced, again and again."""
    pytest.importorskip("starlette")
    code = "import sys, service.proxies; print(*sorted({'torch', 'numpy', 'fastapi', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@cluster
@pytest.mark.parametrize(("name", "place"), [("workers", "num_replicas"), ("port", "http_options")])
def test_settings_that_belong_into_rays_file_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    from service.cluster import app
    from service.settings import ServeSettings
    from unet.errors import UserError

    monkeypatch.setenv(f"SERVICE_{name.upper()}", "2")
    with pytest.raises(UserError, match=f"^on a cluster, expected {place} instead of {name}$"):
        app(ServeSettings())


@cluster
def test_every_replica_waits_for_a_model_and_takes_a_newer_one(
    ray_servers: "Servers", tmp_path: Path, make_checkpoint: Make
) -> None:
    with ray_servers.serve(model=tmp_path / "best_model.pth", options={"num_replicas": 2}) as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "waiting")
        assert "no model yet" in problem(client.post("/segment", content=IMAGE), 503)
        seen: set[str] = set()
        for seed in (0, 1):
            make_checkpoint(seed=seed)
            loaded: set[str] = set()
            while len(loaded) < 2:  # replicas
                answer = client.get("/health")
                model = answer.json()["model"]
                if model and model["id"] not in seen:
                    assert answer.status_code == 200
                    loaded.add(model["loaded_at"])
            seen.add(client.post("/segment", content=IMAGE).headers["x-model-id"])
        assert len(seen) == 2


@cluster
def test_a_full_replica_refuses_as_a_single_service_does(ray_servers: "Servers", make_checkpoint: Make) -> None:
    with ray_servers.serve(model=make_checkpoint(), max_in_flight=1) as client:
        refused = [answer for answer in together(client, 5) if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert "requests are in flight already (--max-in-flight)" in problem(answer, 503)
            assert answer.headers["retry-after"] in ("1", "2", "3")


@cluster
def test_a_full_queue_is_a_problem_with_retry_after(ray_servers: "Servers", make_checkpoint: Make) -> None:
    options = {"max_ongoing_requests": 1, "max_queued_requests": 1}
    with ray_servers.serve(model=make_checkpoint(), options=options) as client:
        answers = together(client, 6)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 1 <= len(refused) <= 4
        for answer in refused:
            assert "max_queued_requests=1" in problem(answer, 503)
            assert answer.headers["retry-after"] in ("1", "2", "3")


@cluster
def test_more_ongoing_requests_start_another_replica(ray_servers: "Servers", make_checkpoint: Make) -> None:
    model = make_checkpoint()
    with ray_servers.serve(model=model, options={"num_replicas": 1}) as client:
        until(lambda: len(replicas()) == 1)  # without those of other tests
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0}
    with ray_servers.serve(model=model, options={"autoscaling_config": scaling}) as client:
        with asking(client, n_clients=4, body=SLOW) as statuses:
            until(lambda: len(replicas()) == 2)
        assert set(statuses) == {200}


@cluster
def test_a_request_whose_replica_dies_is_503_and_its_retry_is_answered(
    ray_servers: "Servers", make_checkpoint: Make
) -> None:
    with (
        ray_servers.serve(model=make_checkpoint(), options={"num_replicas": 1}) as client,
        ThreadPoolExecutor() as pool,
    ):
        answer = pool.submit(client.post, "/segment?tta=true", content=SLOW)
        until(lambda: "unet_in_flight 1.0" in client.get("/metrics").text)
        for process in replicas():
            os.kill(process, signal.SIGKILL)
        assert problem(answer.result(), 503) == "the replica was lost before it answered; try again"
        assert answer.result().headers["retry-after"] in ("1", "2", "3")
        assert client.post("/segment", content=IMAGE).status_code == 200  # waits for the next replica


@cluster
def test_an_update_fails_no_request(ray_servers: "Servers", make_checkpoint: Make) -> None:
    model = make_checkpoint()
    with ray_servers.serve(model=model, options={"num_replicas": 2}) as client:
        before = replicas()
        with asking(client) as statuses, ray_servers.serve(model=model, options={"num_replicas": 2}, max_pages=1):
            pass
        assert len(before) == 2
        assert not before & replicas()
        assert set(statuses) == {200}


@cluster
def test_a_lost_node_costs_one_retry(ray_servers: "Servers", make_checkpoint: Make) -> None:
    node = ray_servers.add_node()
    with ray_servers.serve(model=make_checkpoint(), options={"num_replicas": 3}) as client:
        with asking(client, n_clients=12) as statuses:
            ray_servers.cluster.remove_node(node, allow_graceful=False)
            until(lambda: len(replicas()) == 2)
        assert 200 in statuses
        assert set(statuses) <= {200, 503}


@cluster
def test_serve_run_with_the_config_file(ray_servers: "Servers", make_checkpoint: Make, tmp_path: Path) -> None:
    config = (Path(__file__).parent.parent / "docker" / "serve.yaml").read_text()
    config = config.replace("/model/best_model.pth", str(make_checkpoint()))
    (tmp_path / "serve.yaml").write_text(re.sub("args: .*", "args:\n      device: cpu", config))
    ray_servers.delete("default")  # what the other tests have deployed, on all cores
    command = [Path(sys.executable).with_name("serve"), "run", "--non-blocking", "--address"]
    subprocess.run([*command, ray_servers.cluster.address, tmp_path / "serve.yaml"], check=True, capture_output=True)
    with httpx.Client(base_url=ray_servers.url, timeout=60) as client:

        def served() -> str | None:
            answer = client.get("/health")
            return answer.json()["model"]["path"] if answer.status_code == 200 else None

        until(lambda: served() == str(tmp_path / "best_model.pth"))
        assert client.post("/segment", content=IMAGE).status_code == 200
    ray_servers.delete("unet")


def together(client: httpx.Client, n: int) -> list[httpx.Response]:
    """Answers to so many slow requests at once."""
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(lambda _: client.post("/segment", content=SLOW), range(n)))


def replicas() -> set[int]:
    """Processes of replicas that run."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found |= {int(path.parent.name)} if path.read_bytes().startswith(REPLICA) else set()
        except OSError:  # it has just ended
            continue
    return found


@contextmanager
def asking(client: httpx.Client, n_clients: int = 2, body: bytes = IMAGE) -> Iterator[list[int]]:
    """Clients that ask again and again, each several times at least, and once more after a 503: statuses of answers,
    where those of retries count."""
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        n = 0
        while not over.is_set() or n < 5:
            answer = client.post("/segment", content=body)
            if answer.status_code == 503:
                over.wait(float(answer.headers["retry-after"]))
                again = client.post("/segment", content=body)
                assert again.status_code == 200, again.text
            statuses.append(answer.status_code)
            n += 1
            over.wait(0.01)  # else they take the time in which replicas start

    with ThreadPoolExecutor(n_clients) as pool:
        clients = [pool.submit(ask) for _ in range(n_clients)]
        try:
            yield statuses
        finally:
            over.set()
        for each in clients:
            each.result()
