"""The service on a Ray cluster: `serve run service.cluster:app`, or docker/serve.yaml.

Each replica is the whole application, with its own model, queue and limits. Ray's proxies, one on each node, pass
requests on to replicas, keep those that wait for one, and refuse more than `max_queued_requests` of them.
"""

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from service.queue import usable_cores
from service.server import application
from service.settings import ServeSettings
from unet.errors import UserError

PLACE_ON_RAY = {
    "workers": "num_replicas",
    "port": "http_options",
    "root_path": "route_prefix",
    "max_connections": "a gateway",
}
"""Settings of `unet-serve` that a cluster has elsewhere. (`host` is in the environment of our image, and ignored.)"""


@serve.ingress()
class Replica:
    """The application in a process of its own, on the cores or the GPU that Ray has given it."""

    def __init__(self, settings: ServeSettings) -> None:
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        replicas = int(usable_cores() / max(cores, 1))  # of this size, on this node
        self.application = application(settings.model_copy(update={"workers": max(1, replicas)}), lambda state: None)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The hook that `serve.ingress` documents for an app that is built on the replica."""
        return self.application

    def check_health(self) -> None:
        """Raises when the device is lost: Ray then starts another replica."""
        if self.application.state.queue.lost:
            raise RuntimeError("the device has failed; its log says how")


SERVICE = serve.deployment(
    name="unet-service",
    num_replicas="auto",
    max_queued_requests=32,
    backpressure_config={"retry_after_s": 1},
    health_check_period_s=2,
    logging_config={"enable_access_log": False},  # the application writes its own
)(Replica)
"""Options of the deployment, which docker/serve.yaml overrides."""


def app(settings: ServeSettings) -> Application:
    """The application that `serve run` deploys. Settings are its arguments (`args` in the file), or variables such as
    SERVICE_MODEL. Raises UserError."""
    if foreign := PLACE_ON_RAY.keys() & settings.model_fields_set:
        places = ", ".join(f"{PLACE_ON_RAY[name]} instead of {name}" for name in sorted(foreign))
        raise UserError(f"on a cluster, expected {places}")
    model = settings.model.absolute()  # replicas have another working directory
    service = SERVICE.options(graceful_shutdown_timeout_s=settings.grace_s)
    return service.bind(settings.model_copy(update={"model": model}))
