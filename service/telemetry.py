"""Telemetry: request ids, access log, and metrics for Prometheus."""

import asyncio
import logging
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import prometheus_client as prometheus
import torch
from prometheus_client import multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.types import Message, Receive, Scope, Send

from service import logs
from service.access import POLLED, protect_browsers
from service.middleware import Middleware, route_path
from service.problems import HUNG_UP

log = logging.getLogger(__name__)

R = TypeVar("R")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass
class Notes:
    """What a route adds to the telemetry of its request, as `request.state.notes`."""

    model_id: str | None = None
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # seconds by stage of the request
    _begun: float = 0.0

    def begin(self, model_id: str | None) -> None:
        """The body has arrived: the time of the stages begins."""
        self.model_id, self._begun = model_id, time.perf_counter()
        self.stages = defaultdict(float, queue=0.0)

    async def run(self, stage: str, executor: Executor, function: Callable[..., R], *arguments: Any) -> R:
        """The result of a function, called in a thread of the executor. Its time is the stage's."""

        def timed() -> R:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.stages[stage] += time.perf_counter() - started

        return await asyncio.get_running_loop().run_in_executor(executor, timed)

    def server_timing(self) -> str:
        """The `Server-Timing` header (W3C), in milliseconds. The queue's time is what the other stages leave."""
        self.stages["queue"] = time.perf_counter() - self._begun - sum(self.stages.values())
        return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in self.stages.items())


class Telemetry(Middleware):
    """An `X-Request-Id` for each request, the client's own or a new one, which is also in every log entry; a log entry
    when it is finished, and its share of the metrics."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        notes = scope.setdefault("state", {})["notes"] = Notes()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\x21-\x7e]{1,128}", given) else uuid.uuid4().hex
        logs.request_id.set(request_id)  # until the end of the server's task for this request
        status, n_in, n_out = HUNG_UP, 0, 0  # until there is an answer

        async def count_in() -> Message:
            nonlocal n_in
            message = await receive()
            n_in += len(message.get("body", b""))
            return message

        async def count_out(message: Message) -> None:
            nonlocal status, n_out
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                protect_browsers(headers)
            n_out += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, count_in, count_out)
        finally:
            seconds = time.perf_counter() - started
            if scope["method"] == "HEAD" or status == HUNG_UP:
                n_out = 0  # the server discards the body
            notes.stages = dict(notes.stages)  # a thread of an abandoned request may still write to it
            path = route_path(scope)
            route = path if path in scope["app"].openapi()["paths"] else "other"
            metrics: Metrics = scope["app"].state.metrics
            metrics.requests.labels(route, status).inc()
            metrics.request_seconds.labels(route).observe(seconds)
            metrics.pixels.inc(notes.pixels)
            for stage, stage_s in notes.stages.items() if status == 200 else ():  # otherwise the last one is incomplete
                metrics.stage_seconds.labels(stage).observe(stage_s)
            metrics.refresh()
            fields: dict[str, Any] = {
                "client": (scope.get("client") or ("",))[0][:64],  # a proxy may pass on any text
                "method": scope["method"],
                "path": scope["path"][:256],  # without the query, which may be private
                "status": status,
                "bytes_in": n_in,
                "bytes_out": n_out,
                "ms": round(1000 * seconds, 1),
            }
            if notes.stages:
                fields["stages_ms"] = {stage: round(1000 * stage_s, 1) for stage, stage_s in notes.stages.items()}
            if notes.model_id:
                fields["model_id"] = notes.model_id
            level = logging.DEBUG if path in POLLED else logging.WARNING if status >= 500 else logging.INFO
            log.log(level, "%(method)s %(path)s %(status)d %(ms).0f ms", fields, extra={"fields": fields})


class Metrics(Collector):
    """Counters, and gauges of the queue, the device and the model in the app's state.

    With several workers (`PROMETHEUS_MULTIPROC_DIR`), the counts of all are added up from files, gauges are as of each
    worker's last request, and memory and CPU time of the processes are left out.
    """

    def __init__(self, state: State) -> None:
        prometheus.disable_created_metrics()  # a second time series for each, of no use here
        self._state = state
        self.registry = prometheus.CollectorRegistry()
        self.registry.register(self)
        prometheus.ProcessCollector(registry=self.registry)
        counter = partial(prometheus.Counter, registry=self.registry)
        histogram = partial(prometheus.Histogram, registry=self.registry, buckets=SECONDS)
        gauge = partial(prometheus.Gauge, registry=self.registry, multiprocess_mode="livesum")
        self.requests = counter("unet_requests", "Requests; status 499: the client went away", ["route", "status"])
        self.request_seconds = histogram("unet_request_seconds", "Whole requests, upload included", ["route"])
        self.stage_seconds = histogram("unet_stage_seconds", "Parts of requests with status 200", ["stage"])
        self.batch_size = histogram("unet_batch_size", "Tiles computed together, warm-up included", buckets=BATCH_SIZES)
        self.pixels = counter("unet_pixels", "Pixels segmented")
        self.bugs = counter("unet_bugs", "Requests answered with 500: bugs in the service")
        self.reloads = counter("unet_model_reloads", "Model files loaded or refused", ["outcome"])
        for outcome in ("loaded", "refused"):  # from zero, so that the first one is an increase
            self.reloads.labels(outcome)
        self.in_flight = gauge("unet_in_flight", "Requests that hold a place: uploading, waiting or computing")
        self.queue_length = gauge("unet_queue_length", "Predictions that wait for their next tile to be computed")
        self.gpu_memory = gauge("unet_gpu_memory_bytes", "GPU memory in use by tensors, and held for them", ["kind"])

    def refresh(self) -> None:
        """Sets the gauges."""
        self.queue_length.set(len(self._state.queue))
        if (device := self._state.device).type == "cuda":
            self.gpu_memory.labels("allocated").set(torch.cuda.memory_allocated(device))
            self.gpu_memory.labels("reserved").set(torch.cuda.memory_reserved(device))

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        self.refresh()
        if not (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")):
            return prometheus.generate_latest(self.registry)
        for path in Path(folder).glob("gauge_live*.db"):  # workers that have ended have no gauges; their counters stay
            if (pid := re.sub(r"\D", "", path.stem)) and not Path("/proc", pid).exists():
                multiprocess.mark_process_dead(pid, folder)
        everybody = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody)
        everybody.register(self)
        return prometheus.generate_latest(everybody)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Id and loading time of the model that is served."""
        labels = ("id", "device", "precision", "classes")
        info = GaugeMetricFamily("unet_model_info", "1, for the model that is served", labels=labels)
        loaded = GaugeMetricFamily("unet_model_loaded_timestamp_seconds", "When the model was loaded, Unix time")
        if model := self._state.slot.current:
            predictor = model.predictor
            info.add_metric((model.id, str(predictor.device), predictor.precision, str(len(predictor.class_values))), 1)
            loaded.add_metric((), model.loaded_at.timestamp())
        yield info
        yield loaded
