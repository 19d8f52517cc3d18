"""Kind `table`: numbers against scikit-image's, and text that spreadsheets and parsers take as it is meant."""

import csv
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import LEGEND
from skimage.measure import regionprops_table

from unet.imaging import Metadata, Picture, read, write_tiff
from unet.outputs import KINDS, Legend, Results
from unet.outputs.labels import find_objects
from unet.outputs.objects import TooManyObjectsError

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

ELLIPSES = ((12, 20, 9, 4), (25, 60, 6, 14), (45, 15, 3, 3), (55, 80, 4, 9))  # y, x, and half axes, at the border too


@pytest.fixture
def page(rng: np.random.Generator) -> np.ndarray:
    """Probabilities (60, 90): ellipses, a line, a pixel and a block with a hole."""
    y, x = np.mgrid[0:60, 0:90]
    inside = np.any([((y - b) / q) ** 2 + ((x - a) / p) ** 2 <= 1 for b, a, q, p in ELLIPSES], axis=0)
    inside[2, 70:85] = inside[0, 0] = inside[40:50, 40:50] = True
    inside[44:46, 44:47] = False
    return np.where(inside, rng.uniform(0.6, 1, inside.shape), 0.1).astype(np.float32)


def rows(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(body.decode(), newline=""), strict=True))


def table(pages: list[np.ndarray], picture: Picture, name: str = "cell.tif", **more: object) -> list[dict[str, str]]:
    answer = KINDS["table"].encode(Results(pages, picture, LEGEND, name, **more))  # type: ignore[arg-type]
    assert answer.media_type == "text/csv"
    return rows(answer.body)


def column(found: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in found])


def test_numbers_are_scikit_images_and_places_count_from_the_corner(page: np.ndarray, rng: np.random.Generator) -> None:
    image = rng.integers(0, 65536, (*page.shape, 3), dtype=np.uint16)
    found = table([page], Picture([image], "YXS"))
    names = ("label", "area", "centroid", "bbox", "perimeter", "eccentricity", "intensity_mean")
    expected = regionprops_table(find_objects(page, LEGEND), image, properties=names)
    top, left, bottom, right = (expected[f"bbox-{i}"] for i in range(4))
    for name, values in {
        "id": expected["label"],
        "area_px": expected["area"],
        "centroid_x": expected["centroid-1"] + 0.5,
        "centroid_y": expected["centroid-0"] + 0.5,
        **{"bbox_x": left, "bbox_y": top, "bbox_width": right - left, "bbox_height": bottom - top},
        "perimeter": expected["perimeter"],
        "eccentricity": expected["eccentricity"],
        **{f"mean_intensity_{c + 1}": expected[f"intensity_mean-{c}"] for c in range(3)},
    }.items():
        np.testing.assert_allclose(column(found, name), values, rtol=1e-6, atol=1e-7, err_msg=name)
    assert len(found) == len(ELLIPSES) + 3
    assert found[0]["centroid_x"] == "0.5"  # the pixel in the corner
    assert {(row["file"], row["page"], row["class"], row["warning"]) for row in found} == {
        ("cell.tif", "1", "nucleus", "")
    }


def test_probability_and_classes() -> None:
    """Three classes: the second in a block of 2 x 3, the third in one of 2 x 2."""
    planes = np.zeros((3, 6, 8), np.float32)
    planes[0] = 0.9
    planes[:, 1:3, 1:4] = np.array([0.1, 0.7, 0.2])[:, None, None]
    planes[:, 3:5, 5:7] = np.array([0.0, 0.25, 0.75])[:, None, None]
    legend = Legend(
        threshold=0.5,
        class_values=(0, 1, 2),
        class_names=("ground", "cell", "debris, dead"),
        class_colours=((0, 0, 0),) * 3,
        objects=False,
        min_area=1,
    )
    found = rows(KINDS["table"].encode(Results([planes], Picture([planes[0]], "YX"), legend)).body)
    assert [(row["class"], row["area_px"], row["mean_probability"]) for row in found] == [
        ("cell", "6", "0.7"),
        ("debris, dead", "4", "0.75"),
    ]


@pytest.mark.parametrize(
    ("metadata", "micrometres"),
    [
        (Metadata((4.0, 2.0), "micron"), 1 / 8),
        (Metadata((40000.0, 20000.0), "cm"), 1 / 8),
        (Metadata((0.004, 0.004), "nm"), 0.0625),
        (Metadata((300.0, 300.0), "inch"), None),
        (Metadata(), None),
    ],
    ids=str,
)
def test_areas_in_square_micrometres(page: np.ndarray, metadata: Metadata, micrometres: float | None) -> None:
    found = table([page], Picture([page], "YX", metadata))
    if micrometres is None:
        assert {row["area_um2"] for row in found} == {""}
    else:
        np.testing.assert_allclose(column(found, "area_um2"), column(found, "area_px") * micrometres, rtol=1e-6)


def test_pages_of_other_sizes_and_channels_are_one_table(page: np.ndarray) -> None:
    colours = np.stack([page, page * 2], axis=2)
    nothing = np.zeros((8, 8), np.float32)
    found = table([page, nothing, page[:40]], Picture([colours, nothing, page[:40]], "IYX"))
    assert sorted({row["page"] for row in found}) == ["1", "3"]
    assert [row["id"] for row in found if row["page"] == "3"][:2] == ["1", "2"]
    assert {row["mean_intensity_2"] for row in found if row["page"] == "3"} == {""}


def test_pixels_without_data_count_in_no_mean() -> None:
    block = np.zeros((6, 6), np.float32)
    block[1:3, 1:4] = 1
    image = np.full((6, 6), 7, np.float32)
    image[1, 1] = np.nan
    (row,) = table([block], Picture([image], "YX"))
    assert (row["area_px"], row["mean_intensity"]) == ("6", "7.0")
    (row,) = table([block], Picture([image * np.nan], "YX"))
    assert row["mean_intensity"] == ""


def test_without_objects_the_header_is_there() -> None:
    nothing = np.zeros((8, 8), np.float32)
    answer = KINDS["table"].encode(Results([nothing], Picture([nothing], "YX"), LEGEND))
    assert answer.body == (
        b'"file","page","id","class","area_px","area_um2","centroid_x","centroid_y","bbox_x","bbox_y","bbox_width",'
        b'"bbox_height","perimeter","eccentricity","mean_probability","mean_intensity","warning"\r\n'
    )


@pytest.mark.parametrize("name", ['a "b", c;\r\n=1+1.tif', "µ 細胞.tif", "", "sub/-1.tif", "a\0b"])
def test_file_names_come_back_as_they_are(page: np.ndarray, name: str) -> None:
    found = table([page], Picture([page], "YX"), name, warning="page 1: 3 channels, training images had 1")
    assert {(row["file"], row["warning"]) for row in found} == {(name, "page 1: 3 channels, training images had 1")}


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1.tif", "@SUM(1)", "\t=1", "\r=1"])
def test_a_file_name_is_no_formula(page: np.ndarray, name: str) -> None:
    assert table([page], Picture([page], "YX"), name)[0]["file"] == f"./{name}"


def test_a_file_name_that_is_no_unicode(page: np.ndarray) -> None:
    assert table([page], Picture([page], "YX"), "\udce9.tif")[0]["file"] == r"\udce9.tif"


def test_too_many_objects_are_refused(page: np.ndarray) -> None:
    assert len(table([page], Picture([page], "YX"), max_objects=7)) == 7
    with pytest.raises(TooManyObjectsError, match=r"at most 6 objects to list \(--max-objects\)"):
        table([page], Picture([page], "YX"), max_objects=6)


def test_table_of_an_upload(client: "TestClient", rng: np.random.Generator) -> None:
    """The name of the file, its calibration, and the warning that is a header, too."""
    pages = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(2)]
    data = write_tiff(pages, like=Picture([], "", Metadata((4.0, 4.0), "µm")))
    answer = client.post("/segment?output=table", files={"file": ("Zelle µ, 1.tif", data)})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    found = rows(answer.content)
    assert {(row["file"], row["warning"]) for row in found} == {("Zelle µ, 1.tif", answer.headers["X-Input-Warning"])}
    assert {row["page"] for row in found} == {"1", "2"}
    np.testing.assert_allclose(column(found, "area_um2"), column(found, "area_px") / 16)
    labels = client.post("/segment?output=labels", content=data)
    assert [int(ids.max()) for ids in read(labels.content).pages] == [
        sum(row["page"] == page for row in found) for page in ("1", "2")
    ]
