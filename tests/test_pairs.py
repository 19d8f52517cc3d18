"""Pairs of image and label files in a folder."""

from pathlib import Path

import pytest

from trainer.data.pairs import find_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Training_Images", "Training_Labels"):
        (tmp_path / name).mkdir()
    return tmp_path


def add(folder: Path, *names: str) -> None:
    """Files, of which only the names matter here."""
    for name in names:
        (folder / name).touch()


def test_files_are_paired_by_name_whatever_their_endings(folder: Path) -> None:
    add(folder / "Training_Images", "b.tif", "a.JPG", ".hidden.png", "notes.txt")
    add(folder / "Training_Labels", "a.png", "b.bmp")
    pairs, problems = find_pairs(folder)
    assert [(pair.name, pair.image.name, pair.label.name) for pair in pairs] == [
        ("a", "a.JPG", "a.png"),
        ("b", "b.tif", "b.bmp"),
    ]
    assert problems == []


def test_pairs_are_in_natural_order(folder: Path) -> None:
    """So that slices are beside their neighbours, whether their numbers have leading zeros or not."""
    names = ["01", "1", "2", "10", "a", "a1b2", "a1b10", "a 9", "a 10", "a²"]
    add(folder / "Training_Images", *(f"{name}.png" for name in reversed(names)))
    add(folder / "Training_Labels", *(f"{name}.bmp" for name in names))
    assert [pair.name for pair in find_pairs(folder)[0]] == names


def test_files_without_a_partner_are_named(folder: Path) -> None:
    add(folder / "Training_Images", "alone.png", "kind.png")
    add(folder / "Training_Labels", "orphan.png", "kind.jp2")
    pairs, problems = find_pairs(folder)
    assert pairs == []
    alone, kind, orphan = problems
    assert alone == "Training_Images/alone.png: has no label Training_Labels/alone.*"
    assert kind.startswith(
        "Training_Images/kind.png: has no label Training_Labels/kind.*; kind.jp2 is not one of .png, "
    )
    assert orphan == "Training_Labels/orphan.png: has no image Training_Images/orphan.*"


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    add(folder / "Training_Images", "a.png", "a.tif")
    add(folder / "Training_Labels", "a.png")
    assert find_pairs(folder)[1] == ["Training_Images/a.tif: has the same name as a.png; expected one file per name"]


def test_subfolders_are_refused(folder: Path) -> None:
    (folder / "Training_Images" / "more").mkdir()
    assert find_pairs(folder)[1] == [
        "Training_Images/more/: found a folder; expected images, since folders in it are not searched"
    ]


def test_an_empty_data_set_says_which_files_are_expected(folder: Path) -> None:
    (problem,) = find_pairs(folder)[1]
    assert problem.startswith("no images: expected Training_Images/NAME.png with Training_Labels/NAME.png (.png, ")


def test_a_missing_folder_is_one_problem_rather_than_one_per_file_of_the_other(folder: Path) -> None:
    add(folder / "Training_Labels", "a.png", "b.png")
    (folder / "Training_Images").rmdir()
    expected = "expected Training_Images/ with Training_Labels/"
    assert find_pairs(folder)[1] == [f"Training_Images/: no such folder; {expected}"]
    assert len(find_pairs(folder / "nowhere")[1]) == 2
