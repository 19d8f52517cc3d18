"""Kind `labels`: probabilities -> objects as ids, objects that touch separated.

Where the model has learned borders, the insides of objects are the seeds of a watershed (Meyer and Beucher 1990), which
gives every pixel of the foreground to one of them. Without borders, the shape decides: a component is cut at a neck
that is clearly narrower than what it joins, unless its parts would be long all the same: nets of vessels stay whole.
"""

import cv2
import numpy as np
import numpy.typing as npt

from unet.imaging import write_tiff
from unet.outputs.image import as_image
from unet.outputs.kind import Answer, Legend, Results

FloatArray = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

SURE = 0.5
"""A pixel with a higher probability of being inside an object is part of a seed."""
ROWS = 1000
"""Components that begin in so many rows are grown together."""
NECK = 0.85, 0.25
"""A neck joins two parts if its half width exceeds `a * width - b` pixels, of the narrower part's half width."""

LONG = 3.0
"""Largest area of the parts of a component, in discs of their half widths, on average over its pixels. Clusters of
nuclei have 1.4, cells of a micrograph 1 to 2.7; membranes 3.4 to 5, vessels 4 to 9."""


def encode(results: Results) -> Answer:
    """Results of "objects" -> ids as 16-bit PNG or TIFF, or as 32-bit TIFF."""
    pages = [find_objects(page, results.legend) for page in results.pages]
    if max(page.max() for page in pages) > np.iinfo(np.uint16).max:
        return Answer(write_tiff([page.astype(np.uint32) for page in pages], like=results.picture), "image/tiff")
    return as_image([page.astype(np.uint16) for page in pages], results.picture)


def find_objects(result: FloatArray, legend: Legend) -> Ids:
    """Objects (H, W) in a predictor's result of "objects": of the foreground, or of every class but the first."""
    if result.ndim == 2:
        return separate(result, None, legend.threshold, legend.min_area)
    if legend.objects:
        return separate(result[0], result[1], legend.threshold, legend.min_area)
    likeliest = result.argmax(axis=0)
    objects = np.zeros(likeliest.shape, np.int32)
    for k in range(1, len(result)):
        found = separate((likeliest == k).astype(np.float32), None, 0.5, legend.min_area)
        objects += np.where(found > 0, found + objects.max(), 0)
    return _in_reading_order(objects, 1)


def separate(foreground: FloatArray, inside: FloatArray | None, threshold: float, min_area: int) -> Ids:
    """Objects (H, W) as ids 1, 2, ... in reading order, 0 background.

    `foreground`, `inside`: probabilities (H, W) of objects, and of their insides if the model has learned borders.
    Objects are where the foreground is above the threshold; those of fewer than `min_area` pixels are left out.
    """
    mask = foreground > threshold
    if inside is None:
        return _in_reading_order(_cut_at_necks(mask), min_area)
    seeds = _components((inside > SURE) & mask)
    return _in_reading_order(_grow(seeds, inside, mask), min_area)


def _components(mask: Mask) -> Ids:
    """Components (H, W) of pixels that share a side, 1, 2, ..."""
    return np.asarray(cv2.connectedComponents(mask.view(np.uint8), connectivity=4)[1], np.int32)


def _grow(seeds: Ids, height: FloatArray, mask: Mask) -> Ids:
    """Seeds grown over the mask by a watershed, from high to low. Components of the mask without one are seeds, too."""
    from skimage.segmentation import watershed  # here, as it takes long to import

    found = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    components, boxes = (np.asarray(each, np.int32) for each in found[1:3])
    seeded = np.flatnonzero(seeds)
    lowest = np.full(len(boxes), np.iinfo(np.int32).max, np.int32)  # ids of seeds, by component
    highest = np.zeros_like(lowest)
    np.minimum.at(lowest, components.ravel()[seeded], seeds.ravel()[seeded])
    np.maximum.at(highest, components.ravel()[seeded], seeds.ravel()[seeded])
    several = lowest < highest
    empty = highest == 0
    empty[0] = False  # the background
    highest[empty] = seeds.max() + np.arange(1, empty.sum() + 1)
    objects = _renumbered(components.copy(), highest)
    # a watershed takes a microsecond and 40 bytes per pixel: only where it decides something, and a part at a time
    top = boxes[:, cv2.CC_STAT_TOP]
    bottom = top + boxes[:, cv2.CC_STAT_HEIGHT]
    for part in np.unique(top[several] // ROWS):
        chosen = several & (top // ROWS == part)
        rows = slice(top[chosen].min(), bottom[chosen].max())
        contested = chosen[components[rows]]
        objects[rows][contested] = watershed(-height[rows], seeds[rows], mask=contested)[contested]
    return objects


def _cut_at_necks(mask: Mask) -> Ids:
    """Components (H, W) of the mask, cut where they are narrow: basins of the distance to the background, of which
    neighbours are joined unless the pass between them is low. Those with LONG parts stay whole."""
    from scipy.sparse import coo_array  # here, as both take long to import
    from scipy.sparse.csgraph import connected_components

    sharp = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    depth = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 1), np.float32)
    del sharp
    peaks = _components(mask & (depth == cv2.dilate(depth, np.ones((3, 3), np.uint8))))
    basins = _grow(peaks, depth, mask)
    top = np.zeros(basins.max() + 1, np.float32)
    for start in range(0, len(basins), ROWS):
        np.maximum.at(top, basins[start : start + ROWS], depth[start : start + ROWS])

    pairs, passes = [], []
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meet = (basins[a] != basins[b]) & (basins[a] > 0) & (basins[b] > 0)
        pairs.append(np.sort(np.stack([basins[a][meet], basins[b][meet]]), axis=0))
        passes.append(np.minimum(depth[a][meet], depth[b][meet]))
    (first, second), height = np.concatenate(pairs, axis=1), np.concatenate(passes)
    order = np.argsort(-height, kind="stable")
    parent, peak = list(range(len(top))), top.tolist()  # union-find, from the highest pass down

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j, neck in zip(first[order].tolist(), second[order].tolist(), height[order].tolist(), strict=True):
        low, high = sorted((root(i), root(j)), key=peak.__getitem__)
        if neck > NECK[0] * peak[low] - NECK[1]:
            parent[low] = high
    parts = np.array([root(i) for i in range(len(top))], np.int32)  # of each basin
    area = np.bincount(basins.ravel(), minlength=len(top))
    length = np.bincount(parts, area) / (np.pi * np.maximum(top[: parts.max() + 1], 1).astype(float) ** 2)
    _, component = connected_components(coo_array((np.ones(len(first)), (first, second)), (len(top), len(top))))
    nets = np.bincount(component, area * length[parts]) > LONG * np.bincount(component, area)
    _, one = np.unique(component, return_index=True)
    return _renumbered(basins, np.where(nets[component], one[component], parts).astype(np.int32))


def _in_reading_order(objects: Ids, min_area: int) -> Ids:
    """The objects of at least `min_area` pixels, renumbered by their first pixels, row by row."""
    places = np.flatnonzero(objects)
    ids = objects.ravel()[places]
    area = np.bincount(ids, minlength=1)
    first = np.zeros(len(area), np.int64)
    first[ids[::-1]] = places[::-1]  # what is written last stays
    kept = np.flatnonzero(area >= max(1, min_area))
    number = np.zeros(len(area), np.int32)
    number[kept[np.argsort(first[kept])]] = np.arange(1, len(kept) + 1)
    return _renumbered(objects, number)


def _renumbered(ids: Ids, numbers: Ids) -> Ids:
    """`numbers[ids]`, in place and a part at a time: NumPy takes 8 bytes for each index."""
    for start in range(0, len(ids), ROWS):
        ids[start : start + ROWS] = numbers[ids[start : start + ROWS]]
    return ids
