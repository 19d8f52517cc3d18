"""Types of this package: limits, pictures, calibration metadata, errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unet.errors import UserError

Array = npt.NDArray[Any]

MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **{"nm": 1e-3, "nanometer": 1e-3, "å": 1e-4, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "m": 1e6},
}
"""Micrometres in a unit, as ImageJ, OME and TIFF spell it, in lower case (µ: the micro sign or the Greek letter)."""


class ImageError(UserError):
    """File that is not an image, is damaged, or of a kind that is not read. The message says why."""


class ImageTooLargeError(ImageError):
    """More bytes, pixels or pages than the limits allow."""


class NoSuchPageError(ImageError):
    """Page that was asked for and is not in the file."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds that hold before any memory is allocated for pixels; None: no bound."""

    max_bytes: int | None = None
    max_pixels: int | None = None  # all pages together
    max_pages: int | None = None


@dataclass(frozen=True, slots=True)
class Metadata:
    """Calibration as the file states it: plain values, None or empty where it says nothing."""

    resolution: tuple[float, float] | None = None  # pixels per unit along x and y
    unit: str = ""  # of `resolution` and `spacing`: "inch", "cm", or as ImageJ and OME spell it ("micron", "µm")
    spacing: float | None = None  # distance of two slices of a z-stack
    orientation: int = 1  # as EXIF or the TIFF tag has it, 1 to 8, from 2 on one that was applied to the pixels
    interval: float | None = None  # seconds between two images of a time series
    stack: dict[str, int] = field(default_factory=dict)  # axes of the pages and their lengths: {"T": 9, "Z": 4}
    names: tuple[str, ...] = ()  # of the pages
    animated: bool = False  # only the first picture of an animation was read
    palette: tuple[tuple[int, int, int], ...] = ()  # RGB of the indices; with `as_stored`, where pixels are indices

    @property
    def micrometres(self) -> tuple[float, float] | None:
        """Width and height of a pixel in micrometres; None where the file does not say, or says inches, which are for
        printers."""
        if not self.resolution or self.unit.lower() not in MICROMETRES:
            return None
        x, y = (MICROMETRES[self.unit.lower()] / pixels for pixels in self.resolution)
        return x, y


@dataclass(frozen=True, slots=True)
class Picture:
    """The pixels of an image file and what the file said of them."""

    pages: list[Array]
    """Pixels (H, W), or (H, W, C) for several channels; one page for anything but a TIFF. Sizes of pages may differ."""
    axes: str
    """Axes as the file has them, in tifffile's letters: YX, YXS, TZCYX; IYX... for pages that nothing describes."""
    metadata: Metadata = field(default_factory=Metadata)
    tiff: bool = False
    """Whether images that are made of it are TIFFs, as the file is, unless one page alone was read."""
    part: tuple[int, int] | None = None
    """Number of the only page that was read, from 1, and of how many; None: all pages of the file are here."""

    @property
    def pixels(self) -> Array:
        """The only page, or (N, H, W[, C]) if all N pages have one shape."""
        return self.pages[0] if len(self.pages) == 1 else np.stack(self.pages)


@contextmanager
def decoding() -> Iterator[None]:
    """Turns any exception of a decoder into ImageError. Only calls of decoders belong inside: it would hide bugs."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"the image is truncated, damaged, or of a kind that is not read ({detail})") from error
