"""Request ids, access log and per-request metrics."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.access import PROBES, protect_browsers
from service.metrics import Metrics
from service.middleware import Middleware, route_path
from service.problems import HUNG_UP

log = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass
class Notes:
    """What a route adds to the telemetry of its request, as `request.state.notes`."""

    model_id: str | None = None
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage of the request."""
    _begun: float = 0.0

    def begin(self, model_id: str) -> None:
        """The body has arrived: the time of the stages begins."""
        self.model_id, self._begun = model_id, time.perf_counter()
        self.stages = dict.fromkeys(("queue", "decode", "infer", "encode"), 0.0)

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

    def __init__(self, app: ASGIApp, routes: Collection[str]) -> None:
        """`routes`: paths that are labels of the metrics; all others count as `other`."""
        super().__init__(app)
        self.routes = routes

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
            self._measure(scope, status, seconds, notes)
            _log(scope, status, seconds, notes, n_in, n_out)

    def _measure(self, scope: Scope, status: int, seconds: float, notes: Notes) -> None:
        metrics: Metrics = scope["app"].state.metrics
        route = route_path(scope) if route_path(scope) in self.routes else "other"
        metrics.requests.labels(route, status).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        metrics.pixels.inc(notes.pixels)
        for stage, stage_s in notes.stages.items() if status == 200 else ():  # otherwise the last one is incomplete
            metrics.stage_seconds.labels(stage).observe(stage_s)
        metrics.refresh()


def _log(scope: Scope, status: int, seconds: float, notes: Notes, n_in: int, n_out: int) -> None:
    level = logging.DEBUG if route_path(scope) in PROBES else logging.WARNING if status >= 500 else logging.INFO
    fields: dict[str, Any] = {
        "client": (scope.get("client") or ("",))[0][:64],  # a proxy may pass on any text
        "method": scope["method"],
        "path": scope["path"][:256],  # without the query, which may be private
        "status": status,
        "bytes_in": n_in,
        "bytes_out": n_out,
        "ms": round(1000 * seconds, 1),
    }
    if notes.model_id:
        fields["stages_ms"] = {stage: round(1000 * stage_s, 1) for stage, stage_s in notes.stages.items()}
        fields["model_id"] = notes.model_id
    log.log(level, "%(method)s %(path)s %(status)d %(ms).0f ms", fields, extra={"fields": fields})
