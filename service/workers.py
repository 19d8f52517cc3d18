"""Several processes that answer on one port.

One Python process reads and writes some hundreds of images a second, whatever computes them; a fast GPU computes more.
Each process has the model, and connections of its own: the kernel deals them out (SO_REUSEPORT). Their counts come
together in `/metrics`.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from types import FrameType

from prometheus_client import multiprocess

from service import logs
from service.server import serve
from service.settings import ServeSettings

log = logging.getLogger(__name__)

BREATH_S = 1.0
"""Before one is replaced: those that end at once are not to keep the machine busy."""
_PR_SET_PDEATHSIG = 1  # prctl.h


def supervise(settings: ServeSettings, listeners: Sequence[socket.socket]) -> int:
    """A process for each listener; one that ends is replaced. Told to stop, it tells them, and returns when all have
    ended: 0."""
    with tempfile.TemporaryDirectory(prefix="unet-serve-") as counts:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts  # of the processes that are started from here
        workers = Workers(settings)
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, workers.stop)
        for listener in listeners:
            workers.start(listener)
        while workers.running:
            for process in workers.wait():
                listener = workers.running.pop(process)
                multiprocess.mark_process_dead(process.pid, counts)
                if not workers.stopping:
                    log.error("worker %s ended with %s: another one takes its place", process.pid, process.exitcode)
                    time.sleep(BREATH_S)
                    workers.start(listener)
    return 0


class Workers:
    def __init__(self, settings: ServeSettings) -> None:
        self.running: dict[SpawnProcess, socket.socket] = {}
        self.stopping = False
        self._settings = settings

    def start(self, listener: socket.socket) -> None:
        # not forked: CUDA, and locks of other threads, do not survive that
        process = get_context("spawn").Process(target=_run, args=(self._settings, listener))
        process.start()
        self.running[process] = listener
        if self.stopping:  # told meanwhile
            process.terminate()

    def wait(self) -> list[SpawnProcess]:
        """Those that have ended, as soon as there are any."""
        ended = connection.wait([process.sentinel for process in self.running])
        found = [process for process in self.running if process.sentinel in ended]
        for process in found:
            process.join()
        return found

    def stop(self, *_: int | FrameType | None) -> None:
        """For a signal; a second one makes them stop at once."""
        self.stopping = True
        for process in self.running:
            process.terminate()


def _run(settings: ServeSettings, listener: socket.socket) -> None:
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which tells its children
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # however the parent ends
    logs.configure(settings.log_format)
    sys.exit(serve(settings, listener))
