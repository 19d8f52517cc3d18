"""Where a large image is cut, so that the parts together are what the whole would have been.

The paper's overlap-tile strategy (section 2, figure 2): a network sees more than it is asked for, and only what cannot
know that it was cut is kept. Cuts lie on multiples of 16 pixels, where the network's poolings fall in the whole image.
"""

from typing import NamedTuple

from unet.network import STRIDE

CONTEXT = 96
"""Pixels on each side that a result depends on: 92 (the paper's 572 -> 388), on the grid of poolings."""


class Tile(NamedTuple):
    """One dimension of a tile."""

    start: int
    stop: int
    """What the network is asked for: pixels start .. stop of the image."""
    keep_start: int
    keep_stop: int
    """What is kept of it, of the same image."""

    @property
    def kept(self) -> slice:
        """Within the tile."""
        return slice(self.keep_start - self.start, self.keep_stop - self.start)


def cut(length: int, size: int, context: int = CONTEXT) -> list[Tile]:
    """Tiles of at most `size` that cover `length` pixels: each pixel is kept once, `context` away from any cut."""
    if size < 2 * context + STRIDE:
        raise ValueError(f"tile: expected at least {2 * context + STRIDE} pixels, found {size}")
    found, start, keep_start = [], 0, 0
    while length - start > size:
        keep_stop = (start + size - context) // STRIDE * STRIDE
        found.append(Tile(start, start + size, keep_start, keep_stop))
        start, keep_start = keep_stop - context, keep_stop
    return [*found, Tile(start, length, keep_start, length)]
