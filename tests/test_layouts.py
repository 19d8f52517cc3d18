"""Layouts of annotation tools: the labels that are read from them, pixel by pixel."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from trainer.data.labels import LabelPage
from trainer.data.layouts import Found
from trainer.data.pairs import find_pairs
from unet.errors import UserError
from unet.imaging import write_png

H, W = 12, 16
IMAGE = np.random.default_rng(0).integers(0, 255, (H, W), np.uint8)
BOX = [[2, 3], [6, 3], [6, 8], [2, 8]]  # x and y of the corners: 4 x 5 pixels
IN_BOX = np.zeros((H, W), int)
IN_BOX[3:8, 2:6] = 1
HOLE = [[3, 4], [5, 4], [5, 6], [3, 6]]
WITH_HOLE = IN_BOX.copy()
WITH_HOLE[4:6, 3:5] = 0


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(write_png(IMAGE))
    return folder


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def pages(found: Found) -> dict[str, LabelPage]:
    """Labels by name, of images of one page."""
    assert found.problems == []
    return {pair.name: pair.label.read([(H, W)])[0] for pair in found.pairs}


def only(found: Found) -> LabelPage:
    (page,) = pages(found).values()
    return page


def labelme(image: str, *shapes: dict[str, Any]) -> dict[str, Any]:
    """A file as labelme writes it, which keeps the image inside as well."""
    every = {"group_id": None, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
    return {
        "version": "6.3.1", "flags": {}, "shapes": [every | shape for shape in shapes],
        "imagePath": image, "imageData": "iVBORw0KGgo=", "imageHeight": H, "imageWidth": W,
    }  # fmt: skip


def test_labelme_classes_are_numbered_in_the_order_of_their_names_in_all_files(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path / "a.json", labelme("a.png", {"label": "type 10", "points": BOX}))
    write(tmp_path / "b.json", labelme("b.png", {"label": "type 2", "points": BOX}))
    found = find_pairs(tmp_path)
    a, b = pages(found).values()
    np.testing.assert_array_equal(a.values, 2 * IN_BOX)
    np.testing.assert_array_equal(b.values, IN_BOX)
    assert a.names == b.names == {0: "background", 1: "type 2", 2: "type 10"}
    assert found.left_out == [
        "where shapes overlap, the later one in the file is drawn over the earlier one",
        "left out 1 file (1 .png): c.png",
    ]


# the PNG of labelme 6.3.1 for 9 x 12 pixels, of which [2:7, 3:10] and [0, 0] are True
LABELME_MASK = (
    "iVBORw0KGgoAAAANSUhEUgAAAAwAAAAJCAAAAAAj05KIAAAAG0lEQVR4nGNgZMABGKGYgYHhPwMTsgyRHNwAAFMfAQtq+znwAAAAAElFTkSuQmCC"
)


def test_labelme_shapes_of_all_kinds_count(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    write(
        tmp_path / "a.json",
        labelme(
            "a.png",
            {"label": "a mask", "points": [[1, 2], [12, 10]], "shape_type": "mask", "mask": LABELME_MASK},
            {"label": "a rectangle", "points": [[3, 2], [0, 0]], "shape_type": "rectangle"},
            {"label": "circle", "points": [[13, 9], [15, 9]], "shape_type": "circle"},
            {"label": "__ignore__", "points": [[0, 10], [0, 12], [16, 12], [16, 10]]},
            {"label": "_background_", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]},
            {"label": "way", "points": [[0, 0], [5, 5]], "shape_type": "line"},
            {"label": "way", "points": [[0, 0], [5, 5], [9, 5]], "shape_type": "linestrip"},
            {"label": "spot", "points": [[0, 0]], "shape_type": "point"},
            {"label": "spot", "points": [[1, 1], [2, 2]]},
        ),
    )
    found = find_pairs(tmp_path)
    page = only(found)
    expected = np.zeros((H, W), int)
    expected[4:9, 4:11] = expected[2, 1] = 1
    expected[0:2, 0:3] = 2
    expected[0, 0] = 0
    y, x = np.mgrid[:H, :W] + 0.5
    expected[(x - 13) ** 2 + (y - 9) ** 2 < 4] = 3
    expected[10:] = 0
    np.testing.assert_array_equal(page.values, expected)
    assert page.ignored is not None
    assert page.ignored[10:].all() and not page.ignored[:10].any()  # noqa: PT018
    assert page.names == {0: "background", 1: "a mask", 2: "a rectangle", 3: "circle"}
    assert (
        found.left_out[0] == "shapes that are not drawn: 1 line, 1 linestrip, 1 point, 1 polygon of fewer than 3 points"
    )


def test_labelme_finds_the_image_that_the_file_names(tmp_path: Path) -> None:
    images(tmp_path, "images/a 1.png")
    write(tmp_path / "json" / "one.json", labelme("..\\images\\a 1.png", {"label": "cell", "points": BOX}))
    np.testing.assert_array_equal(only(find_pairs(tmp_path)).values, IN_BOX)


def test_labelme_in_two_folders(tmp_path: Path) -> None:
    for image_folder, label_folder in (("images", "labels"), ("Training_Images", "Training_Labels")):
        folder = images(tmp_path / image_folder, f"{image_folder}/a.png", f"{image_folder}/b.png")
        write(folder / label_folder / "a.json", labelme("a.png", {"label": "cell", "points": BOX}))
        found = find_pairs(folder)
        np.testing.assert_array_equal(only(found).values, IN_BOX)
        assert found.left_out[-1] == f"left out 1 file (1 .png): {image_folder}/b.png"


def test_json_of_which_the_image_is_missing_or_which_is_damaged(tmp_path: Path) -> None:
    images(tmp_path, "c.png", "d.png")
    write(tmp_path / "a.json", labelme("a.png", {"label": "cell", "points": BOX}))
    write(tmp_path / "b.json", {"shapes": [{"label": "cell", "points": [[1, 2], [3, None]]}]})
    (tmp_path / "c.json").write_text('{"shapes": [')
    write(
        tmp_path / "d.json",
        labelme("d.png", {"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "-"}),
    )
    found = find_pairs(tmp_path)
    assert found.problems == [
        "b.json: shapes.0.points.1.1: input should be a valid number, found None",
        "c.json: is no JSON: Expecting value: line 1 column 13 (char 12)",
        "a.json: its image a.png is not there (a copy inside the JSON is not read)",
    ]
    with pytest.raises(UserError, match="found a mask that is no base64"):
        found.pairs[0].label.read([(H, W)])


def feature(geometry: str, coordinates: Any, classification: dict[str, Any] | None = None) -> dict[str, Any]:
    """An annotation as QuPath exports it."""
    properties: dict[str, Any] = {"objectType": "annotation"}
    if classification:
        properties["classification"] = classification
    return {
        "type": "Feature",
        "id": "5b",
        "geometry": {"type": geometry, "coordinates": coordinates},
        "properties": properties,
    }


TUMOR, OLD = {"name": "Tumor", "color": [200, 0, 0]}, {"name": "Stroma", "colorRGB": -6895466}
CLOSED = [[*ring, ring[0]] for ring in (BOX, HOLE)]  # first and last corner are one


@pytest.mark.parametrize("collection", [True, False])
@pytest.mark.parametrize("name", ["a.geojson", "a.ome.geojson", "a.ome.tif.geojson", "a.json"])
def test_qupath_polygons_with_holes(tmp_path: Path, collection: bool, name: str) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE)
    features = [
        feature("Polygon", CLOSED, TUMOR),
        feature("MultiPolygon", [[[[8, 0], [9, 0], [9, 1], [8, 1]]], [[[10, 0], [11, 0], [11, 1], [10, 1]]]], OLD),
        feature("Point", [1, 1], TUMOR),
        feature("Polygon", CLOSED),
        feature("Polygon", [[[0, 0], [16, 0], [16, 12], [0, 12]]], {"name": "Region*"}),
    ]
    write(tmp_path / name, {"type": "FeatureCollection", "features": features} if collection else features)
    found = find_pairs(tmp_path)
    page = only(found)
    expected = 2 * WITH_HOLE
    expected[0, [8, 10]] = 1
    np.testing.assert_array_equal(page.values, expected)
    assert page.names == {0: "background", 1: "Stroma", 2: "Tumor"}
    assert page.colours == {0: (0, 0, 0), 1: (150, 200, 150), 2: (200, 0, 0)}
    assert page.objects is not None
    assert page.objects.max() == 2
    assert found.left_out[0] == "shapes that are not drawn: 1 Point, 1 Region*, 1 shape without a class"


def test_qupath_objects_without_any_class_are_one(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    ignored = feature("Polygon", [[[0, 10], [16, 10], [16, 12], [0, 12]]], {"name": "Ignore*"})
    write(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": [feature("Polygon", CLOSED), ignored]})
    page = only(find_pairs(tmp_path))
    np.testing.assert_array_equal(page.values, WITH_HOLE)
    assert page.names == {0: "background", 1: "foreground"}
    assert page.ignored is not None
    assert page.ignored.sum() == 2 * W


def coco(*annotations: dict[str, Any], names: tuple[str, ...] = ("a.png",)) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name, "height": H, "width": W} for i, name in enumerate(names)],
        "categories": [{"id": 7, "name": "vessel"}, {"id": 3, "name": "cell"}],
        "annotations": [{"id": i, "image_id": 0, "category_id": 3} | each for i, each in enumerate(annotations)],
    }


FLAT_BOX = [c for point in BOX for c in point]
RUNS = [27, 5, 7, 5, 7, 5, 7, 5, 124]  # of IN_BOX, down the columns
# of these pixels pycocotools 2.0.11 makes this
NOISE = np.random.default_rng(1).random((H, W)) < 0.5
NOISE_RLE = "111012OO0O110O020NO0012O00N021N02O11O1N0014OL10M0060L30O1N50J6OMOM00024NL50K35ML220"


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([FLAT_BOX], IN_BOX),
        ([FLAT_BOX, [3, 3, 4, 3, 4, 4, 3, 4]], IN_BOX),  # parts are united
        ({"size": [H, W], "counts": RUNS}, IN_BOX),
        ({"size": [H, W], "counts": "k05700000e3"}, IN_BOX),
        ({"size": [H, W], "counts": NOISE_RLE}, NOISE),
    ],
)
def test_coco_polygons_and_run_lengths(tmp_path: Path, segmentation: Any, expected: npt.NDArray[Any]) -> None:
    images(tmp_path, "a.png")
    write(tmp_path / "coco.json", coco({"segmentation": segmentation}))
    page = only(find_pairs(tmp_path))
    np.testing.assert_array_equal(page.values, 2 * expected)
    assert page.names == {0: "background", 1: "vessel", 2: "cell"}  # in the order of the file


def test_coco_crowds_are_ignored_but_for_the_objects_in_them(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    everything = {"size": [H, W], "counts": [0, H * W]}
    boxes = [{"segmentation": [], "bbox": [0, 0, 3, 3]}, {"bbox": [0, 0, 3, 3]}]
    crowd = {"segmentation": everything, "iscrowd": 1}
    write(tmp_path / "coco.json", coco({"segmentation": [FLAT_BOX]}, crowd, *boxes))
    found = find_pairs(tmp_path)
    page = only(found)
    assert page.ignored is not None
    np.testing.assert_array_equal(page.ignored, IN_BOX == 0)
    np.testing.assert_array_equal(page.values, 2 * IN_BOX)
    assert found.left_out[0] == "shapes that are not drawn: 2 box without an outline"


@pytest.mark.parametrize(
    ("json_file", "image_file", "data"),
    [
        ("coco.json", "a.png", "."),
        ("_annotations.coco.json", "a.png", "_annotations.coco.json"),
        ("result.json", "images/a.png", "result.json"),
        ("annotations/instances_default.json", "images/a.png", "annotations/instances_default.json"),
        ("annotations/instances_train2017.json", "train2017/a.png", "annotations/instances_train2017.json"),
    ],
)
def test_coco_where_people_have_it(tmp_path: Path, json_file: str, image_file: str, data: str) -> None:
    images(tmp_path, image_file)
    write(tmp_path / json_file, coco({"segmentation": [FLAT_BOX]}))
    found = find_pairs(tmp_path / data)
    np.testing.assert_array_equal(only(found).values, 2 * IN_BOX)
    assert [pair.image for pair in found.pairs] == [tmp_path / image_file]


def test_coco_images_are_found_by_the_longest_path_that_fits(tmp_path: Path) -> None:
    """All that are listed count, also without objects; what is not listed is left out."""
    images(tmp_path, "one/a.png", "two/a.png", "two/b.png", "two/c.png")
    write(tmp_path / "coco.json", coco({"segmentation": [FLAT_BOX]}, names=("two\\a.png", "/mnt/d/b.png")))
    found = find_pairs(tmp_path)
    assert [pair.image for pair in found.pairs] == [tmp_path / "two/a.png", tmp_path / "two/b.png"]
    assert [page.values.max() for page in pages(found).values()] == [2, 0]
    assert found.left_out[-1] == "left out 2 files (2 .png): one/a.png, two/c.png"
    write(tmp_path / "coco.json", coco(names=("a.png", "d.png")))
    assert find_pairs(tmp_path).problems == [
        "coco.json: 2 of its 2 images are not in the folder, or there are several of the name: "
        "a.png (one/a.png, two/a.png), d.png"
    ]
    write(tmp_path / "val.json", coco())
    assert find_pairs(tmp_path).problems == ["found 2 files of COCO: coco.json, val.json; expected one: --data FILE"]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 5}, "found an annotation of image 0 and category 5; expected both in its lists"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "a.png: found a polygon with an odd number of coordinates"),
        (
            {"segmentation": {"size": [5, 5], "counts": [25]}},
            "a.png: found a run-length encoding of (5, 5), image (12, ",
        ),
    ],
)
def test_coco_that_is_damaged(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    images(tmp_path, "a.png")
    write(tmp_path / "coco.json", coco(annotation))
    assert find_pairs(tmp_path).problems[0].startswith(f"coco.json: {message}")


@pytest.mark.parametrize("counts", [[27, 5], [-1, 193], "k05700000", "o" * 20])
def test_run_lengths_of_another_number_of_pixels_are_refused(tmp_path: Path, counts: Any) -> None:
    """(pycocotools answers with whatever is in memory.)"""
    images(tmp_path, "a.png")
    write(tmp_path / "coco.json", coco({"segmentation": {"size": [H, W], "counts": counts}}))
    (pair,) = find_pairs(tmp_path).pairs
    with pytest.raises(UserError, match="found a run-length encoding of more or fewer pixels; expected 16 x 12 = 192"):
        pair.label.read([(H, W)])


def test_nnunet(tmp_path: Path) -> None:
    """Channels in files of their own; names and the ignored value from dataset.json."""
    images(
        tmp_path, *(f"imagesTr/case_{i:03d}_000{c}.png" for i in (2, 10) for c in (0, 1)), "imagesTs/case_3_0000.png"
    )
    labels = {"background": 0, "tumour": 1, "ignore": 2}
    write(tmp_path / "dataset.json", {"channel_names": {"0": "a", "1": "b"}, "labels": labels, "file_ending": ".png"})
    for i in (2, 10):
        images(tmp_path, f"labelsTr/case_{i:03d}.png")
        (tmp_path / f"labelsTr/case_{i:03d}.png").write_bytes(write_png((IN_BOX + WITH_HOLE).astype(np.uint8)))
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["case_002", "case_010"]
    assert [path.name for path in found.pairs[0].images] == ["case_002_0000.png", "case_002_0001.png"]
    page = pages(found)["case_002"]
    assert page.names == {0: "background", 1: "tumour"}
    assert page.ignored is not None
    np.testing.assert_array_equal(page.ignored, WITH_HOLE == 1)
    assert found.left_out == ["left out 1 file (1 .png): imagesTs/case_3_0000.png"]


def test_nnunet_before_version_2_has_names_by_number(tmp_path: Path) -> None:
    images(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png", "labelsTr/b.png")
    write(tmp_path / "dataset.json", {"labels": {"0": "background", "1": "tumour"}})
    found = find_pairs(tmp_path)
    assert found.problems == ["labelsTr/b.png: has no image"]
    assert found.pairs[0].label.read([(H, W)])[0].names == {0: "background", 1: "tumour"}


def test_cvat_segmentation_masks(tmp_path: Path) -> None:
    """Colours with names, and a colour for each object."""
    images(tmp_path, "JPEGImages/a.jpg")
    colours = np.zeros((H, W, 3), np.uint8)
    colours[IN_BOX == 1] = (250, 50, 83)
    objects = np.zeros((H, W, 3), np.uint8)
    objects[3:5, 2:6], objects[5:8, 2:6] = (0, 128, 0), (128, 0, 0)
    for folder, pixels in (("SegmentationClass", colours), ("SegmentationObject", objects)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:250,50,83::\n")
    page = only(found := find_pairs(tmp_path))
    np.testing.assert_array_equal(page.values, colours)
    assert page.names == {(0, 0, 0): "background", (250, 50, 83): "cell"}
    expected = IN_BOX.copy()
    expected[3:5, 2:6] = 2
    np.testing.assert_array_equal(page.objects, expected)
    assert found.left_out == []


def test_pascal_voc(tmp_path: Path) -> None:
    """Indices of a palette; most images have no label."""
    images(tmp_path, *(f"JPEGImages/{name}.jpg" for name in "abc"))
    (tmp_path / "SegmentationClass").mkdir()
    mask = Image.fromarray(IN_BOX.astype(np.uint8))
    mask.putpalette([0, 0, 0, 128, 0, 0])
    mask.save(tmp_path / "SegmentationClass" / "b.png")
    (tmp_path / "labelmap.txt").write_text("aeroplane:128,0,0::\n")
    page = only(found := find_pairs(tmp_path))
    np.testing.assert_array_equal(page.values, IN_BOX)
    assert page.names[1] == "aeroplane"
    assert found.left_out == ["left out 2 files (2 .jpg): JPEGImages/a.jpg, JPEGImages/c.jpg"]
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    assert find_pairs(tmp_path).problems == [
        "SegmentationClass/b.png: has no image JPEGImages/b.* (in CVAT: save images with the export)"
    ]


def test_masks_that_labelme_exports(tmp_path: Path) -> None:
    """Arrays are in SegmentationClass/; line i of class_names.txt names index i."""
    images(tmp_path, "JPEGImages/a.jpg", "SegmentationClassVisualization/a.jpg")
    for folder, name in (("SegmentationClass", "a.npy"), ("SegmentationClassPNG", "a.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(write_png(IN_BOX.astype(np.uint8)))
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ncell\n")
    page = only(find_pairs(tmp_path))
    np.testing.assert_array_equal(page.values, IN_BOX)
    assert page.names == {0: "background", 1: "cell"}


def test_files_beside_the_labels_that_are_damaged_are_named(tmp_path: Path) -> None:
    images(tmp_path, "nnunet/imagesTr/a_0000.png", "nnunet/labelsTr/a.png")
    write(tmp_path / "nnunet/dataset.json", {"labels": {"background": 0, "whole": [1, 2]}})
    (problem,) = find_pairs(tmp_path / "nnunet").problems
    assert problem.startswith('dataset.json: expected "labels" with a number for each name (TypeError')
    images(tmp_path, "voc/JPEGImages/a.png", "voc/SegmentationClass/a.png")
    (tmp_path / "voc/labelmap.txt").write_text("cell=red\n")
    assert find_pairs(tmp_path / "voc").problems == [
        "labelmap.txt: expected name:red,green,blue in each line, found 'cell=red'"
    ]


def test_2000_files_take_seconds(tmp_path: Path) -> None:
    images(tmp_path, "x.png").joinpath("x.png").unlink()
    text = json.dumps(labelme("", *[{"label": "cell", "points": BOX}] * 3))
    for i in range(2000):
        (tmp_path / f"{i}.png").touch()
        (tmp_path / f"{i}.json").write_text(text)
    start = time.process_time()
    assert len(find_pairs(tmp_path).pairs) == 2000
    assert time.process_time() - start < 5
