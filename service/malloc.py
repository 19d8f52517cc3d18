"""Which malloc a process has, and what it is told only when it starts. Imported before anything that takes long to
import."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from ctypes.util import find_library

FIXED = (2, 39)
NO_CACHES = "glibc.malloc.tcache_count=0"
KEEP_MEMORY = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:2,lg_extent_max_active_fit:64"
"""For the next forward pass, however large, whichever thread it is on: what `unet.process` tells glibc's. Small pieces,
too, are cut from what is free, however large that is; else large uploads that come together leave their size behind."""


def restart() -> None:
    """Starts this process again, once, with another malloc or other settings, if it wants any."""
    settings = wanted(os.environ, find_library("jemalloc"), _glibc()) if sys.platform == "linux" else {}
    if settings and sys.executable:
        os.environ.update(settings)
        with suppress(OSError):  # then without
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def wanted(environment: Mapping[str, str], jemalloc: str | None, glibc: tuple[int, ...]) -> dict[str, str]:
    """Environment variables that are not as they should be.

    jemalloc, where the system has it: in glibc's malloc threads wait for one another, because all share one arena, so
    that each can use what another has freed (base 16, 32 clients: a tenth more requests, and less memory).

    Else no caches for threads, in a glibc before 2.39. What is cut off to align a block goes there, is not joined with
    the block when that is freed, and the next of the same size does not fit in its place
    (https://sourceware.org/bugzilla/show_bug.cgi?id=30723): the heap grows by whole activations. Two streams, base 64
    in fp32: 1284 MiB with caches, 1072 without.

    Whoever has chosen a malloc, or sets it up, knows better.
    """
    preloaded, tunables = environment.get("LD_PRELOAD", ""), environment.get("GLIBC_TUNABLES", "")
    if "malloc" in preloaded or "tcache_count" in tunables:
        return {}
    if jemalloc:
        told = environment.get("MALLOC_CONF", KEEP_MEMORY)
        return {"LD_PRELOAD": f"{preloaded} {jemalloc}".strip(), "MALLOC_CONF": told}
    return {"GLIBC_TUNABLES": f"{tunables}:{NO_CACHES}".removeprefix(":")} if glibc < FIXED else {}


def _glibc() -> tuple[int, ...]:
    """Its version; of another C library one that needs nothing."""
    try:
        _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()  # such as `glibc 2.36`
        return tuple(map(int, version.split(".")))
    except (AttributeError, ValueError, OSError):
        return FIXED
