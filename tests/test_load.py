"""Overload: tests/benchmarks/overload.py and crowd.py in short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files and threads where Linux has them")
def test_overload_leaves_nothing_behind(trained: Path, data: Path, tmp_path: Path) -> None:
    """Twice as many requests as the service can answer: the excess is 503, and nothing leaks."""
    program = [sys.executable, "tests/benchmarks/overload.py", trained / "best_model.pth", data]
    report = tmp_path / "overload.json"
    subprocess.run(
        [*program, "--requests", "1000", "--seconds", "2", "--json", report],
        check=True,
        timeout=200,
        env={"PYTHONPATH": str(Path.cwd())},
    )
    found = json.loads(report.read_text())
    assert found["others"] == 0
    assert found["200"] > 0
    assert found["503"] > 0
    assert found["rss growth %"] < 5
    assert (found["more files"], found["more threads"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory where Linux has it")
def test_many_large_images_take_turns(trained: Path, tmp_path: Path) -> None:
    """At once they would take 2 GiB, and a small image would wait for all of them to be decoded."""
    report = tmp_path / "crowd.json"
    subprocess.run(
        [sys.executable, "tests/benchmarks/crowd.py", trained / "best_model.pth", "--clients", "12", "--json", report],
        check=True,
        timeout=200,
        env={"PYTHONPATH": str(Path.cwd())},
    )
    found = json.loads(report.read_text())
    assert found["200"] + found["504"] == 12
    assert found["peak MiB"] - found["idle MiB"] < 1200
    assert found["small, worst s"] < 3
    assert found["health, worst s"] < 1
