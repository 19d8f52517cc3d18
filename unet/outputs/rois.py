"""Kind `rois`: objects as regions of interest of ImageJ, in a ZIP that its ROI Manager opens.

Outlines go along the sides of pixels, as those of ImageJ's wand: what it measures is exactly the object's pixels. An
object with holes is a composite region.
"""

import io
import re
from typing import TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np

from unet.outputs.kind import Answer, Results
from unet.outputs.objects import of_pages
from unet.outputs.outlines import Ring, line_colours, outlines, pixel_corners, place

if TYPE_CHECKING:
    from roifile import ImagejRoi

LARGEST = 60_535
"""Coordinate of a traced region: 16 bits, of which ImageJ takes some for negative. Composite regions have floats."""
MOVE_TO, LINE_TO, CLOSE = 0, 1, 4


def encode(results: Results) -> Answer:
    """Results of "objects" -> ZIP of regions ID-CLASS, of several pages PAGE-ID-CLASS. Raises TooManyObjectsError."""
    legend, colours = results.legend, line_colours(results.legend)
    classes = [re.sub(r"[^\w .+-]", "_", name) for name in legend.class_names]
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        for page, objects in zip(results.numbers, of_pages(results), strict=True):
            several, index = results.n_in_file > 1, place(results, page)
            hyperstack = len(index) + ("C" in results.picture.axes) > 1
            for i, (rings, k) in enumerate(zip(outlines(objects.ids), objects.classes, strict=True), 1):
                region = _region(rings)
                region.name = f"{page:04}-" * several + f"{i:04}-{classes[k]}"
                region.stroke_color = bytes([255, *colours[k]])
                if several and hyperstack:
                    region.t_position, region.z_position = (index.get(axis, -1) + 1 for axis in "tz")
                elif several:
                    region.position = page
                archive.writestr(ZipInfo(f"{region.name}.roi"), region.tobytes(), ZIP_DEFLATED)
    return Answer(file.getvalue(), "application/zip")


def _region(rings: list[Ring]) -> "ImagejRoi":
    from roifile import ROI_TYPE, ImagejRoi  # here, as few need it

    corners = [pixel_corners(ring) for ring in rings]
    (left, top), (right, bottom) = corners[0].min(axis=0).tolist(), corners[0].max(axis=0).tolist()
    region = ImagejRoi(left=left, top=top, right=right, bottom=bottom)
    if len(corners) == 1 and max(right, bottom) <= LARGEST:
        region.roitype, region.n_coordinates = ROI_TYPE.TRACED, len(corners[0])
        region.integer_coordinates = corners[0] - (left, top)
    else:
        path: list[float] = []
        for ring in corners:
            (x, y), *others = ring.tolist()
            path += [MOVE_TO, x, y, *(number for x, y in others for number in (LINE_TO, x, y)), CLOSE]
        region.roitype, region.shape_roi_size = ROI_TYPE.RECT, len(path)
        region.multi_coordinates = np.array(path, np.float32)
    return region
