"""Metrics for Prometheus.

With several workers (`PROMETHEUS_MULTIPROC_DIR`), the one that is asked adds up the counts of all, which are in files;
gauges have the values at the end of each worker's last request. Memory and CPU time of the processes are then left out.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from prometheus_client import (
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
from starlette.datastructures import State

from service.models import Model

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_SECONDS = (0.0005, 0.001, 0.0025, *REQUEST_SECONDS)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics(Collector):
    """Counters, and gauges of the queue, the device and the model in the app's state."""

    def __init__(self, state: State) -> None:
        disable_created_metrics()  # a second time series for each, of no use here
        self._state = state
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")
        self.requests = counter("unet_requests", "Requests; status 499: the client went away", ["route", "status"])
        self.request_seconds = histogram(
            "unet_request_seconds", "Whole requests, upload included", ["route"], buckets=REQUEST_SECONDS
        )
        self.stage_seconds = histogram(
            "unet_stage_seconds",
            "Parts of a request with status 200, as in Server-Timing: queue, decode, infer, encode",
            ["stage"],
            buckets=STAGE_SECONDS,
        )
        self.batch_size = histogram(
            "unet_batch_size", "Tiles that are computed together, also those of warming up", buckets=BATCH_SIZES
        )
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
            return generate_latest(self.registry)
        for path in Path(folder).glob("gauge_live*.db"):  # workers that have ended have no gauges; their counters stay
            if (pid := re.sub(r"\D", "", path.stem)) and not Path("/proc", pid).exists():
                multiprocess.mark_process_dead(pid, folder)
        everybody = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody)
        everybody.register(self)
        return generate_latest(everybody)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Id and loading time of the model that is served."""
        info = GaugeMetricFamily(
            "unet_model_info", "1, for the model that is served", labels=("id", "device", "precision", "classes")
        )
        loaded = GaugeMetricFamily("unet_model_loaded_timestamp_seconds", "When the model was loaded, Unix time")
        model: Model | None = self._state.slot.current
        if model:
            predictor = model.predictor
            info.add_metric((model.id, str(predictor.device), predictor.precision, str(len(predictor.class_values))), 1)
            loaded.add_metric((), model.loaded_at.timestamp())
        yield info
        yield loaded
