"""Settings of OpenMP and of glibc's malloc for this process, made before torch loads them.

What they buy, measured with this network on two cores: threads that spin while they wait make it up to 60 times slower
as soon as another program wants a core; threads that sleep at once, and take long to wake up, make training a quarter
slower; memory that malloc returns to the system after each forward pass comes back page by page (12,000 page faults for
an image), which takes as long as the arithmetic. Where they apply: Linux with glibc, where torch comes with libgomp.
How they are tested: OpenMP prints its settings; the page faults of two threads are counted.
"""

import ctypes
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # 50 to 200 microseconds, then threads sleep

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc

if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)  # keeps freed memory for the next forward pass
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_M_ARENA_MAX, 1)  # those of further threads are pieces of 64 MiB, returned whatever the thresholds are
