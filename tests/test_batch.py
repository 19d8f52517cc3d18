"""`unet-segment` with a model in this process: names, what is done and what again, the table, mistakes, ends."""

import csv
import errno
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GREY, RGB, Make, png

from batch import inputs
from batch.__main__ import main
from batch.engine import Stop
from batch.folder import OutFolder
from batch.manifest import MANIFEST, Manifest, Record
from batch.settings import SegmentSettings
from batch.work import Job, opened
from unet import Predictor, imaging
from unet import checkpoint as checkpoints
from unet.imaging import Array, write_tiff
from unet.listing import listing
from unet.outputs import KINDS, Legend, Results

THRESHOLD = 0.4319
"""At which the model finds objects in the images: half of its probabilities are above."""


@pytest.fixture(autouse=True)
def model(make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model, in the folder where the program runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    path = make_checkpoint("model/best_model.pth")
    checkpoints.save(replace(checkpoints.load(path), threshold=THRESHOLD), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images of different kinds, and what is none."""
    folder = tmp_path / "images"
    (folder / "day 2").mkdir(parents=True)
    (folder / "cell10.png").write_bytes(png(GREY))
    (folder / "cell2.jpg").write_bytes(png(np.kron(RGB, np.ones((2, 2, 1), np.uint8)), ".jpg"))
    (folder / "day 2" / "zölle.tif").write_bytes(write_tiff([GREY, GREY[::-1]]))
    (folder / "notes.txt").write_text("fixed in PFA")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder for answers, without what the program keeps for itself."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {name: data for name, data in sorted(names.items()) if not name.startswith(".unet-segment/")}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "objects.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says about a mistake, in one line."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("unet-segment: error: ")
    return line.removeprefix("unet-segment: error: ")


def test_answers_have_the_names_of_the_images_and_the_pixels_of_the_predictor(images: Path, model: Path) -> None:
    assert main(["images"]) == 0
    found = files(Path("masks"))
    assert list(found) == ["cell10_mask.png", "cell2_mask.png", "day 2/zölle_mask.tif"]
    predictor = Predictor.load(model)
    assert 0.1 < imaging.read(found["cell10_mask.png"]).pixels.mean() / 255 < 0.9
    for name, data in found.items():
        (image,) = images.glob(f"{name.partition('_')[0]}.*")
        expected = [predictor.mask(page) for page in imaging.read(image).pages]
        np.testing.assert_array_equal(imaging.read(data).pages, expected)


def test_all_kinds_from_one_pass_are_as_each_on_its_own(images: Path, model: Path) -> None:
    assert main(["images", "--output", ",".join(KINDS), "--threshold", "0.4318", "--class", "background"]) == 0
    found = files(Path("masks"))
    assert {"cell10.geojson", "cell10_rois.zip", "cell10_probability.png", "day 2/zölle_labels.tif"} <= found.keys()
    assert len(found) == 3 * (len(KINDS) - 1) + 1
    predictor, image = Predictor.load(model), images / "day 2" / "zölle.tif"
    picture = imaging.read(image)
    for kind in (kind for kind in KINDS.values() if kind.name != "table"):
        class_name = "background" if kind.name == "probability" else None
        pages = [predictor.predict(p, kind.wants, threshold=0.4318, class_name=class_name) for p in picture.pages]
        results = Results(pages, picture, Legend.of(predictor, 0.4318), "day 2/zölle.tif")
        (name,) = [name for name in found if name.startswith("day 2/") and kind.name in name]
        assert found[name] == kind.encode(results).body, kind.name


def test_what_is_done_is_skipped(images: Path, make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    def segmented(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["images", *arguments]) == 0
        return capsys.readouterr().out.partition(" in ")[0]

    assert segmented() == "3 images segmented"
    before = files(Path("masks"))
    assert segmented() == "0 images segmented"
    assert segmented("--output", "labels,mask") == "3 images segmented"
    assert segmented("--output", "labels,mask") == "0 images segmented"
    assert segmented("--overwrite") == "3 images segmented"
    assert segmented("--threshold", "0.51") == "3 images segmented"
    assert segmented("--threshold", "0.51", "--tta") == "3 images segmented"
    assert segmented("--model", str(make_checkpoint("other.pth", seed=1))) == "3 images segmented"
    assert files(Path("masks"))["cell10_mask.png"] != before["cell10_mask.png"]
    Path("masks/cell2_mask.png").unlink()
    (images / "cell10.png").write_bytes(png(GREY[::-1]))
    assert segmented("--model", "other.pth") == "2 images segmented"
    assert segmented() == "3 images segmented"
    assert {name: before[name] for name in ("cell2_mask.png", "day 2/zölle_mask.tif")}.items() <= files(
        Path("masks")
    ).items()


def test_paths_are_files_folders_and_patterns(images: Path, tmp_path: Path) -> None:
    def names(*paths: str) -> list[str]:
        return [item.name for item in inputs.Look.at(paths, tmp_path / "masks", set()).items.values()]

    assert names("images") == ["cell2.jpg", "cell10.png", "day 2/zölle.tif"]  # 2 before 10
    assert names("images/day 2/zölle.tif", "images/cell2.jpg") == ["zölle.tif", "cell2.jpg"]
    assert names("images/**/*.[tp]*") == ["cell10.png", "day 2/zölle.tif"]
    assert names("*", "./images/day 2/..") == ["images/cell2.jpg", "images/cell10.png", "images/day 2/zölle.tif"]
    (images / "loop").symlink_to(images)
    (images / "._cell2.jpg").write_bytes(b"of macOS")
    (images / "gone.png").symlink_to("nothing")
    (images / "self.png").symlink_to("self.png")
    (images / "a[1].png").write_bytes(b"")
    assert names("images") == ["a[1].png", "cell2.jpg", "cell10.png", "day 2/zölle.tif"]
    assert names("images/a[1].png") == ["a[1].png"]


def test_a_folder_that_cannot_be_read_costs_its_images(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(folder: Path) -> tuple[list[Path], list[Path]]:
        if folder.name == "day 2":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(inputs, "listing", listed)
    assert main(["images"]) == 1
    assert f"failed    {images.resolve()}/day 2: cannot be read: Permission denied\n" in capsys.readouterr().err
    assert sorted(files(Path("masks"))) == ["cell10_mask.png", "cell2_mask.png"]


def test_what_is_no_image_or_an_answer_is_skipped_and_counted(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "--out", "images"]) == 0  # beside the images
    assert "images    3 (skipped: 1 .txt: no images)\n" in capsys.readouterr().err
    beside = files(images)
    (images / "masks").mkdir()
    (images / "masks" / "by_curl.png").write_bytes(png(GREY))
    assert main(["images/../", "--out", "images/masks", "--output", "labels"]) == 0
    assert "images    3 (skipped: 1 .txt, 1 .pth: no images; 4 answers or others in --out)\n" in capsys.readouterr().err
    (images / "masks" / "by_curl.png").unlink()
    assert main(["images", "--out", "images"]) == 0
    assert "(skipped: 1 .txt: no images; 6 answers or others in --out)\n" in capsys.readouterr().err
    assert beside.items() <= files(images).items()


def test_two_images_never_have_the_same_answer(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "cell2.tif").write_bytes(write_tiff([GREY]))
    said = fails(["images"], capsys)
    assert said.startswith(f"{images}/cell2.tif: its answers would have the names of those of {images}/cell2.jpg; ")
    assert not Path("masks/cell10_mask.png").exists()
    assert main(["images/*.tif", "images/day 2"]) == 0
    said = fails(["images/cell2.jpg"], capsys)  # another run
    assert f"{images}/cell2.jpg: its answers would replace those of {images}/cell2.tif (--overwrite)" in said
    said = fails(["images"], capsys)
    assert f"{images}/cell2.jpg: its answers would have the names of those of {images}/cell2.tif" in said
    (images / "cell2.tif").unlink()
    assert main(["images"]) == 0


def test_files_of_others_are_not_replaced(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = images / "cell10_mask.png"
    mine.write_bytes(png(GREY))
    assert f"its answer would replace {mine} (--overwrite)" in fails(["images/*0.png", "--out", "images"], capsys)
    assert mine.read_bytes() == png(GREY)
    assert main(["images/*0.png", "--out", "images", "--overwrite"]) == 0
    assert mine.read_bytes() != png(GREY)
    (images / "cell2_labels.png").write_bytes(png(GREY))
    assert main(["images/cell2.jpg", "--out", "images"]) == 0
    said = fails(["images/cell2.jpg", "--out", "images", "--output", "mask,labels"], capsys)
    assert f"its answer would replace {images}/cell2_labels.png (--overwrite)" in said
    assert main(["images/cell2.jpg", "--out", "images", "--output", "mask,table"]) == 0
    assert main(["images/cell10.png", "--out", "images", "--output", "mask,table"]) == 0


def test_the_table_has_the_objects_of_all_images(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "--output", "table"]) == 0
    assert list(files(Path("masks"))) == ["objects.csv"]
    found = rows(Path("masks"))
    assert f"{len(found)} objects of 3 images in objects.csv" in capsys.readouterr().out
    assert list(dict.fromkeys(row["file"] for row in found)) == ["cell2.jpg", "cell10.png", "day 2/zölle.tif"]
    assert list(found[0])[-5:] == [*(f"mean_intensity_{c}" for c in (1, 2, 3)), "mean_intensity", "warning"]
    for row in found:
        assert bool(row["mean_intensity"]) != bool(row["mean_intensity_3"]) == (row["file"] == "cell2.jpg")
    whole = (Path("masks") / "objects.csv").read_bytes()

    (images / "cell2.jpg").rename("cell2.jpg")
    (images / "cell11.png").write_bytes(png(GREY))
    assert main(["images", "--output", "table"]) == 0
    assert "1 image segmented" in (said := capsys.readouterr().out)
    assert "of 3 images in objects.csv, without 1 that are gone or have changed" in said
    eleven = [row for row in rows(Path("masks")) if row["file"] == "cell11.png"]
    ten = [row for row in rows(Path("masks")) if row["file"] == "cell10.png"]
    assert [row | {"file": "cell10.png"} for row in eleven] == ten
    Path("cell2.jpg").rename(images / "cell2.jpg")
    (images / "cell11.png").unlink()
    assert main(["images", "--output", "table"]) == 0
    assert (Path("masks") / "objects.csv").read_bytes() == whole
    assert main(["images/*.png", "--output", "table", "--threshold", "0.432"]) == 0
    assert "of 1 image in objects.csv, without 3 of another model or other options" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["before the line", "after the line", "between two files"])
def test_the_same_command_goes_on(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    arguments = ["images", "--output", "mask", "--output", "table", "--concurrency", "1"]
    assert main([*arguments, "--out", "whole"]) == 0
    assert main([*arguments, "--tta"]) == 0  # other answers, which are to be replaced
    capsys.readouterr()
    append, commit, n = Manifest.append, OutFolder.commit, 0

    def interrupted(manifest: Manifest, record: Record) -> None:
        if moment == "before the line" and not next(iter(manifest.records.values())).options["tta"]:
            signal.raise_signal(signal.SIGINT)
        append(manifest, record)
        if moment == "after the line":
            signal.raise_signal(signal.SIGINT)

    def between(*arguments: object) -> None:
        commit(*arguments)  # type: ignore[arg-type]
        if moment == "between two files":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "append", interrupted)
        patch.setattr(OutFolder, "commit", between)
        assert main(arguments) == 130
    assert "unet-segment: stopped by SIGINT; the same command goes on\n" in capsys.readouterr().err
    with (Path("masks") / MANIFEST).open("a") as file:
        file.write('{"stem": "cell10", "pa')  # a line that a crash has torn
    assert main(arguments) == 0
    n = 3 if moment == "after the line" else 2
    assert f"{n} images segmented" in capsys.readouterr().out
    assert files(Path("masks")) == files(Path("whole"))
    assert main(arguments) == 0
    assert "0 images segmented" in capsys.readouterr().out
    assert not list((Path("masks") / ".unet-segment" / "new").iterdir())


def test_what_cannot_be_segmented_is_listed_at_the_end(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "cell10.png").write_bytes(png(GREY)[:-40])
    (images / "cell3.png").write_bytes(b"")
    (images / f"{'x' * 240}.png").write_bytes(png(GREY))
    (images / "two.tif").write_bytes(write_tiff([GREY]).replace(b"II*", b"II+"))
    assert main(["images"]) == 1
    said = capsys.readouterr()
    assert "2 images segmented" in said.out
    assert ", 4 failed" in said.out
    failed = [line for line in said.err.splitlines() if line.startswith("failed    ")]
    assert failed[0].startswith(f"failed    {images}/cell3.png: expected an image (PNG, ")
    assert failed[1].startswith(f"failed    {images}/cell10.png: the image is truncated")
    assert failed[2].startswith(f"failed    {images}/two.tif: ")
    assert failed[3].endswith("expected a name of at most 239 bytes, as those of answers are longer")
    assert list(files(Path("masks"))) == ["cell2_mask.png", "day 2/zölle_mask.tif"]
    (images / "cell10.png").write_bytes(png(GREY))
    assert main(["images/*10.png"]) == 0


def test_an_image_that_has_changed_since_it_was_found_gets_no_answer(images: Path) -> None:
    settings = SegmentSettings(paths=["images"])
    item = inputs.Item(images / "cell10.png", "cell10.png", size=1, mtime_ns=1)
    with opened(settings, Stop()) as runner, OutFolder.claim(settings) as folder:
        (outcome,) = runner.outcomes([Job(item, ["mask"])], folder)
    assert outcome.failure == "has changed since it was found: the same command segments it"
    assert not outcome.staged


def test_a_bug_costs_one_image(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = Predictor.warning

    def fails_for_pages(predictor: Predictor, pages: Sequence[Array]) -> str:
        assert len(pages) == 1
        return warning(predictor, pages)

    monkeypatch.setattr(Predictor, "warning", fails_for_pages)
    assert main(["images"]) == 1
    said = capsys.readouterr().err
    assert f"failed    {images}/day 2/zölle.tif: a bug of unet-segment, AssertionError: see above\n" in said
    assert "Traceback (most recent call last):\n" in said
    assert list(files(Path("masks"))) == ["cell10_mask.png", "cell2_mask.png"]


def test_a_model_of_other_channels_and_a_warning(
    images: Path, make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "dark.tif").write_bytes(write_tiff([GREY.astype(np.uint16)]))
    assert main(["images/*.tif"]) == 0
    said = f"warning   {images}/dark.tif: expected uint16 values up to 65535"
    assert said in capsys.readouterr().err
    assert main(["images/*.tif"]) == 0
    assert said in capsys.readouterr().err  # also if it is done
    assert main(["images/*.jpg", "--model", str(make_checkpoint("two.pth", n_channels=2))]) == 1
    assert "cell2.jpg: the model was trained on 2 channels, this image has 3" in capsys.readouterr().err


def test_mistakes_are_one_line(images: Path, make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    classes = str(make_checkpoint("classes.pth", n_classes=3))
    found = "expected images (.png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp, .gif, .jp2, .j2k), found none"
    for arguments, said in (
        ([], "expected PATH, found none (see unet-segment --help)"),
        (["a", "images", "b/*.tif"], "a: no such file or folder; b/*.tif: matches no file"),
        (["images/notes.txt"], f"images/notes.txt: {found} (skipped: 1 .txt: no images)"),
        (["images", "--model", "none.pth"], "none.pth: no such file"),
        (
            ["images", "--model", classes, "--threshold", "0.5"],
            "threshold: expected none, as this model tells 3 classes",
        ),
        (["images", "--output", "probability", "--class", "x"], "class: expected background or foreground, found 'x'"),
        (["images", "--out", "images/notes.txt"], "images/notes.txt: cannot be written: "),
        (["images", "--device", "cuda:99"], "--device cuda:99: expected auto, cpu"),
    ):
        assert said in fails(arguments, capsys)


def test_one_run_at_a_time_writes_to_a_folder(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OutFolder.claim(SegmentSettings(paths=["images"])):
        assert fails(["images"], capsys).endswith(
            "masks: another unet-segment is writing there: wait for it, or choose another --out"
        )
