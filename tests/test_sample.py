"""The embedded data set."""

from pathlib import Path

import numpy as np

from trainer.data import read_folder, sample


def test_it_is_a_data_folder_like_any_other(tmp_path: Path) -> None:
    sample.write(tmp_path)
    data = read_folder(tmp_path)
    assert len(data.samples) == 16
    assert data.class_values == (0, 255)
    assert data.n_channels == 1
    inside = np.mean([s.label.mean() for s in data.samples])
    assert 0.6 < inside < 0.85  # membranes are thin, but there


def test_it_is_always_the_same(tmp_path: Path) -> None:
    sample.write(tmp_path / "a")
    sample.write(tmp_path / "b")
    assert read_folder(tmp_path / "a").fingerprint == read_folder(tmp_path / "b").fingerprint


def test_what_is_there_stays(tmp_path: Path) -> None:
    """Another processor may make another picture of it: a run that was begun elsewhere goes on."""
    sample.write(tmp_path)
    kept, lost = tmp_path / "Training_Images" / "00.png", tmp_path / "Training_Labels" / "01.png"
    content = lost.read_bytes()
    kept.write_bytes(b"as it is")
    lost.unlink()
    sample.write(tmp_path)
    assert kept.read_bytes() == b"as it is"
    assert lost.read_bytes() == content


def test_it_cannot_be_solved_by_brightness_alone() -> None:
    image, label = sample.generate(np.random.default_rng(1))
    best = max(((image > t) == (label > 0)).mean() for t in range(0, 256, 4))
    assert best < 0.9
