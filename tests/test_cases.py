"""Files as people have them, which were once read wrongly or refused: a data set for each kind, and what it means.

The objects are bright discs; the pixels of every class are as many as were drawn, whatever the encoding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from conftest import png
from PIL import Image

from trainer.__main__ import main
from trainer.data import read_folder
from trainer.data.labels import Reading
from trainer.losses import IGNORED

N, SIZE = 3, 48
Array = npt.NDArray[Any]
Write = Callable[[Path, int], None]

CLASSES: list[npt.NDArray[np.uint8]] = []  # 0 background, 1 and 2 discs
IDS: list[npt.NDArray[np.uint8]] = []  # 1 to 5, 6 or 7
for seed in range(N):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    label, ids = np.zeros((2, SIZE, SIZE), np.uint8)
    for k, place in enumerate(rng.permutation(9)[: 5 + seed], start=1):
        disc = np.hypot(y - 8 - 16 * (place // 3), x - 8 - 16 * (place % 3)) < rng.uniform(4, 7)
        label[disc], ids[disc] = 1 + k % 2, k
    CLASSES.append(label)
    IDS.append(ids)
OBJECTS = [label > 0 for label in CLASSES]
IMAGES = [(60 + 80 * mask + np.random.default_rng(9).integers(0, 20, mask.shape)).astype(np.uint8) for mask in OBJECTS]
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0] + 252 * [1, 2, 3] + [224, 224, 192]


def with_palette(indices: Array, colours: list[int]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette(colours)
    return picture


def with_void(label: Array) -> Array:
    return np.where(np.arange(SIZE) < 3, np.uint8(IGNORED), label)


def image(path: Path, i: int) -> None:
    (path / f"{i}.png").write_bytes(png(IMAGES[i]))


def tiff_image(convert: Callable[[Array], Array], **options: Any) -> Write:
    return lambda path, i: tifffile.imwrite(path / f"{i}.tif", convert(IMAGES[i]), **options)


def mask(path: Path, i: int) -> None:
    (path / f"{i}.png").write_bytes(png(OBJECTS[i].astype(np.uint8) * 255))


def bool_tiff(path: Path, i: int) -> None:
    tifffile.imwrite(path / f"{i}.tif", OBJECTS[i], photometric="miniswhite")


def inverting_lut(path: Path, i: int) -> None:
    """As ImageJ writes a mask: 255 is shown as black."""
    levels = np.arange(65535, -1, -257, dtype=np.uint16)
    values = OBJECTS[i].astype(np.uint8) * 255
    tifffile.imwrite(path / f"{i}.tif", values, photometric="palette", colormap=np.stack(3 * [levels]))


def white_first(path: Path, i: int) -> None:
    with_palette(OBJECTS[i], [255, 255, 255, 60, 60, 60]).save(path / f"{i}.png")


def gif(path: Path, i: int) -> None:
    Image.fromarray(OBJECTS[i].astype(np.uint8) * 255).save(path / f"{i}.gif")


def gif_image(path: Path, i: int) -> None:
    Image.fromarray(IMAGES[i]).save(path / f"{i}.gif")


def suffixed(path: Path, i: int) -> None:
    (path / f"{i}_mask.png").write_bytes(png(OBJECTS[i].astype(np.uint8) * 255))


def voc(path: Path, i: int) -> None:
    with_palette(CLASSES[i], VOC).save(path / f"{i}.png")


def voc_void(path: Path, i: int) -> None:
    with_palette(with_void(CLASSES[i]), VOC).save(path / f"{i}.png")


def classes_255(path: Path, i: int) -> None:
    (path / f"{i}.png").write_bytes(png(with_void(CLASSES[i])))


def ids(bits: int) -> Write:
    return lambda path, i: tifffile.imwrite(path / f"{i}.tif", IDS[i].astype(f"uint{bits}"))


def data_set(folder: Path, write_image: Write, write_label: Write) -> Path:
    for name, write in (("Training_Images", write_image), ("Training_Labels", write_label)):
        (folder / name).mkdir(parents=True)
        for i in range(N):
            write(folder / name, i)
    return folder


TWICE = [(270, "s", 0, '{"shape": [48, 48]}', False), (306, "s", 0, "2020:01:01 00:00:00", False)]
FOREGROUND = {
    "a TIFF of truth values, white is zero": (image, bool_tiff),
    "a mask of ImageJ with an inverting LUT": (image, inverting_lut),
    "a palette with white first": (image, white_first),
    "labels in GIF": (image, gif),
    "images and labels in GIF": (gif_image, gif),
    "names that end with _mask": (image, suffixed),
    "a description twice": (tiff_image(lambda x: x, extratags=TWICE), mask),
    "int16 below zero": (tiff_image(lambda x: x.astype(np.int16) - 500), mask),
    "two bands": (tiff_image(lambda x: np.dstack([x, 255 - x]), photometric="minisblack", planarconfig="contig"), mask),
    "five bands": (tiff_image(lambda x: np.stack([x] * 5), photometric="minisblack", planarconfig="separate"), mask),
    "ZSTD": (tiff_image(lambda x: x, compression="zstd"), mask),
    "float16": (tiff_image(lambda x: (x / 255).astype(np.float16)), mask),
}


@pytest.mark.parametrize("case", FOREGROUND)
def test_the_foreground_is_the_objects(case: str, tmp_path: Path) -> None:
    data = read_folder(data_set(tmp_path / "data", *FOREGROUND[case]))
    assert data.class_names == ("background", "foreground")
    assert len(data.samples) == N
    for sample, expected in zip(data.samples, OBJECTS, strict=True):
        np.testing.assert_array_equal(sample.label, expected)


@pytest.mark.parametrize(("bands", "extra", "channels"), [(4, "unassalpha", 3), (4, "unspecified", 4)])
def test_infrared_that_is_called_alpha_changes_no_colour(bands: int, extra: str, channels: int, tmp_path: Path) -> None:
    """Its values are 0: multiplied by it, the colours would be black."""
    write = tiff_image(lambda x: np.dstack([x, x // 2, x // 3, 0 * x]), photometric="rgb", extrasamples=[extra])
    data = read_folder(data_set(tmp_path / "data", write, mask))
    assert data.n_channels == channels
    np.testing.assert_array_equal(
        data.samples[0].image[..., :3], np.dstack([IMAGES[0], IMAGES[0] // 2, IMAGES[0] // 3])
    )


@pytest.mark.parametrize("label", [voc, voc_void])
def test_indices_of_a_palette_are_the_classes(label: Write, tmp_path: Path) -> None:
    data = read_folder(data_set(tmp_path / "data", image, label))
    assert data.class_values == (0, 1, 2)
    assert data.class_colours == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    expected = with_void(CLASSES[0]) if label is voc_void else CLASSES[0]
    np.testing.assert_array_equal(data.samples[0].label, expected)


def test_255_is_ignored_on_request_and_hinted_at_otherwise(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "data", image, classes_255)
    assert "--ignore-value 255 if 255 means 'no opinion' rather than a class" in read_folder(folder).notes
    data = read_folder(folder, Reading(ignore_value="255"))
    assert data.class_values == (0, 1, 2)
    np.testing.assert_array_equal(data.samples[0].label, with_void(CLASSES[0]))


@pytest.mark.parametrize("bits", [16, 32])
def test_ids_are_objects(bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_set(tmp_path / "data", image, ids(bits))
    assert main(["--check", "--data", str(folder), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{5 + 6 + 7} objects in {N} images" in printed
    assert "values are taken for object ids" in printed
