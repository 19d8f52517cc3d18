"""A real Ray cluster of two nodes with one core each, on this machine, and the service on it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import ray
from conftest import until
from ray import serve
from ray.cluster_utils import Cluster

from service.cluster import SERVICE, app
from service.settings import ServeSettings
from unet import checkpoint as checkpoints
from unet.checkpoint import CheckpointError

SIZE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


class Servers:
    """The service with one settings at a time. What it serves is what a link in `folder` leads to: another model is
    taken by hot reload, and only other settings need new replicas."""

    def __init__(self, folder: Path, n_nodes: int = 2) -> None:
        os.environ |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # there is one proxy: it asks every replica
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.proxies.middleware",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
        }
        self._link = folder / "current"
        self._deployed: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._has_model = False
        self.cluster = Cluster(initialize_head=True, head_node_args={**SIZE, "include_dashboard": False})
        for _ in range(n_nodes - 1):
            self.add_node()
        ray.init(address=self.cluster.address, namespace="serve", log_to_driver=False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        self.url = f"http://127.0.0.1:{port}"

    def add_node(self) -> Any:
        return self.cluster.add_node(**SIZE)

    def delete(self, name: str) -> None:
        """Ends another application that has taken the place of this one."""
        serve.delete(name)
        self._deployed = None

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()

    @contextmanager
    def serve(self, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[httpx.Client]:
        """A client of the service with these settings, and with these options of Ray's deployment."""
        if options and "num_replicas" in options:
            options = {**options, "autoscaling_config": None}
        with httpx.Client(base_url=self.url, follow_redirects=True, timeout=60) as client:
            self._deploy(client, options or {}, **settings)
            yield client

    def _deploy(self, client: httpx.Client, options: dict[str, Any], **settings: Any) -> None:
        path = Path(settings.pop("model", "none.pth")).absolute()
        wanted = {"device": "cpu", "watch_s": 0.05, **settings, "model": self._link / path.name}
        model = None
        with suppress(CheckpointError):
            model = checkpoints.load(path).id if path.is_file() else None
        self._link.with_suffix(".new").symlink_to(path.parent)
        self._link.with_suffix(".new").rename(self._link)
        fits = model or not (self._has_model or path.exists())  # a model stays; a file is refused at the start
        if (wanted, options) != self._deployed or not fits:
            self._deployed = None
            deployed = (
                SERVICE.options(**options).bind(ServeSettings(**wanted)) if options else app(ServeSettings(**wanted))
            )
            serve.run(deployed)
        self._deployed, self._has_model = (wanted, options), bool(model)
        keys = {"X-API-Key": settings.get("api_keys", [""])[0]}
        if model:
            until(lambda: (client.get("/health", headers=keys).json()["model"] or {}).get("id") == model)
