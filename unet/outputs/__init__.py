"""Kinds of answers: the predictor's results and the picture -> bytes and their media type. Imports no torch.

A new kind is a file here, with a function `encode`, and an entry of the registry. `Answer.media_type` gives the file
its ending: see SUFFIXES.
"""

from unet.outputs.kind import Answer, Kind, Legend, Results

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("mask", "0 and 255 for a binary model, the class values for several classes; 8-bit", "mask", "image"),
        Kind(
            "probability",
            "8-bit grey, 255 certain; of the foreground, of `class`, or of each pixel's likeliest class",
            "probability",
            "image",
        ),
        Kind(
            "labels",
            "ids of objects from 1 on, those that touch separated; 16-bit, or a 32-bit TIFF above 65535",
            "objects",
            "labels",
        ),
        Kind(
            "table",
            "CSV with a row for each object: its class, area, also in square micrometres where the file says the size "
            "of its pixels, centroid, bounding box, shape, mean probability and intensities",
            "objects",
            "table",
            draws=True,
            media_types=("text/csv",),
        ),
        Kind(
            "overlay",
            "the image in 8-bit RGB with outlines in the colours of the classes: of objects, where the model separates "
            "them, else of the mask",
            "objects",
            "overlay",
            draws=True,
        ),
        Kind(
            "geojson",
            "a polygon for each object with its class, area and mean probability, as QuPath opens it",
            "objects",
            "geojson",
            media_types=("application/geo+json",),
        ),
        Kind(
            "rois",
            "a region for each object, in a ZIP for ImageJ's ROI Manager",
            "objects",
            "rois",
            media_types=("application/zip",),
        ),
    )
}
"""By the name that requests and command lines use."""

SUFFIXES = {
    "image/png": ".png",
    "image/tiff": ".tif",
    "application/geo+json": ".geojson",
    "text/csv": ".csv",
    "application/zip": ".zip",
}
"""Endings of file names, by media type."""


def file_name(stem: str, kind: str, ending: str) -> str:
    """The name of an answer, from that of the image: `cell` -> cell_mask.png, cell.geojson."""
    return f"{stem}{ending}" if ending == f".{kind}" else f"{stem}_{kind}{ending}"


__all__ = ["KINDS", "SUFFIXES", "Answer", "Kind", "Legend", "Results", "file_name"]
