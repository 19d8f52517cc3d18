"""How this process uses processors and memory. Imported before torch: OpenMP reads its settings while it is loaded.

Measured with this network on two cores: threads that spin while they wait make it up to 60 times slower as soon as
another program wants a core; and fetching memory from the system again and again takes as long as the arithmetic.
"""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory() -> bool:
    """Tells malloc to keep freed memory for the next forward pass. False where it is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


keep_memory()
