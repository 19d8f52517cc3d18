"""GET /metrics: the service in numbers, as text for Prometheus.

Where several processes answer (see `service.workers`), whichever is asked adds up the counts of all of them, which are
in files; gauges have the value of each process's last `refresh`. Memory and cores of the processes are then left out.
"""

import os
from collections.abc import Iterator

import torch
from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.engine import Engine
from service.models import ModelSlot

router = APIRouter()

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """What is counted as it happens; `watch` adds what is read when Prometheus asks."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second time series for each, of no use here
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        self.requests = Counter(
            "unet_requests", "Requests, by status; 499: the client went away", ["route", "status"], registry=r
        )
        self.connections_refused = Counter(
            "unet_connections_refused", "Connections closed at once: there were `max_connections`", registry=r
        )
        self.request_seconds = Histogram(
            "unet_request_seconds", "Whole requests, upload included", ["route"], registry=r, buckets=REQUEST_SECONDS
        )
        self.stage_seconds = Histogram(
            "unet_stage_seconds",
            "Parts of a request with status 200, as in Server-Timing: queue, decode, infer, encode",
            ["stage"],
            registry=r,
            buckets=STAGE_SECONDS,
        )
        self.batch_size = Histogram(
            "unet_batch_size",
            "Pieces of images that are computed together; warming up counts",
            registry=r,
            buckets=BATCH_SIZES,
        )
        self.pixels = Counter("unet_pixels", "Pixels segmented", registry=r)
        self.reloads = Counter("unet_model_reloads", "Model files loaded or refused", ["outcome"], registry=r)
        for outcome in ("loaded", "refused"):  # from zero, so that the first one is an increase
            self.reloads.labels(outcome)

        self.in_flight = Gauge(
            "unet_in_flight", "Requests being worked on or waiting", registry=r, multiprocess_mode="livesum"
        )
        self.queue_length = Gauge(
            "unet_queue_length",
            "What waits to be begun, or for its next piece",
            registry=r,
            multiprocess_mode="livesum",
        )
        self.gpu_memory = Gauge(
            "unet_gpu_memory_bytes",
            "GPU memory in use by tensors, and held for them",
            ["kind"],
            registry=r,
            multiprocess_mode="livesum",
        )

    def watch(self, engine: Engine, slot: ModelSlot, device: torch.device) -> None:
        self._engine, self._device, self._model = engine, device, _Model(slot)
        self.registry.register(self._model)

    def refresh(self) -> None:
        """Sets the gauges, for whoever asks any of the processes."""
        self.in_flight.set(self._engine.in_flight)
        self.queue_length.set(self._engine.queued)
        if self._device.type == "cuda":
            self.gpu_memory.labels("allocated").set(torch.cuda.memory_allocated(self._device))
            self.gpu_memory.labels("reserved").set(torch.cuda.memory_reserved(self._device))

    def text(self) -> bytes:
        self.refresh()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        everybody = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody)
        everybody.register(self._model)
        return generate_latest(everybody)


class _Model(Collector):
    def __init__(self, slot: ModelSlot) -> None:
        self.slot = slot

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily(
            "unet_model_info", "1, for the model that is served", labels=("id", "device", "precision", "classes")
        )
        loaded = GaugeMetricFamily("unet_model_loaded_timestamp_seconds", "When the model was loaded, Unix time")
        if model := self.slot.current:
            predictor = model.predictor
            info.add_metric((model.id, str(predictor.device), predictor.precision, str(len(predictor.class_values))), 1)
            loaded.add_metric((), model.loaded_at.timestamp())
        yield info
        yield loaded


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests by status, time by stage, queue, batches, model and memory, for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
