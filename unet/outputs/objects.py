"""Objects in the results of a page: their ids, classes and probabilities, for every kind that lists them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unet.errors import UserError
from unet.outputs.kind import Legend, Results
from unet.outputs.labels import FloatArray, Ids, find_objects


class TooManyObjectsError(UserError):
    """More objects than may be listed."""


class Objects(NamedTuple):
    """The n objects of a page, in reading order."""

    ids: Ids  # (H, W), 1 to n, 0 background
    classes: npt.NDArray[np.intp]  # (n,), positions in `Legend.class_values`
    area: npt.NDArray[np.intp]  # (n,), pixels
    probability: npt.NDArray[np.float64]  # (n,), mean of its class's over its pixels


def of_pages(results: Results) -> Iterator[Objects]:
    """Objects of each page. Raises TooManyObjectsError."""
    total = 0
    for page in results.pages:
        found = find(page, results.legend)
        total += len(found.area)
        if results.max_objects is not None and total > results.max_objects:
            raise TooManyObjectsError(
                f"expected at most {results.max_objects} objects to list (--max-objects), found {total} or more: "
                "output=labels has no such limit"
            )
        yield found


def find(result: FloatArray, legend: Legend) -> Objects:
    """Objects in a predictor's result of "objects"."""
    ids = find_objects(result, legend)
    places = np.flatnonzero(ids)
    flat = ids.ravel()[places]
    n = int(ids.max())
    area = np.bincount(flat, minlength=n + 1)[1:]
    classes = np.ones(n, np.intp)
    if result.ndim == 2 or legend.objects:
        foreground = (result if result.ndim == 2 else result[0]).ravel()[places]
    else:
        likeliest = result.argmax(axis=0).ravel()[places]
        classes[flat - 1] = likeliest
        foreground = result.reshape(len(result), -1)[likeliest, places]
    probability = np.bincount(flat, foreground, minlength=n + 1)[1:] / np.maximum(area, 1)
    return Objects(ids, classes, area, probability)
