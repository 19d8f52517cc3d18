"""A process that answers, and how it ends: what is in flight is finished first."""

import asyncio
import gc
import math
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.connections import Limits, limited
from service.engine import Engine
from service.metrics import Metrics
from service.settings import ServeSettings

BACKLOG = 2048
"""Connections that wait to be accepted."""

TICK_S = 0.1
"""As uvicorn's own."""


def serve(settings: ServeSettings, listener: socket.socket) -> int:
    """Answers until it is told to stop; returns the exit status."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # until the server has handlers of its own, and when it is done
        signal.signal(stop, lambda *_: sys.exit(0))
    app = create_app(settings)

    def count_refused(status: int | None) -> None:
        metrics: Metrics = app.state.metrics
        (metrics.requests.labels("other", status) if status else metrics.connections_refused).inc()

    config = uvicorn.Config(
        app,
        http=limited(Limits(settings.idle_s, settings.max_connections, settings.max_header_bytes, count_refused)),
        ws="none",
        loop="service.loop:event_loop",  # uvloop is no faster here, and cannot be told how much to read at once
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config, app, settings.grace_s)
    gc.freeze()  # what is imported stays; to look through it, again and again, holds up everybody for 80 ms
    server.run(sockets=[listener])
    return 1 if server.lost else 0


class Server(uvicorn.Server):
    """Told to stop, it goes on listening until what is in flight is finished, `grace_s` at most, and refuses the rest:
    a load balancer needs a moment to notice. Told a second time, it stops at once.

    It stops by itself when the device is lost: what supervises it starts a new one.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace_s: float) -> None:
        super().__init__(config)
        self.app = app
        self.grace_s = grace_s
        self.stop_by: float | None = None
        """On the clock of `time.monotonic`."""

    @property
    def lost(self) -> bool:
        engine: Engine | None = getattr(self.app.state, "engine", None)
        return engine is not None and engine.lost

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            super().handle_exit(sig, frame)
        elif self.stop_by is None:
            self.app.state.engine.stopping = True
            self.stop_by = time.monotonic() + self.grace_s
        else:
            self.stop_by = -math.inf

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the process."""
        self.app.state.metrics.refresh()
        if await super().on_tick(counter) or self.lost:
            return True
        if self.stop_by is None:
            return False
        left = self.stop_by - time.monotonic()
        self.config.timeout_graceful_shutdown = int(max(left, 1))  # for answers that are still being sent
        return left <= 0 or self.app.state.engine.in_flight == 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._close_connections())
        await super().shutdown(sockets)
        closing.cancel()

    async def _close_connections(self) -> None:
        """While uvicorn waits for them to end. It has told those that were there when it began; one that was being
        accepted would stay, and a second signal would change nothing."""
        while True:
            await asyncio.sleep(TICK_S)
            at_once = self.stop_by == -math.inf and not self.server_state.tasks  # these are answered: 503
            for connection in list(self.server_state.connections):
                if at_once:
                    connection.transport.abort()  # its answer is not read
                else:
                    connection.shutdown()
