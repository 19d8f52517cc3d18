"""`unet-serve` starts with the malloc that it wants, and says no word about it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import running

from service import malloc

OLD = sys.platform == "linux" and malloc._glibc() < malloc.FIXED
CODE = "from service import malloc; malloc.restart(); import os; print(os.environ.get('GLIBC_TUNABLES', ''), end='')"


@pytest.mark.skipif(not OLD, reason="a malloc that needs nothing")
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "glibc.malloc.tcache_count=0"),
        ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0"),
        ("glibc.malloc.tcache_count=7", "glibc.malloc.tcache_count=7"),  # whoever sets it knows better
    ],
)
def test_an_old_malloc_gets_its_setting_beside_those_that_are_there(given: str, found: str) -> None:
    program = [sys.executable, "-c", CODE]
    assert subprocess.run(program, env={"GLIBC_TUNABLES": given}, capture_output=True, text=True).stdout == found


def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(malloc, "_glibc", lambda: malloc.FIXED)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    malloc.restart()


@pytest.mark.skipif(not OLD, reason="a malloc that needs nothing")
def test_the_service_is_still_the_process_that_was_started(trained: Path) -> None:
    with running("--model", str(trained / "best_model.pth")) as (program, _):
        assert b"tcache_count=0" in Path(f"/proc/{program.pid}/environ").read_bytes()
