"""Kinds `mask` and `probability`: results as they are."""

from collections.abc import Sequence

from unet.imaging import Array, Picture, write_png, write_tiff
from unet.outputs.kind import Answer, Results


def encode(results: Results) -> Answer:
    return as_image(results.pages, results.picture)


def as_image(pages: Sequence[Array], picture: Picture) -> Answer:
    """Pages (H, W) or (H, W, 3), uint8 or uint16 -> a calibrated TIFF for a picture that is one, else a PNG."""
    if picture.tiff or len(pages) > 1:
        return Answer(write_tiff(pages, like=picture), "image/tiff")
    return Answer(write_png(pages[0]), "image/png")
