"""Kind `rois`: regions of ImageJ, read back with roifile."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import shapely
from conftest import LEGEND as BINARY
from roifile import ROI_TYPE, ImagejRoi

from unet.imaging import Metadata, Picture
from unet.outputs import KINDS, Results
from unet.outputs.labels import find_objects

LEGEND = replace(BINARY, class_names=("background", "Zellkern: A/B ü"))


def regions(pages: list[np.ndarray], picture: Picture | None = None) -> dict[str, ImagejRoi]:
    answer = KINDS["rois"].encode(Results(pages, picture or Picture([], "YX"), LEGEND))
    assert answer.media_type == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(answer.body))
    assert archive.testzip() is None
    return {name: ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()}


def corners(region: ImagejRoi) -> list[list[tuple[int, int]]]:
    return [[tuple(point) for point in ring.astype(int).tolist()] for ring in region.coordinates(multi=True)]


def test_a_traced_region_along_the_sides_of_pixels() -> None:
    page = np.zeros((9, 9), np.float32)
    page[2:4, 3:8] = page[4, 3] = 1
    ((name, region),) = regions([page]).items()
    assert name == "0001-Zellkern_ A_B ü.roi"
    assert region.name == "0001-Zellkern_ A_B ü"
    assert region.roitype == ROI_TYPE.TRACED
    assert region.stroke_color == bytes([255, 255, 138, 0])  # ARGB
    assert (region.left, region.top, region.right, region.bottom) == (3, 2, 8, 5)
    (ring,) = corners(region)
    assert set(ring) == {(3, 2), (8, 2), (8, 4), (4, 4), (4, 5), (3, 5)}
    assert shapely.Polygon(ring).area == 11
    assert (region.position, region.z_position, region.t_position) == (0, 0, 0)  # of any page


def test_an_object_with_holes_is_a_composite_region() -> None:
    page = np.zeros((9, 9), np.float32)
    page[1:6, 2:7] = 1
    page[2, 3:5] = page[4, 5] = 0
    (region,) = regions([page]).values()
    assert region.roitype == ROI_TYPE.RECT
    assert region.composite
    around, *holes = corners(region)
    assert [shapely.Polygon(ring).area for ring in (around, *holes)] == [25, 2, 1]
    assert shapely.Polygon(around, holes).area == 22
    assert around[0] == around[-1]  # closed
    assert region.stroke_color == bytes([255, 255, 138, 0])


def test_regions_enclose_exactly_the_pixels_of_their_objects(rng: np.random.Generator) -> None:
    """Random pixels: a ring may touch itself at a corner, which a pixel's centre does not notice."""
    random = (rng.random((40, 50)) < 0.62).astype(np.float32)
    ids = find_objects(random, LEGEND)
    x, y = np.arange(50) + 0.5, (np.arange(40) + 0.5)[:, None]
    found = regions([random])
    assert len(found) == ids.max()
    for i, region in enumerate(found.values(), 1):
        rings = [shapely.Polygon(ring) for ring in corners(region)]
        inside = sum(_even_odd(np.array(ring.exterior.coords), x, y) for ring in rings) % 2 == 1
        np.testing.assert_array_equal(inside, ids == i)


def _even_odd(ring: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Number of vertical sides of the ring to the left of each point."""
    (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
    sides = (np.minimum(y0, y1) < y[..., None]) & (np.maximum(y0, y1) > y[..., None]) & (x0 == x1)
    crossed: np.ndarray = (sides & (x0 < x[:, None])).sum(axis=-1)
    return crossed


@pytest.mark.parametrize(
    ("axes", "stack", "places"),
    [
        ("ZYX", {"Z": 4}, [(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)]),
        ("IYX", {}, [(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)]),
        ("TZYX", {"T": 2, "Z": 2}, [(0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)]),
        ("ZCYX", {"Z": 4}, [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 0, 4)]),  # hyperstack of several channels
    ],
)
def test_places_in_stacks(axes: str, stack: dict[str, int], places: list[tuple[int, int, int]]) -> None:
    page = np.zeros((9, 9), np.float32)
    page[2:4, 3:8] = 1
    found = regions([page] * 4, Picture([], axes, Metadata(stack=stack)))
    assert [name[:10] for name in found] == [f"000{i}-0001-" for i in (1, 2, 3, 4)]
    assert [(each.position, each.t_position, each.z_position) for each in found.values()] == places


def test_beyond_the_coordinates_of_16_bits() -> None:
    page = np.zeros((5, 70_000), np.float32)
    page[1:3, 60_530:60_535] = page[1:3, 65_530:65_540] = 1
    traced, composite = regions([page]).values()
    assert (traced.roitype, composite.roitype) == (ROI_TYPE.TRACED, ROI_TYPE.RECT)
    for region, left, right in ((traced, 60_530, 60_535), (composite, 65_530, 65_540)):
        (ring,) = corners(region)
        assert set(ring) == {(left, 1), (right, 1), (right, 3), (left, 3)}


def test_bytes_depend_on_the_results_alone_and_nothing_found_is_an_empty_archive() -> None:
    page = np.ones((3, 3), np.float32)
    body = KINDS["rois"].encode(Results([page], Picture([], "YX"), LEGEND)).body
    (entry,) = zipfile.ZipFile(io.BytesIO(body)).infolist()
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)  # not the time of the request
    assert entry.compress_type == zipfile.ZIP_DEFLATED
    assert regions([page * 0]) == {}
