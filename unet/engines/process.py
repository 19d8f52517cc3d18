"""How this process uses processors and memory. Imported before torch: OpenMP reads its settings while it is loaded.

Measured with this network on two cores: threads that spin while they wait make it up to 60 times slower as soon as
another program wants a core; threads that sleep at once, which are slow to wake up, a quarter slower in training; and
fetching memory from the system again and again takes as long as the arithmetic.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # 50 to 200 microseconds; libgomp's, with which torch comes for Linux


def keep_memory() -> None:
    """Tells glibc's malloc to keep freed memory for the next forward pass, whichever thread it is on.

    All threads share one arena. Those that malloc makes for further threads are of pieces of 64 MiB, which it gives
    back to the system whatever it is told (measured on two streams: 12,000 page faults an image; with one arena none).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_ARENA_MAX, 1)


keep_memory()
