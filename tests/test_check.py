"""`unet-train --check`: what a data set holds, in words and in a contact sheet."""

from pathlib import Path

import numpy as np
import pytest
from conftest import picture, png

from trainer.__main__ import main
from trainer.check import contact_sheet, describe, outlined
from trainer.data import DataSet, Sample
from trainer.losses import IGNORED

LEFT = np.repeat([[1] * 10 + [0] * 30], 20, axis=0).astype(np.uint8)
"""(20, 40): class 1 on the first quarter."""


def data_set(label: np.ndarray = LEFT, n: int = 2, objects: np.ndarray | None = None, **about: object) -> DataSet:
    image = np.full((*label.shape, 3), 90, np.uint8)
    image[0, 0] = (0, 200, 100)
    return DataSet([Sample(f"image {i}", image, label, objects) for i in range(n)], (0, 255), {}, **about)  # type: ignore[arg-type]


def test_classes_have_name_value_share_and_number_of_images() -> None:
    label = LEFT.copy()
    label[:, 20:] = IGNORED
    data = data_set(label, class_names=("rock", "gold"), notes=("left out 1 file: notes.txt",))
    data.samples.append(Sample("grey", np.zeros((30, 20), np.uint16), np.zeros((30, 20), np.uint8)))
    assert describe(data) == [
        "3 images of 20 x 30 to 40 x 20 pixels, uint8 (2) and uint16 (1), RGB (2) and grey (1)",
        "class 0    rock      71.4% of the pixels, in 3 images",
        "class 255  gold      28.6% of the pixels, in 2 images",
        "           ignored   36.4% of all pixels, in 2 images",
        "left out 1 file: notes.txt",
    ]


def test_objects_are_counted() -> None:
    objects = np.zeros(LEFT.shape, np.int32)
    objects[:10, :10], objects[10:, :10] = 1, 2
    assert describe(data_set(objects=objects, instances=True))[-1] == "4 objects in 2 images, 11 pixels across (median)"


def test_outlines_are_where_the_label_ends() -> None:
    """Enlarged four times, class 1 ends at pixel 40: inside it is tinted, its outline has its colour."""
    data = data_set(class_colours=((0, 0, 0), (255, 0, 0)))
    shown = outlined(data.samples[0], data, side=160, max_height=400)
    assert shown.shape == (80, 160, 3)
    red = shown[40, :, 0].astype(int) - shown[40, :, 1]
    assert red[38] > 150  # the outline is on the last pixels of the class
    assert 20 < red[20] < 80
    assert (red[44:] == 0).all()


def test_pixels_without_an_opinion_are_striped() -> None:
    label = LEFT.copy()
    label[:, 20:] = IGNORED
    data = data_set(label)
    shown = outlined(data.samples[0], data, side=160, max_height=400)
    assert len(np.unique(shown[40, 90:], axis=0)) == 2
    assert len(np.unique(shown[40, 50:70], axis=0)) == 1


@pytest.mark.parametrize(("n", "shape"), [(1, (20, 40)), (3, (300, 20)), (60, (40, 40))])
def test_the_sheet_has_any_number_of_images_of_any_shape(n: int, shape: tuple[int, int]) -> None:
    label = np.zeros(shape, np.uint8)
    label[5:9] = 1
    height, width, _ = picture(contact_sheet(data_set(label, n), "cells")).shape
    assert 600 <= width <= 1800
    assert height <= 2500


def test_check_writes_only_the_sheet(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--check", "--data", str(data), "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["check.png"]
    printed = capsys.readouterr().out
    assert "class 1  foreground" in printed
    assert f"Look at {out / 'check.png'}" in printed


def test_check_of_wrong_data_has_status_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "Training_Labels" / "1.png").write_bytes(png(np.zeros((3, 3), np.uint8)))
    assert main(["--check", "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "Training_Labels/1.png: found 3 x 3 pixels; expected" in capsys.readouterr().err
    (data / "Training_Labels" / "1.png").unlink()
    (data / "Training_Images" / "1.png").unlink()
    assert main(["--check", "--data", str(data), "--class-names", "a,b,c", "--out", str(tmp_path / "out")]) == 2
    assert "--class-names: found 3 names; expected 2, for the values 0, 1" in capsys.readouterr().err
