"""Data folders: what is read, what classes mean, and that everything wrong is said at once."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from PIL import Image

from trainer.data import DataError, SplitKind, read_folder, split, split_fold
from unet.images import encode_tiff

Folder = Callable[..., Path]

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
HALVES = np.repeat([[0] * 15 + [255] * 15], 20, axis=0).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """`folder(images={"a.png": array or bytes}, labels=...)`"""

    def write(**parts: dict[str, np.ndarray | bytes]) -> Path:
        for part, name in (("images", "Training_Images"), ("labels", "Training_Labels")):
            (tmp_path / name).mkdir()
            for file, content in parts.get(part, {}).items():
                data = content if isinstance(content, bytes) else png(content, Path(file).suffix)
                (tmp_path / name / file).write_bytes(data)
        return tmp_path

    return write


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (7, 9), (0, 65535)])
def test_two_values_are_binary_whatever_they_are(folder: Folder, values: tuple[int, int]) -> None:
    label = np.where(HALVES > 0, values[1], values[0]).astype(np.uint16)
    data = read_folder(folder(images={"a.png": NOISE}, labels={"a.png": label}))
    assert data.class_values == values
    assert data.n_classes == 1
    np.testing.assert_array_equal(data.samples[0].label, HALVES // 255)


def test_more_values_are_classes(folder: Folder) -> None:
    two, three = HALVES.copy(), HALVES.copy()
    three[:5] = 100
    data = read_folder(folder(images={"a.png": NOISE, "b.png": NOISE}, labels={"a.png": two, "b.png": three}))
    assert data.class_values == (0, 100, 255)
    assert data.n_classes == 3
    assert [np.unique(s.label).tolist() for s in data.samples] == [[0, 2], [0, 1, 2]]


def test_a_foreground_of_1_here_and_255_there_is_no_third_class(folder: Folder) -> None:
    names = ["a.png", "b.png", "c.png"]
    labels = dict(zip(names, (0 * HALVES, HALVES // 255, HALVES), strict=True))
    path = folder(images=dict.fromkeys(names, NOISE), labels=labels)
    with pytest.raises(DataError) as refused:
        read_folder(path)
    assert refused.value.problems == [
        "Training_Labels: the foreground is 1 in b and 255 in c, and no label has both; expected one value per class: "
        "save all labels as 0 and 255, or as 0, 1 and 2 if these are three classes"
    ]
    both = HALVES.copy()
    both[:5] = 1
    (path / "Training_Labels" / "c.png").write_bytes(png(both))
    assert read_folder(path).class_values == (0, 1, 255)


def test_pairs_are_matched_by_stem_across_formats(folder: Folder) -> None:
    path = folder(
        images={"b.tif": NOISE, "a.JPG": png(NOISE, ".jpg"), ".hidden.png": b"", "notes.txt": b"x"},
        labels={"a.png": HALVES, "b.bmp": HALVES},
    )
    assert [s.name for s in read_folder(path).samples] == ["a", "b"]


def test_numbers_in_names_count_as_numbers(folder: Folder) -> None:
    """So that slices are beside their neighbours, whether their numbers have leading zeros or not."""
    stems = ["01", "1", "2", "10", "a", "a1b2", "a1b10", "a 9", "a 10", "a²"]
    files = {f"{stem}.png": NOISE for stem in stems[::-1]}
    labels = {f"{stem}.bmp": HALVES for stem in stems}
    assert [s.name for s in read_folder(folder(images=files, labels=labels)).samples] == stems


def test_page_i_belongs_to_page_i(folder: Folder) -> None:
    images = encode_tiff([NOISE, NOISE + 1])
    labels = encode_tiff([HALVES, HALVES[:, ::-1]])
    data = read_folder(folder(images={"stack.tif": images}, labels={"stack.tif": labels}))
    assert [s.name for s in data.samples] == ["stack page 1", "stack page 2"]
    np.testing.assert_array_equal(data.samples[1].image, NOISE + 1)
    np.testing.assert_array_equal(data.samples[1].label, HALVES[:, ::-1] // 255)


def test_colour_images_have_three_channels_unless_they_are_grey(folder: Folder) -> None:
    grey = np.repeat(NOISE[..., None], 3, axis=2)
    colour = grey.copy()
    colour[0, 0] = (1, 2, 3)
    path = folder(images={"a.png": grey}, labels={"a.png": HALVES})
    assert read_folder(path).n_channels == 1
    (path / "Training_Images" / "a.png").write_bytes(png(colour))
    assert read_folder(path).n_channels == 3


def test_a_coloured_label_is_read_by_its_luminance(folder: Folder) -> None:
    red = np.zeros((20, 30, 3), np.uint8)
    red[:, 15:, 0] = 255
    data = read_folder(folder(images={"a.png": NOISE}, labels={"a.png": red}))
    assert data.class_values == (0, 76)


def test_all_problems_are_listed_at_once(folder: Folder) -> None:
    noisy = png(np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 255, ".jpg")
    disc, webp = np.hypot(*np.mgrid[-32:32, -32:32]) < 20, BytesIO()
    Image.fromarray(disc.astype(np.uint8) * 255).save(webp, "WEBP", quality=90)  # 21 values
    path = folder(
        images={
            "alone.png": NOISE,
            "big.png": np.zeros((21, 30), np.uint8),
            "broken.png": png(NOISE)[:100],
            "kind.png": NOISE,
            "jpeg.png": np.zeros((64, 64), np.uint8),
            "webp.png": np.zeros((64, 64), np.uint8),
            "twice.png": NOISE,
            "twice.tif": NOISE,
            "nan.tif": np.full((20, 30), np.nan, np.float32),
            "pages.tif": encode_tiff([NOISE, NOISE]),
        },
        labels={
            "orphan.png": HALVES,
            "big.png": HALVES,
            "broken.png": HALVES,
            "kind.gif": b"GIF89a",
            "jpeg.jpg": noisy,
            "webp.webp": webp.getvalue(),
            "twice.png": HALVES,
            "nan.tif": HALVES,
            "pages.tif": encode_tiff([HALVES]),
        },
    )
    with pytest.raises(DataError) as refused:
        read_folder(path)
    text = str(refused.value)
    for expected in (
        "Training_Images/alone.png: has no label Training_Labels/alone.*",
        "Training_Labels/orphan.png: has no image Training_Images/orphan.*",
        "Training_Labels/big.png: 30 x 20 pixels; expected 30 x 21",
        "Training_Images/broken.png: cannot be read: the image is truncated",
        "Training_Images/kind.png: has no label Training_Labels/kind.*; kind.gif is of a kind that is not read (.png, ",
        "Training_Labels/jpeg.jpg: ",
        "JPEG, WebP and smooth resizing",
        "Training_Labels/webp.webp: ",
        "Training_Images/twice.tif: has the same name as twice.png",
        "Training_Images/nan.tif: expected finite pixel values",
        "Training_Labels/pages.tif: 1 pages; expected 2",
    ):
        assert expected in text
    assert len(refused.value.problems) == 10
    assert "10 problems" in text


def test_labels_in_colour_are_told_apart_by_brightness_or_not_at_all(folder: Folder) -> None:
    """Classes 1, 2 and 16 of PASCAL VOC."""
    maroon, green, dark = ((HALVES > 0)[:, :, None] * np.uint8(c) for c in ((128, 0, 0), (0, 128, 0), (0, 64, 0)))
    right = folder(images={"a.png": NOISE, "b.png": NOISE}, labels={"a.png": maroon, "b.png": green})
    data = read_folder(right)
    assert data.class_values == (0, 38, 75)
    (right / "Training_Images" / "c.png").write_bytes(png(NOISE))
    (right / "Training_Labels" / "c.png").write_bytes(png(dark))
    with pytest.raises(DataError, match="grey value per class") as refused:
        read_folder(right)
    colours = "the colour (0, 64, 0) is as bright as (128, 0, 0) in Training_Labels/a.png"
    assert refused.value.problems == [
        f"Training_Labels/c.png: {colours}, so both would be the class 38: save labels with one grey value per class"
    ]


def test_a_grey_value_and_a_colour_of_its_brightness(folder: Folder) -> None:
    maroon = (HALVES > 0)[:, :, None] * np.uint8((128, 0, 0))
    grey = np.where(HALVES > 0, 38, 0).astype(np.uint8)
    with pytest.raises(DataError, match=r"\(38, 38, 38\) is as bright as \(128, 0, 0\)"):
        read_folder(folder(images={"a.png": NOISE, "b.png": NOISE}, labels={"a.png": maroon, "b.png": grey}))


def test_an_image_may_hold_one_class_and_the_set_may_not(folder: Folder) -> None:
    path = folder(images={"a.png": NOISE, "b.png": NOISE}, labels={"a.png": HALVES, "b.png": 0 * HALVES})
    assert [int(each.label.max()) for each in read_folder(path).samples] == [1, 0]
    (path / "Training_Labels" / "a.png").write_bytes(png(0 * HALVES))
    with pytest.raises(DataError, match=r"only one value in all \(0\)"):
        read_folder(path)


def test_negative_classes_are_refused(folder: Folder) -> None:
    three = HALVES.astype(np.float32)
    three[:5] = -1
    with pytest.raises(DataError, match=r"from -1 to 255; .* the first others are in b"):
        read_folder(folder(images={"a.png": NOISE, "b.png": NOISE}, labels={"a.png": HALVES, "b.tif": three}))


def test_folders_in_folders_are_not_silently_left_out(folder: Folder) -> None:
    path = folder(images={"a.png": NOISE}, labels={"a.png": HALVES})
    (path / "Training_Images" / "more").mkdir()
    with pytest.raises(DataError, match="Training_Images/more/: a folder"):
        read_folder(path)


@pytest.mark.parametrize(("parts", "problem"), [({}, "no images: expected"), (None, "no such folder")])
def test_nothing_there(folder: Folder, tmp_path: Path, parts: dict[str, object] | None, problem: str) -> None:
    path = tmp_path / "nowhere" if parts is None else folder(**parts)
    with pytest.raises(DataError, match=problem):
        read_folder(path)


def test_a_folder_that_is_missing_is_one_problem_and_not_one_for_each_file_of_the_other(folder: Folder) -> None:
    path = folder(labels={"a.png": HALVES, "b.png": HALVES})
    (path / "Training_Images").rmdir()
    with pytest.raises(DataError) as refused:
        read_folder(path)
    assert refused.value.problems == ["Training_Images/: no such folder"]


def test_a_pipe_is_not_waited_for(folder: Folder) -> None:
    path = folder(labels={"a.png": HALVES})
    os.mkfifo(path / "Training_Images" / "a.png")
    with pytest.raises(DataError, match=r"Training_Images/a\.png: expected a file, found a pipe"):
        read_folder(path)


def test_too_many_values_are_no_classes(folder: Folder) -> None:
    with pytest.raises(DataError, match="different values; expected 2"):
        read_folder(folder(images={"a.png": NOISE}, labels={"a.png": NOISE}))


def test_the_fingerprint_is_of_the_contents(folder: Folder) -> None:
    path = folder(images={"a.png": NOISE}, labels={"a.png": HALVES})
    before = read_folder(path).fingerprint
    assert read_folder(path).fingerprint == before
    (path / "Training_Labels" / "a.png").write_bytes(png(HALVES[:, ::-1]))
    assert read_folder(path).fingerprint != before


@pytest.mark.parametrize(
    ("n", "fraction", "n_val"), [(24, 0.2, 4), (30, 0.2, 6), (2, 0.2, 1), (2, 0.99, 1), (5, 0.01, 1), (10, 0.5, 5)]
)
def test_both_sides_of_a_split_get_something(n: int, fraction: float, n_val: int) -> None:
    train, val = split(n, fraction, "contiguous", seed=0)
    assert len(val) == n_val
    assert train + val == list(range(n))
    train, val = split(n, fraction, "random", seed=1)
    assert len(val) == n_val
    assert sorted(train + val) == list(range(n))


def test_random_splits_follow_the_seed() -> None:
    assert split(30, 0.2, "random", 1) == split(30, 0.2, "random", 1) != split(30, 0.2, "random", 2)


def test_a_single_image_is_on_both_sides() -> None:
    assert split(1, 0.2, "contiguous", 0) == ([0], [0])


@pytest.mark.parametrize("kind", ["contiguous", "random"])
def test_every_image_is_validated_on_in_exactly_one_fold(kind: SplitKind) -> None:
    sides = [split_fold(10, 3, fold, kind, seed=1) for fold in (1, 2, 3)]
    assert sorted(i for _, val in sides for i in val) == list(range(10))
    for train, val in sides:
        assert sorted(train + val) == list(range(10))
    with pytest.raises(ValueError, match="fold 4 of 3"):
        split_fold(10, 3, 4, kind, seed=1)
    with pytest.raises(ValueError, match="<= 10, the number of images"):
        split_fold(10, 11, 1, kind, seed=1)
