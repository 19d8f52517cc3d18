"""Kind `geojson`: polygons checked by shapely against the pixels, and the form that QuPath reads."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import shapely
from conftest import LEGEND
from shapely.geometry import shape

from trainer.data.annotations import Annotations
from trainer.data.annotations import read as read_annotations
from unet.imaging import Metadata, Picture
from unet.outputs import KINDS, Legend, Results
from unet.outputs.labels import find_objects
from unet.outputs.objects import TooManyObjectsError

RING = np.zeros((6, 8), np.float32)
RING[1:4, 2:5] = 0.75
RING[2, 3] = 0


def geojson(
    pages: list[np.ndarray], picture: Picture | None = None, legend: Legend = LEGEND, **more: Any
) -> list[dict[str, Any]]:
    answer = KINDS["geojson"].encode(Results(pages, picture or Picture([], "YX"), legend, **more))
    assert answer.media_type == "application/geo+json"
    document = json.loads(answer.body)
    assert document.keys() == {"type", "features"}
    assert document["type"] == "FeatureCollection"
    features: list[dict[str, Any]] = document["features"]
    return features


def test_an_object_with_a_hole() -> None:
    """3 x 3 pixels without the middle one, a pixel 0.5 x 2 micrometres."""
    (feature,) = geojson([RING], Picture([], "YX", Metadata((2, 0.5), "um")))
    key = UUID(feature.pop("id"))
    around, hole = feature["geometry"].pop("coordinates")
    # each begins and ends at one of its points, whichever that is
    assert {tuple(point) for point in around} == {
        (2, 1.5), (2.5, 1), (4.5, 1), (5, 1.5), (5, 3.5), (4.5, 4), (2.5, 4), (2, 3.5),
    }  # fmt: skip
    assert {tuple(point) for point in hole} == {(3, 2.5), (3.5, 2), (4, 2.5), (3.5, 3)}
    assert (len(around), len(hole)) == (9, 5)
    assert feature == {
        "type": "Feature",
        "geometry": {"type": "Polygon"},
        "properties": {
            "objectType": "detection",
            "name": "1",
            "classification": {"name": "nucleus", "color": [255, 138, 0]},
            "measurements": {"Area px^2": 8, "Mean probability": 0.75, "Area µm^2": 8.0},
            "page": 1,
        },
    }
    assert UUID(geojson([RING], Picture([], "YX", Metadata((2, 0.5), "um")))[0]["id"]) == key


@pytest.mark.parametrize("density", [0.3, 0.55, 0.62, 0.7, 0.95])
def test_polygons_are_valid_and_hold_exactly_the_pixels_of_their_objects(
    density: float, rng: np.random.Generator
) -> None:
    """Random pixels: regions that touch at corners, in themselves and one another, holes in holes."""
    random = (rng.random((40, 50)) < density).astype(np.float32)
    features, ids = geojson([random]), find_objects(random, LEGEND)
    assert len(features) == ids.max() > 0
    x, y = np.arange(50) + 0.5, (np.arange(40) + 0.5)[:, None]
    for i, feature in enumerate(features, 1):
        polygon = shape(feature["geometry"])
        assert polygon.is_valid, shapely.is_valid_reason(polygon)
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
        np.testing.assert_array_equal(shapely.contains_xy(polygon, x, y), ids == i)
        assert polygon.area == (ids == i).sum() - 0.5 + 0.5 * len(polygon.interiors)
        assert shapely.get_num_coordinates(polygon) == shapely.get_num_coordinates(polygon.simplify(0))
    assert len({feature["id"] for feature in features}) == len(features)


def test_objects_that_touch_have_a_line_in_common_and_do_not_overlap(rng: np.random.Generator) -> None:
    """Four classes cover the image without a gap."""
    result = rng.random((4, 12, 12)).repeat(3, axis=1).repeat(3, axis=2).astype(np.float32)
    legend = Legend(
        threshold=0.5,
        class_values=(0, 1, 2, 3),
        class_names=("sky", "tree", "road", "car"),
        class_colours=((0, 0, 0), (0, 255, 0), (1, 2, 3), (255, 138, 0)),
        objects=False,
        min_area=1,
    )
    features = geojson([result], legend=legend)
    polygons = [shape(feature["geometry"]) for feature in features]
    pairs = [(a, b) for i, a in enumerate(polygons) for b in polygons[:i] if a.intersects(b)]
    assert all(a.intersection(b).area == 0 for a, b in pairs)
    assert max(a.intersection(b).length for a, b in pairs) > 3
    classes = {f["properties"]["classification"]["name"]: f["properties"]["classification"] for f in features}
    assert classes == {
        "tree": {"name": "tree", "color": [0, 255, 0]},
        "road": {"name": "road", "color": [255, 255, 255]},  # its own would not show
        "car": {"name": "car", "color": [255, 138, 0]},
    }


def test_a_single_pixel_is_a_diamond() -> None:
    (feature,) = geojson([np.ones((1, 1), np.float32)])
    assert shape(feature["geometry"]).equals(shapely.Polygon([(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]))


@pytest.mark.parametrize(
    ("stack", "planes"),
    [
        ({"Z": 4}, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        ({"T": 2, "Z": 2}, [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ({}, [(0, 0), (0, 1), (0, 2), (0, 3)]),  # Bio-Formats, and so QuPath, takes pages for times
        ({"R": 4}, [(0, 0), (0, 1), (0, 2), (0, 3)]),
    ],
)
def test_pages_are_planes_of_a_stack(stack: dict[str, int], planes: list[tuple[int, int]]) -> None:
    pages = [RING, RING * 0, RING, RING]
    features = geojson(pages, Picture([], "IYX", Metadata(stack=stack)))
    assert [feature["properties"]["page"] for feature in features] == [1, 3, 4]
    found = [feature["geometry"]["plane"] for feature in features]
    assert found == [{"c": -1, "z": planes[i][0], "t": planes[i][1]} for i in (0, 2, 3)]
    assert len({feature["id"] for feature in features}) == 3


def test_nothing_found() -> None:
    assert geojson([np.zeros((5, 5), np.float32)]) == []
    assert geojson([np.zeros((5, 5), np.float32)] * 2) == []


def test_too_many_objects() -> None:
    with pytest.raises(TooManyObjectsError, match="at most 1 objects"):
        geojson([RING, RING], max_objects=1)


def test_what_is_corrected_in_qupath_can_be_trained_on(tmp_path: Path, rng: np.random.Generator) -> None:
    """The trainer draws the same pixels from the polygons."""
    random = (rng.random((30, 40)) < 0.6).astype(np.float32)
    file = tmp_path / "cell.geojson"
    file.write_bytes(KINDS["geojson"].encode(Results([random], Picture([], "YX"), LEGEND)).body)
    drawn = read_annotations(file)
    assert isinstance(drawn, Annotations)
    ids = np.zeros(random.shape, np.int32)
    for i, each in enumerate(drawn.shapes, 1):
        window, inside = each.drawn(*random.shape)
        ids[window][inside] = i
        assert each.name == "nucleus"
    np.testing.assert_array_equal(ids, find_objects(random, LEGEND))
