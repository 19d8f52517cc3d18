"""The smallest object of the training images, and the choice of unlabelled images."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer import inputs
from trainer.data import Sample
from trainer.inputs import read_unlabelled, smallest_object


def squares(*sides: int) -> np.ndarray:
    """Ids of squares of these sides, none at a side of the image."""
    ids = np.zeros((40, 40 * len(sides)), np.int32)
    for i, side in enumerate(sides):
        ids[5 : 5 + side, 40 * i + 5 : 40 * i + 5 + side] = i + 1
    return ids


def sample(ids: np.ndarray, *, told: bool) -> Sample:
    label = (ids > 0).astype(np.uint8)
    return Sample("a.png", label, label, ids if told else None)


def test_half_the_smallest_usual_object() -> None:
    ids = squares(*[10] * 10, 2)
    assert smallest_object([sample(ids, told=True)]) == smallest_object([sample(ids, told=False)]) == 50


def test_objects_at_a_side_do_not_count() -> None:
    ids = squares(10, 10)
    ids[0, :3] = 3
    assert smallest_object([sample(ids, told=True)]) == 50


def test_images_without_objects() -> None:
    assert smallest_object([sample(np.zeros((9, 9), np.int32), told=False)]) == 1


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(("n", "kept"), [(5, [0, 1, 2, 3, 4]), (7, [0, 2, 4, 6]), (11, [0, 3, 6, 9])])
def test_too_many_unlabelled_images_are_thinned_out_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, kept: list[int], stack: bool
) -> None:
    monkeypatch.setattr(inputs, "UNLABELLED", 5)
    images = [np.full((4, 4), i, np.uint8) for i in range(n)]
    if stack:
        cv2.imwritemulti(str(tmp_path / "stack.tif"), images)
    else:
        for i, image in enumerate(images):
            cv2.imwrite(str(tmp_path / f"{i:02}.png"), image)
    assert [each.image.flat[0] for each in read_unlabelled(tmp_path, 1, None)] == kept
