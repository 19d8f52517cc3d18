"""The decoder and broken files: a short run of benchmarks/fuzz.py."""

import numpy as np
import pytest
from benchmarks import fuzz


def test_the_files_are_valid_before_they_are_damaged() -> None:
    for name, data in fuzz.seeds().items():
        assert fuzz.attempt(data) == "decoded", name
        fuzz.check_written(data)


def test_pixels_that_nobody_has_written_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "count_pixels", lambda *_, **__: 10_000)
    monkeypatch.setattr(fuzz, "decode", lambda _: [np.empty((100, 100), np.uint8)])
    with pytest.raises(AssertionError, match="nobody has written"):
        fuzz.check_written(b"")


def test_broken_files_are_refused_or_read_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    report = fuzz.run(3000, seed=1)
    assert report["decoded"] + report["refused"] + report["too large"] == 3000
    assert report["decoded"] > 100
    assert report["refused"] > 1000
    assert (report["errors"], report["crashes"], report["hangs"]) == (0, 0, 0)
    assert report["RSS MiB at last"] - report["RSS MiB at first"] < 100
    capfd.readouterr()  # what the decoders have to say about them
