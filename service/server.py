"""uvicorn, configured: limits of connections, one process or several, graceful shutdown, and the exit status."""

import asyncio
import gc
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import State
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from service import logs
from service.app import create_app
from service.settings import ServeSettings

BACKLOG = 2048  # connections that wait to be accepted
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class HeaderDeadline(H11Protocol):
    """Closes a connection when the headers of a request are not complete within `timeout_keep_alive` seconds, be it
    the first one, and when a client still sends a body so long after its answer."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is h11.IDLE or answered:
            if not self._deadline:
                self._deadline = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)
        elif self._deadline:
            self._deadline.cancel()
            self._deadline = None


def server_config(settings: ServeSettings, app: Callable[[], object]) -> uvicorn.Config:
    """`app` makes the application, in the process that serves it."""
    return uvicorn.Config(
        app,
        factory=True,
        http=HeaderDeadline,
        ws="none",
        loop="asyncio",
        workers=settings.workers,
        root_path=settings.root_path,
        backlog=BACKLOG,
        limit_concurrency=settings.max_connections + 1,  # uvicorn refuses the last one, too
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=settings.idle_s,  # type: ignore[arg-type]  # a fraction of a second is a delay, too
        timeout_graceful_shutdown=max(1, int(settings.grace_s)),  # for answers that are still being sent
        timeout_worker_healthcheck=60,  # importing torch may take long
        server_header=False,
        access_log=False,
        log_config=None,
    )


def serve(settings: ServeSettings, listener: socket.socket) -> int:
    """Serves until a signal; returns the exit status: 1 after a device was lost, else 0."""
    if settings.workers > 1:
        with tempfile.TemporaryDirectory(prefix="unet-serve-") as counts:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
            worker = partial(application, settings, drain_on_signals)
            Multiprocess(server_config(settings, worker), sockets=[listener]).run()
        return 0
    app = application(settings, drain_on_signals)

    def status() -> int:
        return int(hasattr(app.state, "queue") and app.state.queue.lost)

    for number in SIGNALS:  # uvicorn raises the signal again when it has stopped
        signal.signal(number, lambda *_: sys.exit(status()))
    uvicorn.Server(server_config(settings, lambda: app)).run(sockets=[listener])
    return status()


def application(settings: ServeSettings, on_start: Callable[[State], object]) -> FastAPI:
    """The app for a process that does nothing else."""
    logs.configure(settings.log_format)
    app = create_app(settings, on_start)
    sys.setswitchinterval(0.001)  # seconds; with the default, /health waits 5 ms for each thread that computes
    gc.freeze()  # what is imported stays: scanning it again and again would delay every request by 80 ms
    return app


def drain_on_signals(state: State) -> None:
    """Graceful shutdown: after SIGTERM or SIGINT, new requests are refused, and the server stops when none is in flight
    any more, or after `--grace-s`. The same signal a second time stops at once. A worker process also drains when its
    parent is gone, and any process stops when its device is lost.

    Called in the event loop, when uvicorn's signal handlers, which stop the server, are installed.
    """
    loop = asyncio.get_running_loop()
    handler: Any = signal.getsignal(signal.SIGTERM)
    stop = partial(handler, signal.SIGTERM, None)
    received: set[int] = set()

    async def drain() -> None:
        await state.admission.drain(state.settings.grace_s)
        stop()

    def receive(number: int) -> None:
        if number in received:
            state.admission.abandon()
            loop.call_later(0.5, os._exit, 0)  # when the answers to abandoned requests have been sent
        elif not received:
            state.draining = loop.create_task(drain())
        received.add(number)

    def orphaned(sentinel: int) -> None:
        loop.remove_reader(sentinel)
        receive(signal.SIGTERM)

    for number in SIGNALS:
        loop.add_signal_handler(number, receive, number)
    if parent := parent_process():
        loop.add_reader(parent.sentinel, orphaned, parent.sentinel)
    state.queue.on_lost = lambda: loop.call_soon_threadsafe(stop)
    if state.queue.lost:
        state.queue.on_lost()
