"""Kind `table`: CSV (RFC 4180, UTF-8, text in quotes), one row for each object of all pages.

Places and lengths are in pixels from the image's corner, as in ImageJ and QuPath: the first pixel reaches from 0 to 1,
its centre is 0.5. Perimeter and eccentricity are scikit-image's. Intensities are of the pixels as `imaging.read` gives
them, without NaN. Numbers have seven digits; what is not known is empty.
"""

import csv
import io
import math
from collections.abc import Iterator

import cv2
import numpy as np

from unet.imaging import Array
from unet.outputs.kind import Answer, Results
from unet.outputs.labels import Ids
from unet.outputs.objects import of_pages

_COLUMNS = (
    *("file", "page", "id", "class", "area_px", "area_um2", "centroid_x", "centroid_y"),
    *("bbox_x", "bbox_y", "bbox_width", "bbox_height", "perimeter", "eccentricity", "mean_probability"),
)
_FORMULA = tuple("=+-@\t\r\n")
"""What a cell begins with that a spreadsheet takes for a formula (OWASP, CSV injection)."""


def encode(results: Results) -> Answer:
    """Results of "objects" and the picture's pages -> table. Intensities: `mean_intensity` of grey pages, else
    `mean_intensity_1` of the first channel, and so on. Raises TooManyObjectsError."""
    picture, legend = results.picture, results.legend
    n_channels = max((page[0, 0].size for page in picture.pages), default=1)
    means = [f"mean_intensity_{c}" for c in range(1, n_channels + 1)] if n_channels > 1 else ["mean_intensity"]
    # a stranger may have named the file; with ./ it still is the same file
    name = f"./{results.name}" if results.name.startswith(_FORMULA) else results.name
    width, height = picture.metadata.micrometres or (math.nan, math.nan)
    text = io.StringIO(newline="")
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    table.writerow([*_COLUMNS, *means, "warning"])
    for number, objects, page in zip(results.numbers, of_pages(results), picture.pages, strict=True):
        measured = zip(objects.classes, objects.area, objects.probability, _shapes(objects.ids, page), strict=True)
        for i, (k, area, probability, (shape, intensities)) in enumerate(measured, 1):
            numbers = [int(area), area * width * height, *shape, probability, *intensities]
            missing = [""] * (n_channels - len(intensities))
            start = [name, number, i, legend.class_names[k]]
            table.writerow([*start, *map(_short, numbers), *missing, results.warning])
    return Answer(text.getvalue().encode(errors="backslashreplace"), "text/csv")


def _shapes(ids: Ids, page: Array) -> Iterator[tuple[list[float], list[float]]]:
    """Centroid, bounding box, perimeter and eccentricity of each object, and its mean intensities, one per channel."""
    from scipy.ndimage import find_objects  # here, as both take long to import
    from skimage.measure import perimeter

    for i, box in enumerate(find_objects(ids), 1):
        mask = ids[box] == i
        height, width = mask.shape
        y, x = (side.start for side in box)
        # as scikit-image's to 14 digits, in a fiftieth of the time, which is most of regionprops_table's
        m = cv2.moments(mask.view(np.uint8), binaryImage=True)
        centroid = x + m["m10"] / m["m00"] + 0.5, y + m["m01"] / m["m00"] + 0.5
        spread, skew = m["mu20"] + m["mu02"], math.hypot(2 * m["mu11"], m["mu20"] - m["mu02"])
        eccentricity = math.sqrt(2 * skew / (spread + skew)) if spread else 0.0
        pixels = page[box][mask].reshape(np.count_nonzero(mask), -1).astype(np.float64)
        seen = ~np.isnan(pixels)
        with np.errstate(invalid="ignore"):
            means = np.where(seen, pixels, 0).sum(axis=0) / seen.sum(axis=0)
        yield [*centroid, x, y, width, height, perimeter(mask), eccentricity], means.tolist()


def _short(number: float) -> float | str:
    if isinstance(number, int):
        return number
    return "" if math.isnan(number) else float(f"{number:.7g}")
