"""The decoder and broken files: a short run of benchmarks/fuzz.py."""

import pytest
from benchmarks import fuzz


def test_the_files_are_valid_before_they_are_damaged() -> None:
    for name, data in fuzz.seeds().items():
        assert fuzz.attempt(data) == "decoded", name


def test_broken_files_are_refused_or_read_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    report = fuzz.run(3000, seed=1)
    assert report["decoded"] + report["refused"] + report["too large"] == 3000
    assert report["decoded"] > 100
    assert report["refused"] > 1000
    assert (report["errors"], report["crashes"], report["hangs"]) == (0, 0, 0)
    assert report["RSS MiB at last"] - report["RSS MiB at first"] < 100
    capfd.readouterr()  # what the decoders have to say about them
