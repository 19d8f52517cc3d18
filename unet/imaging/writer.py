"""Writing: PNG through OpenCV, TIFF through tifffile."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import cv2
from tifffile import TiffWriter, imagej_description, imagej_metadata_tag

from unet.imaging.picture import Array, Metadata, Picture

_UNITS = {"inch": "INCH", "cm": "CENTIMETER"}
_PAGE_NAME = 285


def write_png(image: Array) -> bytes:
    """PNG of an image (H, W) or (H, W, 3) RGB, uint8 or uint16."""
    ok, buffer = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    assert ok, "OpenCV refused to encode an array that we made"
    return buffer.tobytes()


def write_tiff(pages: Sequence[Array], like: Picture | None = None) -> bytes:
    """Pages as for `write_png`, or of other types -> one TIFF with the resolution and the names of `like`, and with
    ImageJ's description if `like` has times, slices or a calibration: ImageJ opens it as a hyperstack. Pages of
    different sizes keep their resolution, in pixels per cm. Deflate: tifffile reads it without imagecodecs, too.
    """
    metadata = like.metadata if like else Metadata()
    resolution, unit = metadata.resolution, metadata.unit
    names = metadata.names if len(metadata.names) == len(pages) else ("",) * len(pages)
    options: dict[str, Any] = {"compression": "zlib", "photometric": "rgb" if pages[0].ndim == 3 else "minisblack"}
    first: dict[str, Any] = {}
    if metadata.stack or unit not in ("", *_UNITS):
        if len({page.shape for page in pages}) == 1:
            first = _described(metadata, (len(pages), *pages[0].shape), names)
        elif metadata.micrometres:
            width, height = metadata.micrometres
            resolution, unit = (1e4 / width, 1e4 / height), "cm"
    if resolution:
        options |= {"resolution": resolution, "resolutionunit": _UNITS.get(unit, "NONE")}
    file = io.BytesIO()
    with TiffWriter(file, byteorder="<", bigtiff=sum(page.nbytes for page in pages) > 2**31) as writer:
        for page, name in zip(pages, names, strict=True):
            named = [(_PAGE_NAME, "s", 0, name.encode("ascii", "replace"), True)] if name else []
            writer.write(page, metadata=None, **{"extratags": named} | options | first)
            first = {}
    return file.getvalue()


def _described(metadata: Metadata, shape: tuple[int, ...], names: Sequence[str]) -> dict[str, Any]:
    """ImageJ's tags for the first of pages (N, H, W[, 3]). (Those that tifffile writes itself are for fewer types.)"""
    stack = metadata.stack if math.prod(metadata.stack.values()) == shape[0] else {}
    stack = stack if tuple(stack) in (("T",), ("Z",), ("T", "Z")) else {"Z": shape[0]}
    unit = re.sub("[µμ]", r"\\u00B5", metadata.unit).encode("ascii", "replace").decode()  # as ImageJ writes it
    described: dict[str, Any] = {"unit": unit, "spacing": metadata.spacing or 1.0}
    described |= {"finterval": metadata.interval} if metadata.interval else {}
    text = imagej_description((*stack.values(), *shape[1:]), "".join(stack) + "YXS"[: len(shape) - 1], **described)
    return {"description": text, "extratags": imagej_metadata_tag({"Labels": names} if any(names) else {}, "<")}
