"""Arrays kept in memory or in files."""

from pathlib import Path

import numpy as np
import torch
from conftest import png

from trainer.data import read_folder
from trainer.data.store import Store


def test_arrays_beyond_the_limit_are_in_a_file_and_equal(tmp_path: Path, rng: np.random.Generator) -> None:
    store = Store(tmp_path / "out", limit=100)
    arrays = [rng.integers(0, 255, (10, 9), np.uint8), rng.random((7, 5, 3)), rng.integers(0, 9, (3, 3)), np.zeros(0)]
    kept = [store.keep(array) for array in arrays]
    assert kept[0] is arrays[0]
    for array, copy in zip(arrays[1:3], kept[1:3], strict=True):
        assert not np.shares_memory(array, copy)
        np.testing.assert_array_equal(array, copy)
        torch.testing.assert_close(torch.from_numpy(copy), torch.from_numpy(array))
    assert not list((tmp_path / "out").iterdir())  # nothing is left behind


def test_a_data_set_in_files_is_the_same_one(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("Training_Images", "Training_Labels"):
        (tmp_path / name).mkdir()
    for i in range(3):
        (tmp_path / "Training_Images" / f"{i}.png").write_bytes(png(rng.integers(0, 255, (20, 30), np.uint8)))
        (tmp_path / "Training_Labels" / f"{i}.png").write_bytes(png(rng.integers(0, 2, (20, 30), np.uint8)))
    for one, other in zip(
        read_folder(tmp_path).samples, read_folder(tmp_path, store=Store(tmp_path, limit=0)).samples, strict=True
    ):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
