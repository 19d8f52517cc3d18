"""Several processes that answer on one port.

One Python process reads and writes some hundreds of images a second, whatever computes them; a fast GPU computes more.
Each process has the model, and connections of its own: the kernel deals them out (SO_REUSEPORT). Their counts come
together in `/metrics`.
"""

import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from prometheus_client import multiprocess

from service import logs
from service.server import BACKLOG, serve
from service.settings import ServeSettings

log = logging.getLogger(__name__)

BREATH_S = 1.0
"""Before one is replaced: those that end at once are not to keep the machine busy."""

MARGIN_S = 5.0
"""Beyond `grace_s`, in which one that was told to stop ends by itself."""


def supervise(settings: ServeSettings, listener: socket.socket) -> int:
    """Processes for the listener's address, which is free; one that ends is replaced. Told to stop, it tells them, and
    returns when all have ended: 0."""
    with tempfile.TemporaryDirectory(prefix="unet-serve-") as counts:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts  # of the processes that are started from here
        workers = Workers(settings, listener)
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, workers.stop)
        while workers.running or not workers.stopping:
            with suppress(OSError):  # tried again next time
                Path(counts).mkdir(mode=0o700, parents=True, exist_ok=True)  # who cleans /tmp may have taken it
            workers.fill()
            ended = workers.wait()
            for process in ended:
                multiprocess.mark_process_dead(process.pid, counts)
                if not workers.stopping:
                    log.error("worker %s ended with %s: another one takes its place", process.pid, process.exitcode)
            if ended and not workers.stopping:
                time.sleep(BREATH_S)
    return 0


class Workers:
    def __init__(self, settings: ServeSettings, listener: socket.socket) -> None:
        self.running: list[SpawnProcess] = []
        self.stop_by = math.inf
        """When those that do not stop are killed, on the clock of `time.monotonic`."""
        self._settings = settings
        self._family, self._address = listener.family, listener.getsockname()
        listener.close()
        self._reserved = self._bound()  # it never listens, but the port stays taken

    @property
    def stopping(self) -> bool:
        return self.stop_by < math.inf

    def fill(self) -> None:
        """Starts those that are missing, unless it is told to stop. What cannot be started is tried again next time."""
        try:
            while len(self.running) < self._settings.workers and not self.stopping:
                self.start(listen=not self.running)
        except OSError as error:
            log.error("a worker cannot be started: %s", error.strerror)

    def start(self, *, listen: bool) -> None:
        """With `listen`, connections wait for the process from now on. Else it gets its first one when it can answer:
        no client is to wait for it while others can."""
        with self._bound() as listener:
            if listen:
                listener.listen(BACKLOG)
            # not forked: CUDA, and locks of other threads, do not survive that
            process = get_context("spawn").Process(target=_run, args=(self._settings, listener))
            process.start()
        self.running.append(process)
        if self.stopping:  # told meanwhile
            process.terminate()

    def wait(self) -> list[SpawnProcess]:
        """Those that have ended, as soon as there are any, or none after a moment."""
        sentinels = connection.wait([process.sentinel for process in self.running], timeout=BREATH_S)
        ended = [process for process in self.running if process.sentinel in sentinels]
        self.running = [process for process in self.running if process not in ended]
        for process in ended:
            process.join()
        if time.monotonic() > self.stop_by:
            for process in self.running:
                process.kill()
        return ended

    def stop(self, *_: int | FrameType | None) -> None:
        """For a signal; a second one makes them stop at once."""
        self.stop_by = min(self.stop_by, time.monotonic() + self._settings.grace_s + MARGIN_S)
        for process in self.running:
            process.terminate()

    def _bound(self) -> socket.socket:
        bound = socket.socket(self._family)
        for level, option in (
            (socket.SOL_SOCKET, socket.SO_REUSEADDR),
            (socket.SOL_SOCKET, socket.SO_REUSEPORT),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        ):
            bound.setsockopt(level, option, 1)
        if self._family == socket.AF_INET6:  # as the listener: `::` is not 0.0.0.0, too
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(self._address)
        return bound


def _run(settings: ServeSettings, listener: socket.socket) -> None:
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which tells its children
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    logs.configure(settings.log_format)
    sys.exit(serve(settings, listener))


def _end_with_parent() -> None:
    """However that ends, be it before this process has got so far."""
    parent = parent_process()
    assert parent
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
