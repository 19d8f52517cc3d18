"""Answers opened in ImageJ, without a screen: the pixel sizes of the image, the counts and areas of the table."""

import csv
import io
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import LEGEND

from unet.imaging import Picture, read, write_tiff
from unet.outputs import KINDS, SUFFIXES, Results

IMAGEJ = Path("/usr/share/java/ij.jar")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (IMAGEJ.exists() and shutil.which("java")),
        reason="NO IMAGEJ HERE: apt-get install libij-java default-jre-headless",
    ),
]

MICRONS = (0.25, 0.5)
"""Width and height of a pixel of all images here."""

PREPARED = 'call("ij.IJ.open", ""); setBatchMode(true);'  # fails to make menus without a screen, and is not tried again
DESCRIBE = """
open(paths[i]);
getVoxelSize(width, height, depth, unit);
getDimensions(x, y, channels, slices, frames);
sizes = newArray(width, height, depth, slices, frames, Stack.getFrameInterval(), unit);
print("RESULT " + String.join(sizes, "\\t"));
"""
COUNT = """
open(paths[i]);
getVoxelSize(width, height, depth, unit);
for (page = 1; page <= nSlices; page++) {
  setSlice(page);
  getHistogram(values, counts, 1 << bitDepth());
  for (id = 1; id < counts.length; id++)
    if (counts[id] > 0) print("RESULT " + page + "\\t" + id + "\\t" + counts[id] * width * height);
}
"""

Run = Callable[..., list[list[str]]]


@pytest.fixture
def imagej(tmp_path: Path) -> Run:
    """`imagej(macro, file, ...)`: what the macro prints as RESULT for each file, its `paths[i]`."""

    def run(macro: str, *paths: Path) -> list[list[str]]:
        script = tmp_path / "macro.ijm"
        loop = f'paths = split(getArgument(), "\\n"); for (i = 0; i < paths.length; i++) {{ {macro} }}'
        script.write_text(f"{PREPARED} {loop}")
        command = ["java", "-Djava.awt.headless=true", "-Dfile.encoding=UTF-8", "-jar", str(IMAGEJ), "-batch"]
        command += [str(script), "\n".join(map(str, paths))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert lines, done.stdout + done.stderr
        return [line.split("\t") for line in lines]

    return run


def probability(n_pages: int) -> list[np.ndarray]:
    """Pages (40, 60) with two blocks, one of which has a hole, and on the first page a pixel in the corner."""
    page = np.zeros((40, 60), np.float32)
    page[5:15, 5:25] = page[20:31, 30:42] = 0.9
    page[24:27, 33:36] = 0
    pages = [np.roll(page, i, axis=1) for i in range(n_pages)]
    pages[0][0, 0] = 0.8
    return pages


def sources() -> dict[str, bytes]:
    """Images with pixels of a quarter by half a micrometre, as different programs write them."""
    n, resolution = 6, (1 / MICRONS[0], 1 / MICRONS[1])
    grey = np.stack([(1000 * page).astype(np.uint16) for page in probability(n)])
    micrometre = {"unit": "micron", "spacing": 0.7, "finterval": 2.5}
    lengths = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeZ": 0.7}
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "plain": (grey[0], {"resolution": (40000, 20000), "resolutionunit": "CENTIMETER", "metadata": None}),
        "imagej": (grey[0], {"imagej": True, "resolution": resolution, "metadata": {"unit": "um"}}),
        "hyperstack": (
            np.stack([grey, grey], axis=1).reshape(2, 3, 2, *grey.shape[1:]),
            {"imagej": True, "resolution": resolution, "metadata": {"axes": "TZCYX"} | micrometre},
        ),
        "ome": (grey, {"ome": True, "metadata": {"axes": "ZYX"} | lengths}),
    }
    files = {}
    for name, (pixels, options) in kinds.items():
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="minisblack", **options)
        files[name] = file.getvalue()
    return files


def answers(picture: Picture, folder: Path, *names: str) -> list[Path]:
    """Files of these kinds for a picture of `sources`."""
    pages = probability(len(picture.pages))
    paths = []
    for name in names:
        results = [page if KINDS[name].wants == "objects" else np.uint8(page * 255) for page in pages]
        answer = KINDS[name].encode(Results(results, picture, LEGEND, "cell, 1.tif"))
        paths.append(folder / f"{name}{SUFFIXES[answer.media_type]}")
        paths[-1].write_bytes(answer.body)
    return paths


@pytest.mark.parametrize("source", ["plain", "imagej", "hyperstack", "ome"])
def test_answers_have_the_calibration_of_the_image(imagej: Run, tmp_path: Path, source: str) -> None:
    (tmp_path / "image.tif").write_bytes(sources()[source])
    picture = read(tmp_path / "image.tif")
    paths = answers(picture, tmp_path, "mask", "probability", "overlay", "labels")
    paths.append(tmp_path / "32bit.tif")
    paths[-1].write_bytes(write_tiff([np.full(page.shape[:2], 70000, np.uint32) for page in picture.pages], picture))
    image, *found = imagej(DESCRIBE, tmp_path / "image.tif", *paths)
    assert len(found) == len(paths)
    if source == "ome":  # ImageJ alone does not read its description
        image = ["0.2500", "0.5000", "0.7000", "6", "1", "0", "µm"]
    assert [float(side) for side in image[:2]] == list(MICRONS)
    assert image[-1] in ("µm", "microns")
    assert found == [image] * len(paths)
    assert read(paths[0]).metadata.micrometres == pytest.approx(MICRONS)


@pytest.mark.parametrize("source", ["plain", "hyperstack"])
def test_imagej_counts_and_measures_what_the_table_says(imagej: Run, tmp_path: Path, source: str) -> None:
    picture = read(sources()[source])
    labels, table, rois = answers(picture, tmp_path, "labels", "table", "rois")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    expected = [(row["page"], row["id"], pytest.approx(float(row["area_um2"]))) for row in rows]
    assert len(rows) == 2 * len(picture.pages) + 1
    assert [(page, i, float(area)) for page, i, area in imagej(COUNT, labels)] == expected

    zipfile.ZipFile(rois).extractall(tmp_path / "rois")
    regions = sorted((tmp_path / "rois").iterdir())
    macro = f'open("{labels}"); open(paths[i]); getStatistics(area, mean); print("RESULT " + area + "\\t" + mean);'
    measured = imagej(macro, *regions)
    assert [float(area) for area, _ in measured] == [area for *_, area in expected]
    on_first_page = sum(row["page"] == "1" for row in rows)
    assert [float(mean) for _, mean in measured[:on_first_page]] == [1, 2, 3]  # each lies on its object


def test_ids_above_65535_are_exact(imagej: Run, tmp_path: Path) -> None:
    (tmp_path / "ids.tif").write_bytes(write_tiff([np.arange(69990, 70030, dtype=np.uint32).reshape(5, 8)]))
    macro = 'open(paths[i]); print("RESULT " + bitDepth() + "\\t" + getPixel(3, 4));'
    assert imagej(macro, tmp_path / "ids.tif") == [["32", "70025"]]


def test_imagej_opens_the_table(imagej: Run, tmp_path: Path) -> None:
    (table,) = answers(read(sources()["imagej"]), tmp_path, "table")
    macro = 'print("RESULT " + call("ij.measure.ResultsTable.open", paths[i]));'
    (found,) = imagej(macro, table)
    header, *rows = csv.reader(io.StringIO(table.read_text()))
    assert found[0] == f"title=null, size={len(rows)}, hdr={header[0]}"
    assert found[1:] == header[1:]
