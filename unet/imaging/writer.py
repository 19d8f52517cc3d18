"""Writing: PNG through OpenCV, TIFF through tifffile."""

import io
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from tifffile import TiffWriter

from unet.imaging.picture import Array, Metadata, Picture

_UNITS = {"inch": "INCH", "cm": "CENTIMETER"}
_IMAGEJ = ("u1", "u2", "f4", "u1x3")  # types of pixels; x3: RGB
_PAGE_NAME = 285


def write_png(image: Array) -> bytes:
    """PNG of an image (H, W) or (H, W, 3) RGB, uint8 or uint16."""
    ok, buffer = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    assert ok, "OpenCV refused to encode an array that we made"
    return buffer.tobytes()


def write_tiff(pages: Sequence[Array], like: Picture | None = None) -> bytes:
    """Pages as for `write_png`, or of other types -> one TIFF (LZW) with the resolution and the names of `like`. As a
    hyperstack of ImageJ, with times, slices and calibration, if `like` has any and ImageJ knows such pages.
    """
    metadata = like.metadata if like else Metadata()
    options: dict[str, Any] = {"compression": "lzw", "photometric": "rgb" if pages[0].ndim == 3 else "minisblack"}
    if metadata.resolution:
        options |= {"resolution": metadata.resolution, "resolutionunit": _UNITS.get(metadata.unit, "NONE")}
    stack = metadata.stack if math.prod(metadata.stack.values()) == len(pages) else {}
    stack = stack if tuple(stack) in (("T",), ("Z",), ("T", "Z")) else {"Z": len(pages)}
    calibrated = bool(metadata.stack) or metadata.unit not in ("", *_UNITS)
    kind = f"{pages[0].dtype.str[1:]}{'x3' * (pages[0].ndim == 3)}"
    imagej = calibrated and kind in _IMAGEJ and len({page.shape for page in pages}) == 1
    names = [name.encode("ascii", "replace").decode() for name in metadata.names]
    names = names if len(names) == len(pages) else [""] * len(pages)
    file = io.BytesIO()
    with TiffWriter(file, imagej=imagej, bigtiff=not imagej and sum(page.nbytes for page in pages) > 2**31) as writer:
        if imagej:
            unit = metadata.unit.replace("µ", r"\u00B5").encode("ascii", "replace").decode()  # as ImageJ writes it
            described: dict[str, Any] = {"axes": "".join(stack) + "YXS"[: pages[0].ndim], "unit": unit}
            described |= {"spacing": metadata.spacing or 1.0} | ({"Labels": metadata.names} if any(names) else {})
            described |= {"finterval": metadata.interval} if metadata.interval else {}
            writer.write(np.stack(pages).reshape(*stack.values(), *pages[0].shape), metadata=described, **options)
        else:
            for page, name in zip(pages, names, strict=True):
                tags = [(_PAGE_NAME, "s", 0, name, True)] if name else []
                writer.write(page, metadata=None, extratags=tags, **options)
    return file.getvalue()
