"""The embedded data set."""

from pathlib import Path

import numpy as np

from trainer.data import read_folder, sample


def test_the_sample_is_a_valid_data_folder(tmp_path: Path) -> None:
    sample.write(tmp_path)
    data = read_folder(tmp_path)
    assert len(data.samples) == 16
    assert data.class_values == (0, 255)
    assert data.n_channels == 1
    inside = np.mean([s.label.mean() for s in data.samples])
    assert 0.6 < inside < 0.85  # membranes are thin


def test_the_sample_is_reproducible(tmp_path: Path) -> None:
    sample.write(tmp_path / "a")
    sample.write(tmp_path / "b")
    assert read_folder(tmp_path / "a").fingerprint == read_folder(tmp_path / "b").fingerprint


def test_existing_files_are_kept(tmp_path: Path) -> None:
    """Another processor may generate slightly different pixels; a run that began elsewhere can still be resumed."""
    sample.write(tmp_path)
    kept, lost = tmp_path / "Training_Images" / "00.png", tmp_path / "Training_Labels" / "01.png"
    content = lost.read_bytes()
    kept.write_bytes(b"as it is")
    lost.unlink()
    sample.write(tmp_path)
    assert kept.read_bytes() == b"as it is"
    assert lost.read_bytes() == content


def test_a_brightness_threshold_does_not_solve_the_sample() -> None:
    image, label = sample.generate(np.random.default_rng(1))
    best = max(((image > t) == (label > 0)).mean() for t in range(0, 256, 4))
    assert best < 0.9
