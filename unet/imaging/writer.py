"""Writing: PNG through OpenCV, TIFF through tifffile."""

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from tifffile import TiffWriter

from unet.imaging.picture import Array, Metadata, Picture

_UNITS = {"inch": "INCH", "cm": "CENTIMETER"}


def write_png(image: Array) -> bytes:
    """PNG of an image (H, W) or (H, W, 3) RGB, uint8 or uint16."""
    ok, buffer = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    assert ok, "OpenCV refused to encode an array that we made"
    return buffer.tobytes()


def write_tiff(pages: Sequence[Array], like: Picture | None = None) -> bytes:
    """Pages as for `write_png` -> one TIFF (LZW) with the resolution of `like`, and with ImageJ's calibration
    if the unit is neither inch nor cm and all pages have one size."""
    metadata = like.metadata if like else Metadata()
    options: dict[str, Any] = {"compression": "lzw", "photometric": "rgb" if pages[0].ndim == 3 else "minisblack"}
    if metadata.resolution:
        options |= {"resolution": metadata.resolution, "resolutionunit": _UNITS.get(metadata.unit, "NONE")}
    imagej = metadata.unit not in ("", *_UNITS) and len({page.shape for page in pages}) == 1
    file = io.BytesIO()
    with TiffWriter(file, imagej=imagej, bigtiff=not imagej and sum(page.nbytes for page in pages) > 2**31) as writer:
        if imagej:
            unit = metadata.unit.replace("µ", r"\u00B5").encode("ascii", "replace").decode()  # as ImageJ writes it
            described = {"axes": "ZYXS"[: pages[0].ndim + 1], "unit": unit, "spacing": metadata.spacing or 1.0}
            writer.write(np.stack(pages), metadata=described, **options)
        else:
            for page in pages:
                writer.write(page, metadata=None, **options)
    return file.getvalue()
