"""`unet-serve` starts with the malloc that it wants, and says no word about it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import png, running

from service import malloc
from service.malloc import KEEP_MEMORY, NO_CACHES, wanted

OLD, NEW = (2, 36), (2, 39)
JEMALLOC = {"LD_PRELOAD": "libjemalloc.so.2", "MALLOC_CONF": KEEP_MEMORY}
linux = pytest.mark.skipif(sys.platform != "linux", reason="malloc is set up on Linux only")


@pytest.mark.parametrize(
    ("given", "jemalloc", "glibc", "expected"),
    [
        ({}, "libjemalloc.so.2", OLD, JEMALLOC),
        ({}, "libjemalloc.so.2", NEW, JEMALLOC),
        ({}, None, OLD, {"GLIBC_TUNABLES": NO_CACHES}),
        ({}, None, NEW, {}),
        # beside what is there
        ({"LD_PRELOAD": "a.so"}, "libjemalloc.so.2", NEW, JEMALLOC | {"LD_PRELOAD": "a.so libjemalloc.so.2"}),
        ({"MALLOC_CONF": "narenas:9"}, "libjemalloc.so.2", NEW, JEMALLOC | {"MALLOC_CONF": "narenas:9"}),
        ({"GLIBC_TUNABLES": "x=1"}, None, OLD, {"GLIBC_TUNABLES": f"x=1:{NO_CACHES}"}),
        # whoever has chosen knows better
        ({"LD_PRELOAD": "/opt/libtcmalloc.so"}, "libjemalloc.so.2", OLD, {}),
        ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, "libjemalloc.so.2", OLD, {}),
    ],
)
def test_what_malloc_is_told(
    given: dict[str, str], jemalloc: str | None, glibc: tuple[int, int], expected: dict[str, str]
) -> None:
    assert wanted(given, jemalloc, glibc) == expected
    assert wanted(given | expected, jemalloc, glibc) == {}  # once is enough


@linux
def test_it_starts_again_once_without_jemalloc() -> None:
    code = (
        "from service import malloc; import os; "
        "malloc.find_library, malloc._glibc = lambda _: None, lambda: (2, 36); "
        "malloc.restart(); print(os.getpid(), os.environ['GLIBC_TUNABLES'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], env={}, stdout=subprocess.PIPE, text=True) as program:
        try:
            out, _ = program.communicate(timeout=60)
        finally:
            program.kill()
    assert out == f"{program.pid} {NO_CACHES}\n"


def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/libtcmalloc.so")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    malloc.restart()


@linux
@pytest.mark.skipif(not find_library("jemalloc"), reason="no jemalloc here: this test needs it (libjemalloc2)")
def test_the_service_uses_jemalloc_and_is_still_the_process_that_was_started(trained: Path) -> None:
    with running("--model", str(trained / "best_model.pth")) as (program, _):
        assert "libjemalloc.so" in Path(f"/proc/{program.pid}/maps").read_text()
        assert KEEP_MEMORY.encode() in Path(f"/proc/{program.pid}/environ").read_bytes()


@linux
@pytest.mark.slow
def test_memory_of_large_uploads_is_used_again(trained: Path) -> None:
    """Three clients at a time, whose images take longer than they may."""
    noise = png(np.random.default_rng(0).integers(0, 256, (3300, 3300, 3), dtype=np.uint8))
    with running("--model", str(trained / "best_model.pth"), "--timeout-s", "1") as (program, url):

        def mebibytes_after_one(_: int) -> int:
            httpx.post(f"{url}/segment", content=noise, timeout=60)
            status = Path(f"/proc/{program.pid}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0]) // 1024

        with ThreadPoolExecutor(3) as clients:
            sizes = list(clients.map(mebibytes_after_one, range(36)))
        assert max(sizes) - max(sizes[:15]) < 300, sizes
