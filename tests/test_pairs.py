"""Pairs of image and label files by their names."""

from pathlib import Path

import pytest

from trainer.data.layouts import Found
from trainer.data.pairs import find_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Training_Images", "Training_Labels"):
        (tmp_path / name).mkdir()
    return tmp_path


def add(folder: Path, *names: str) -> None:
    """Files, of which only the names matter here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def paired(found: Found) -> list[tuple[str, str]]:
    """Image and label of each pair."""
    return [(pair.images[0].name, pair.label.name) for pair in found.pairs]


def test_files_are_paired_by_name_whatever_their_endings(folder: Path) -> None:
    add(folder / "Training_Images", "b.tif", "a.JPG", "c.ome.tif", "d.gif")
    add(folder / "Training_Labels", "a.png", "b.bmp", "c.png", "d.gif")
    found = find_pairs(folder)
    assert paired(found) == [
        ("a.JPG", "Training_Labels/a.png"),
        ("b.tif", "Training_Labels/b.bmp"),
        ("c.ome.tif", "Training_Labels/c.png"),
        ("d.gif", "Training_Labels/d.gif"),
    ]
    assert [pair.name for pair in found.pairs] == ["a", "b", "c", "d"]
    assert found.problems == found.left_out == []


def test_pairs_are_in_natural_order(folder: Path) -> None:
    """So that slices are beside their neighbours, whether their numbers have leading zeros or not."""
    names = ["01", "1", "2", "10", "a", "a1b2", "a1b10", "a 9", "a 10", "a²"]
    add(folder / "Training_Images", *(f"{name}.png" for name in reversed(names)))
    add(folder / "Training_Labels", *(f"{name}.bmp" for name in names))
    assert [pair.name for pair in find_pairs(folder).pairs] == names


def test_letters_with_accents_are_the_same_however_a_system_stores_them(folder: Path) -> None:
    add(folder / "Training_Images", "caf\u00e9.png")
    add(folder / "Training_Labels", "cafe\u0301.png")
    assert [pair.name for pair in find_pairs(folder).pairs] == ["caf\u00e9"]


def test_what_systems_leave_behind_is_skipped_and_anything_else_is_named_in_one_line(folder: Path) -> None:
    images = folder / "Training_Images"
    add(images, "a.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", "notes.txt", "README")
    add(folder / "Training_Labels", "a.png", "a.csv")
    add(folder / "overlays", "a.png", "b.png")
    for name in ("@eaDir", "__MACOSX", ".git"):
        (images / name).mkdir()
        add(folder / name, "a.png")
    found = find_pairs(folder)
    assert len(found.pairs) == 1
    assert found.problems == []
    assert found.left_out == [
        "left out 5 files (1 without ending, 1 .txt, 1 .csv, 2 .png): Training_Images/README, "
        "Training_Images/notes.txt, Training_Labels/a.csv and 2 more"
    ]


def test_files_without_a_partner_are_named(folder: Path) -> None:
    add(folder / "Training_Images", "alone.png", "kind.png")
    add(folder / "Training_Labels", "orphan.png", "kind.svs")
    found = find_pairs(folder)
    assert found.pairs == []
    alone, kind, orphan = found.problems
    assert alone == "Training_Images/alone.png: has no label Training_Labels/alone.*"
    assert kind.startswith(
        "Training_Images/kind.png: has no label Training_Labels/kind.*; kind.svs is not one of .png, "
    )
    assert orphan == "Training_Labels/orphan.png: has no image Training_Images/orphan.*"


def test_many_files_without_a_partner_are_one_line(folder: Path) -> None:
    add(folder / "Training_Images", *(f"{i}.png" for i in range(20)))
    add(folder / "Training_Labels", "0.png")
    assert find_pairs(folder).problems == [
        "19 files have no label: Training_Images/1.png, Training_Images/2.png, Training_Images/3.png and 16 more; "
        "expected Training_Labels/1.*; images without one may be in a folder of their own: --unlabelled DIR"
    ]


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    add(folder / "Training_Images", "a.png", "a.tif")
    add(folder / "Training_Labels", "a.png")
    assert find_pairs(folder).problems == [
        "Training_Images/a.tif: has the same name as a.png; expected one file per name"
    ]


def test_subfolders_are_refused(folder: Path) -> None:
    (folder / "Training_Images" / "more").mkdir()
    assert find_pairs(folder).problems == [
        "Training_Images/more/: found a folder; expected images, since folders in it are not searched"
    ]


def test_an_empty_data_set_says_which_files_are_expected(folder: Path) -> None:
    (problem,) = find_pairs(folder).problems
    assert problem.startswith("no images: expected Training_Images/NAME.png with Training_Labels/NAME.png (.png, ")


def test_a_missing_folder_is_one_problem_rather_than_one_per_file_of_the_other(folder: Path) -> None:
    add(folder / "Training_Labels", "a.png", "b.png")
    (folder / "Training_Images").rmdir()
    expected = "expected Training_Images/ with Training_Labels/"
    assert find_pairs(folder).problems == [f"Training_Images/: no such folder; {expected}"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("images", "masks"), ("image", "mask"), ("Images", "GT"), ("train", "train_masks"),
     ("imgs", "annotations"), ("images", "1st_manual"), (".", "masks")],
)  # fmt: skip
def test_two_folders_of_other_names(tmp_path: Path, images: str, labels: str) -> None:
    add(tmp_path / images, "a.png", "b.png")
    add(tmp_path / labels, "a.png", "b.gif")
    add(tmp_path / "test", "c.png")
    found = find_pairs(tmp_path)
    assert paired(found) == [("a.png", f"{labels}/a.png"), ("b.png", f"{labels}/b.gif")]
    assert found.problems == []
    assert found.left_out == ["left out 1 file (1 .png): test/c.png"]


@pytest.mark.parametrize("ending", ["_mask", "_masks", "_label", "_labels", "_seg", "-mask", "_Label"])
@pytest.mark.parametrize("two_folders", [True, False])
def test_usual_endings_of_label_files(tmp_path: Path, ending: str, two_folders: bool) -> None:
    add(tmp_path / ("images" if two_folders else "."), "a.jpg", "b.jpg")
    add(tmp_path / ("masks" if two_folders else "."), f"a{ending}.png", f"b{ending}.png")
    found = find_pairs(tmp_path)
    prefix = "masks/" if two_folders else ""
    assert paired(found) == [("a.jpg", f"{prefix}a{ending}.png"), ("b.jpg", f"{prefix}b{ending}.png")]
    assert found.problems == found.left_out == []


def test_endings_that_all_images_have_are_not_part_of_their_names(tmp_path: Path) -> None:
    """As cellpose has them."""
    add(tmp_path, "000_img.png", "000_masks.png", "001_img.png", "001_masks.png")
    assert paired(find_pairs(tmp_path)) == [("000_img.png", "000_masks.png"), ("001_img.png", "001_masks.png")]


def drive(folder: Path) -> Path:
    """Folders and names of DRIVE; in mask/ is what of the photograph is not black."""
    add(folder / "images", "21_training.tif", "22_training.tif")
    add(folder / "1st_manual", "21_manual1.gif", "22_manual1.gif")
    return folder


def test_label_suffix_chooses_label_files_in_another_folder(tmp_path: Path) -> None:
    (problem,) = find_pairs(drive(tmp_path)).problems
    assert problem == "2 images, 2 files named like them + `_manual1`: --label-suffix _manual1"
    pairs = [("21_training.tif", "1st_manual/21_manual1.gif"), ("22_training.tif", "1st_manual/22_manual1.gif")]
    assert paired(find_pairs(tmp_path, "_manual1")) == pairs


def test_label_suffix_chooses_one_of_several_folders(tmp_path: Path) -> None:
    add(drive(tmp_path) / "mask", "21_training_mask.gif", "22_training_mask.gif")
    (problem,) = find_pairs(tmp_path).problems
    assert problem.startswith("labels may be in 1st_manual/ (21_manual1.gif, ...) or mask/ (21_training_mask.gif, ")
    found = find_pairs(tmp_path, "_manual1")
    assert [label for _, label in paired(found)] == ["1st_manual/21_manual1.gif", "1st_manual/22_manual1.gif"]
    assert found.left_out == ["left out 2 files (2 .gif): mask/21_training_mask.gif, mask/22_training_mask.gif"]


def test_label_suffix_chooses_one_of_two_observers_in_one_folder(tmp_path: Path) -> None:
    """As CHASE_DB1 has them."""
    add(tmp_path, *(f"Image_0{i}L{end}" for i in range(1, 4) for end in (".jpg", "_1stHO.png", "_2ndHO.png")))
    (problem,) = find_pairs(tmp_path).problems
    assert problem.endswith(
        "Nearest: 3 images, 3 files named like them + `_1stHO`: --label-suffix _1stHO; or 3 files named like them + "
        "`_2ndHO`: --label-suffix _2ndHO"
    )
    found = find_pairs(tmp_path, "_1stHO")
    assert paired(found) == [(f"Image_0{i}L.jpg", f"Image_0{i}L_1stHO.png") for i in range(1, 4)]
    assert found.problems == []
    (left_out,) = found.left_out
    assert left_out.startswith("left out 3 files (3 .png): Image_01L_2ndHO.png, ")


def test_an_image_with_two_labels_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "a.png", "a_mask.png", "a_label.png")
    (problem,) = find_pairs(tmp_path).problems
    assert problem.startswith("a.png: has two labels, a_label.png and a_mask.png; expected one: ")
    assert paired(find_pairs(tmp_path, "_mask")) == [("a.png", "a_mask.png")]


@pytest.mark.parametrize("names", [("train-volume.tif", "train-labels.tif"), ("images.tif", "masks.tif")])
def test_a_stack_and_the_stack_of_its_labels_are_a_pair_whatever_their_names(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    add(tmp_path, *names)
    found = find_pairs(tmp_path)
    assert paired(found) == [names]
    assert found.left_out == [f"{names[1]} is taken as the label of {names[0]}: there is no other"]


def test_where_nothing_fits_the_message_shows_what_was_found(tmp_path: Path) -> None:
    add(tmp_path / "a", "1.png", "2.png")
    add(tmp_path / "boxes", "1.txt", "2.txt")
    add(tmp_path / "masks" / "train")
    (problem,) = find_pairs(tmp_path).problems
    assert problem.startswith(
        "found 2 .png in a/, 2 .txt in boxes/, folders in folders, which are not searched: masks/train; expected "
        "Training_Images/ with Training_Labels/; "
    )


def test_where_a_folder_below_fits_the_message_names_it(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for part in ("images", "masks"):
        add(tmp_path / "train" / part, "a.png")
    (problem,) = find_pairs(tmp_path).problems
    assert problem.endswith(f"Nearest: train/ would fit: --data {tmp_path / 'train'}")


def test_the_folder_of_the_images_alone_is_not_the_data(folder: Path) -> None:
    add(folder / "Training_Images", "a.png", "b.png")
    (problem,) = find_pairs(folder / "Training_Images").problems
    assert problem.endswith(f"Nearest: the folder above has labels, too: --data {folder}")
