"""On which cores a thread runs, and who goes before it."""

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

LINUX = sys.platform == "linux"
NICENESS = 5
"""Of the streams: /health and refusals come first, though a neighbour on the same cores is not to have them all."""


def usable() -> list[int]:
    """By this process."""
    return sorted(os.sched_getaffinity(0)) if LINUX else list(range(os.cpu_count() or 1))


def yield_to_others() -> None:
    """Lowers this thread's priority, and that of the threads it makes: what takes microseconds, such as /health, is not
    to wait for what takes a second. On Linux niceness is a thread's own, and begins as the process's, 19 at most."""
    if LINUX:
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


def keep_to(cores: Sequence[int]) -> None:
    """This thread, and those that it makes from now on."""
    if LINUX:
        with suppress(OSError):  # they were taken from this process meanwhile
            os.sched_setaffinity(0, cores)
