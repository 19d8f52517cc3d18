"""Tiles of a large image, cut so that the stitched result equals that of the whole image.

The overlap-tile strategy of the U-Net paper (section 2, figure 2): each tile is computed with context around it, and
only the part that cannot depend on the cut is kept. Cuts lie on multiples of 16 pixels, so that the poolings of the
network fall on the same pixels as in the whole image.
"""

from typing import NamedTuple

from unet.network import STRIDE

CONTEXT = 96
"""Pixels on each side that a result depends on: 92 (the paper's 572 -> 388), rounded up to the grid of poolings."""


class Span(NamedTuple):
    """One dimension of a tile, in pixels of the image."""

    start: int
    stop: int  # the network computes start .. stop
    keep_start: int
    keep_stop: int  # and keep_start .. keep_stop of it are kept

    @property
    def kept(self) -> slice:
        """The part that is kept, relative to `start`."""
        return slice(self.keep_start - self.start, self.keep_stop - self.start)


def cut(length: int, size: int, context: int = CONTEXT) -> list[Span]:
    """Spans of at most `size` pixels that cover `length`; each pixel is kept once, `context` away from any cut."""
    if size < 2 * context + STRIDE:
        raise ValueError(f"tile: expected at least {2 * context + STRIDE} pixels, found {size}")
    found, start, keep_start = [], 0, 0
    while length - start > size:
        keep_stop = (start + size - context) // STRIDE * STRIDE
        found.append(Span(start, start + size, keep_start, keep_stop))
        start, keep_start = keep_stop - context, keep_stop
    return [*found, Span(start, length, keep_start, length)]
