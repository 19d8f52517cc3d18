"""Of every request: a line in the log, and its share of the metrics."""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import PROBES
from service.metrics import Metrics
from service.problems import HUNG_UP

log = logging.getLogger(__name__)


@dataclass
class Notes:
    """What a route adds to the telemetry of its request, as `request.state.notes`."""

    model_id: str | None = None
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds."""


class Telemetry:
    def __init__(self, app: ASGIApp, routes: Collection[str]) -> None:
        self.app = app
        self.routes = routes
        """Paths that are named in the metrics; whatever else is asked for is `other`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        notes = scope.setdefault("state", {})["notes"] = Notes()
        status, n_in, n_out = None, 0, 0  # until there is an answer

        async def count_in() -> Message:
            nonlocal n_in
            message = await receive()
            n_in += len(message.get("body", b""))
            return message

        async def count_out(message: Message) -> None:
            nonlocal status, n_out
            if message["type"] == "http.response.start":
                status = message["status"]
            n_out += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, count_in, count_out)
        finally:
            seconds = time.perf_counter() - started
            status = scope["state"].get("refused") or status or HUNG_UP  # the server may have been first
            notes.stages = dict(notes.stages)  # who was not waited for may still be adding to it
            if scope["method"] == "HEAD" or status == HUNG_UP:
                n_out = 0  # the server has thrown it away
            self._measure(scope, status, seconds, notes)
            self._log(scope, status, seconds, notes, bytes_in=n_in, bytes_out=n_out)

    def _measure(self, scope: Scope, status: int, seconds: float, notes: Notes) -> None:
        metrics: Metrics = scope["app"].state.metrics
        route = scope["path"] if scope["path"] in self.routes else "other"
        metrics.requests.labels(route, status).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        metrics.pixels.inc(notes.pixels)
        for stage, stage_s in notes.stages.items() if status == 200 else ():  # else the longest one has no end
            metrics.stage_seconds.labels(stage).observe(stage_s)

    def _log(self, scope: Scope, status: int, seconds: float, notes: Notes, **sizes: int) -> None:
        level = logging.DEBUG if scope["path"] in PROBES else logging.WARNING if status >= 500 else logging.INFO
        path = scope["path"][:256]  # without the query, which may hold what is nobody's business
        fields: dict[str, Any] = {
            "client": (scope.get("client") or ("",))[0][:64],  # a proxy's word; long lines of two processes would mix
            "method": scope["method"],
            "path": path,
            "status": status,
            **sizes,
            "ms": round(1000 * seconds, 1),
        }
        if notes.stages:
            fields["stages_ms"] = {stage: round(1000 * stage_s, 1) for stage, stage_s in notes.stages.items()}
        if notes.model_id:
            fields["model_id"] = notes.model_id
        log.log(level, "%s %s %d %.0f ms", scope["method"], path, status, 1000 * seconds, extra={"fields": fields})
