"""Data folders: pages, channels, checksums, and all problems at once."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import pil, png
from PIL import Image

from trainer.data import DataError, read_folder
from trainer.data.labels import Reading
from unet.imaging import write_tiff

Folder = Callable[..., Path]

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
HALVES = np.repeat([[0] * 15 + [255] * 15], 20, axis=0).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """`folder(images={"a.png": array or bytes}, labels={...})` writes a data folder."""

    def write(**parts: dict[str, np.ndarray | bytes]) -> Path:
        for part, name in (("images", "Training_Images"), ("labels", "Training_Labels")):
            (tmp_path / name).mkdir()
            for file, content in parts.get(part, {}).items():
                data = content if isinstance(content, bytes) else png(content, Path(file).suffix)
                (tmp_path / name / file).write_bytes(data)
        return tmp_path

    return write


def test_labels_become_class_indices(folder: Folder) -> None:
    three = HALVES.copy()
    three[:5] = 100
    path = folder(images={"b.tif": NOISE, "a.png": NOISE}, labels={"b.bmp": three, "a.png": HALVES})
    data = read_folder(path)
    assert [sample.name for sample in data.samples] == ["a", "b"]
    assert (data.class_values, data.n_classes) == ((0, 100, 255), 3)
    assert [np.unique(sample.label).tolist() for sample in data.samples] == [[0, 2], [0, 1, 2]]
    (path / "Training_Labels" / "b.bmp").write_bytes(png(HALVES))
    assert read_folder(path).n_classes == 1  # two values: one output channel


def test_page_i_of_the_label_belongs_to_page_i_of_the_image(folder: Folder) -> None:
    images = write_tiff([NOISE, NOISE + 1])
    labels = write_tiff([HALVES, HALVES[:, ::-1]])
    data = read_folder(folder(images={"stack.tif": images}, labels={"stack.tif": labels}))
    assert [sample.name for sample in data.samples] == ["stack page 1", "stack page 2"]
    np.testing.assert_array_equal(data.samples[1].image, NOISE + 1)
    np.testing.assert_array_equal(data.samples[1].label, HALVES[:, ::-1] // 255)


def test_colour_images_have_three_channels_and_grey_ones_saved_as_rgb_have_one(folder: Folder) -> None:
    grey = np.repeat(NOISE[..., None], 3, axis=2)
    colour = grey.copy()
    colour[0, 0] = (1, 2, 3)
    path = folder(images={"a.png": grey}, labels={"a.png": HALVES})
    assert read_folder(path).n_channels == 1
    (path / "Training_Images" / "a.png").write_bytes(png(colour))
    assert read_folder(path).n_channels == 3


def test_all_problems_are_listed_at_once(folder: Folder) -> None:
    noisy = png(np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 255, ".jpg")
    disc, webp = np.hypot(*np.mgrid[-32:32, -32:32]) < 20, BytesIO()
    Image.fromarray(disc.astype(np.uint8) * 255).save(webp, "WEBP", quality=90)  # 21 values
    path = folder(
        images={
            "alone.png": NOISE,
            "big.png": np.zeros((21, 30), np.uint8),
            "broken.png": png(NOISE)[:100],
            "jpeg.png": np.zeros((64, 64), np.uint8),
            "webp.png": np.zeros((64, 64), np.uint8),
            "nan.tif": np.full((20, 30), np.nan, np.float32),
            "pages.tif": write_tiff([NOISE, NOISE]),
        },
        labels={
            "orphan.png": HALVES,
            "big.png": HALVES,
            "broken.png": HALVES,
            "jpeg.jpg": noisy,
            "webp.webp": webp.getvalue(),
            "nan.tif": HALVES,
            "pages.tif": write_tiff([HALVES]),
        },
    )
    os.mkfifo(path / "Training_Images" / "pipe.png")
    (path / "Training_Labels" / "pipe.png").write_bytes(png(HALVES))
    with pytest.raises(DataError) as refused:
        read_folder(path)
    expected = [
        "Training_Images/alone.png: has no label Training_Labels/alone.*",
        "Training_Labels/orphan.png: has no image Training_Images/orphan.*",
        "Training_Labels/big.png: found 30 x 20 pixels; expected 30 x 21 as in its image",
        "Training_Images/broken.png: the image is truncated",
        "Training_Labels/jpeg.jpg: found ",
        "Training_Images/nan.tif: expected finite pixel values",
        "Training_Labels/pages.tif: number of pages is 1; expected 2 as in its image",
        "Training_Images/pipe.png: found a pipe or device; expected a file",
        "Training_Labels/webp.webp: found ",
    ]
    problems = refused.value.problems
    assert [found[: len(start)] for found, start in zip(problems, expected, strict=True)] == expected
    assert str(refused.value) == "\n  ".join([f"{path}: 9 problems with the data:", *problems])


def test_problems_of_the_labels_as_a_whole_are_reported(folder: Folder) -> None:
    with pytest.raises(DataError, match="1 problem with the data:\n  labels: found only the value 0"):
        read_folder(folder(images={"a.png": NOISE}, labels={"a.png": 0 * HALVES}))


def test_images_have_as_many_channels_as_their_files(folder: Folder) -> None:
    bands = np.stack([NOISE] * 5, axis=2)
    path = folder(
        images={"a.tif": write_tiff([bands]), "b.tif": write_tiff([bands]), "c.png": NOISE},
        labels={"a.png": HALVES, "b.png": HALVES, "c.png": HALVES},
    )
    with pytest.raises(DataError, match="c: found 1 channel; expected 5, as most images have"):
        read_folder(path)
    (path / "Training_Images" / "c.png").unlink()
    (path / "Training_Labels" / "c.png").unlink()
    assert read_folder(path).n_channels == 5


def test_a_channel_by_its_number(folder: Folder) -> None:
    image = np.stack([NOISE, NOISE // 2, NOISE // 4], axis=2)
    path = folder(images={"a.png": image, "b.png": NOISE}, labels={"a.png": HALVES, "b.png": HALVES})
    with pytest.raises(DataError, match=r"Training_Images/b.png: found 1 channel; expected at least 2, by --channel"):
        read_folder(path, Reading(channel=2))
    (path / "Training_Images" / "b.png").write_bytes(png(image))
    data = read_folder(path, Reading(channel=2))
    assert data.n_channels == 1
    np.testing.assert_array_equal(data.samples[0].image, NOISE // 2)


def test_an_image_that_exif_turns_and_a_label_without_exif(folder: Folder) -> None:
    turned = Image.fromarray(NOISE)
    turned.getexif()[274] = 6
    square = Image.fromarray(NOISE[:, :20])
    square.getexif()[274] = 3
    path = folder(
        images={
            "a.jpg": pil(turned, "JPEG", exif=turned.getexif()),
            "b.png": pil(square, "PNG", exif=square.getexif()),
        },
        labels={"a.png": HALVES, "b.png": HALVES[:, :20]},
    )
    with pytest.raises(DataError) as refused:
        read_folder(path)
    assert refused.value.problems == [
        "Training_Labels/a.png: found 30 x 20 pixels; expected 20 x 30 as in its image, which its EXIF orientation "
        "turns: turn the label as well, or save the image without EXIF"
    ]
    (path / "Training_Labels" / "a.png").write_bytes(png(HALVES.T))
    (note,) = read_folder(path).notes
    assert note.startswith("Training_Labels/a.png and 1 more: without EXIF, beside an image that its EXIF orientation")


def test_what_is_wrong_with_many_files_is_told_of_the_first(folder: Folder) -> None:
    images = {f"{i}.png": NOISE for i in range(9)}
    labels = {f"{i}.png": np.zeros((20, 10 + i), np.uint8) for i in range(8)}
    with pytest.raises(DataError) as refused:
        read_folder(folder(images=images, labels=labels | {"8.png": HALVES.T}))
    assert str(refused.value).splitlines()[1:] == [
        "  Training_Labels/0.png: found 10 x 20 pixels; expected 30 x 20 as in its image",
        "  Training_Labels/1.png: found 11 x 20 pixels; expected 30 x 20 as in its image",
        "  ... and so do 6 more",
        "  Training_Labels/8.png: found 20 x 30 pixels; expected 30 x 20 as in its image (turned by 90 degrees?)",
    ]
    assert len(refused.value.problems) == 9


def test_a_stack_that_was_saved_as_channels_beside_the_stack_of_its_labels(folder: Folder) -> None:
    image = np.dstack([NOISE, 255 - NOISE, NOISE])
    with pytest.raises(DataError, match="number of pages is 2; expected 1 as in its image, which has 3 channels"):
        read_folder(folder(images={"a.png": image}, labels={"a.tif": write_tiff([HALVES, HALVES])}))


def test_ids_become_objects(folder: Folder) -> None:
    ids = HALVES.astype(np.uint16)
    ids[:5] *= 2
    data = read_folder(
        folder(images={"a.png": NOISE}, labels={"a.tif": write_tiff([ids])}), Reading(labels="instances")
    )
    assert (data.instances, data.class_names, data.class_values) == (True, ("background", "object"), (0, 255))
    (sample,) = data.samples
    np.testing.assert_array_equal(sample.objects, ids // 255)
    np.testing.assert_array_equal(sample.label, ids > 0)


def test_the_fingerprint_depends_on_the_contents_of_all_files(folder: Folder) -> None:
    path = folder(images={"a.png": NOISE}, labels={"a.png": HALVES})
    before = read_folder(path)
    assert list(before.files) == ["Training_Images/a.png", "Training_Labels/a.png"]
    assert read_folder(path).fingerprint == before.fingerprint
    (path / "Training_Labels" / "a.png").write_bytes(png(HALVES[:, ::-1]))
    assert read_folder(path).fingerprint != before.fingerprint


def test_an_animation_is_refused(folder: Folder) -> None:
    """Its first picture alone would be read, without a word."""
    path = folder(images={"a.png": NOISE}, labels={"a.png": HALVES})
    (path / "Training_Labels" / "a.png").unlink()
    frames = [Image.fromarray(HALVES), Image.fromarray(255 - HALVES)]
    frames[0].save(path / "Training_Labels" / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"Training_Labels/a.gif: found an animation; expected one picture"):
        read_folder(path)
