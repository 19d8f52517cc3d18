"""Damaged files: a short run of benchmarks/fuzz.py."""

import numpy as np
import pytest
from benchmarks import fuzz

from unet.imaging import Picture


def test_the_files_are_valid_before_they_are_damaged() -> None:
    for name, data in fuzz.seeds().items():
        assert fuzz.attempt(data) == "decoded", name
        fuzz.check_written(data)


def test_uninitialised_pixels_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "measure", lambda *_: 10_000)
    monkeypatch.setattr(fuzz, "read", lambda *_: Picture([np.empty((100, 100), np.uint8)], "YX"))
    with pytest.raises(AssertionError, match="uninitialised"):
        fuzz.check_written(b"")


def test_memory_beyond_what_was_measured_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_peak", iter([0, 10**6]).__next__)  # KiB
    with pytest.raises(AssertionError, match="1000000 KiB taken for 851 pixels"):
        fuzz.attempt(fuzz.seeds()["png"])


def test_damaged_files_are_refused_or_read_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    report = fuzz.run(3000, seed=1)
    assert report["decoded"] + report["refused"] + report["too large"] == 3000
    assert report["decoded"] > 100
    assert report["refused"] > 1000
    assert (report["errors"], report["crashes"], report["hangs"]) == (0, 0, 0)
    assert report["RSS MiB at last"] - report["RSS MiB at first"] < 100
    capfd.readouterr()  # lines of libjpeg and libpng
