"""Twice as many requests as it can do: tests/benchmarks/overload.py in short. What is refused is refused in order, and
nothing is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files and threads where Linux has them")
def test_overload_leaves_nothing_behind(trained: Path, data: Path, tmp_path: Path) -> None:
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
