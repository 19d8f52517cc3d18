"""Labels: pages of label files become class indices, and the values in all labels of a data set are checked.

Two values in the whole data set make a binary problem, in which the higher one is the foreground; more values make one
class per value. Colours are read by their luminance.
"""

import colorsys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unet.errors import UserError
from unet.pixels import luminance

MAX_CLASSES = 64
NOISE_ADVICE = (
    "JPEG, WebP and smooth resizing add grey values between classes: save labels as PNG, resize them with "
    "nearest-neighbour interpolation"
)

LABELS = "labels"  # all of a data set, in messages

Array = npt.NDArray[Any]
Colour = tuple[int, ...]


@dataclass(frozen=True)
class LabelPage:
    """A page of a label as its source has it: a file, or shapes that were drawn."""

    values: Array  # (H, W) whole numbers as stored, or (H, W, 3) colours
    colours: Mapping[int, Colour] = field(default_factory=dict)  # RGB of values, by a palette or label map
    names: Mapping[int | Colour, str] = field(default_factory=dict)  # of classes, by value or by colour
    objects: npt.NDArray[np.int32] | None = None  # (H, W) ids, 0 background, where the source knows objects
    ignored: npt.NDArray[np.bool_] | None = None  # (H, W) pixels that the source marks as without an opinion


def default_colours(n: int) -> tuple[Colour, ...]:
    """RGB of n classes: black, then a wheel of hues from orange on, light and dark by turns."""
    wheel = [colorsys.hsv_to_rgb((0.09 + i / (n - 1)) % 1, 1, 0.6 if i % 2 else 1) for i in range(n - 1)]
    return ((0, 0, 0), *(tuple(round(255 * c) for c in colour) for colour in wheel))


class Classes:
    """Values in the labels of a data set, with the colours that they were read from."""

    def __init__(self) -> None:
        # value -> colour -> all labels that have it
        self.found: dict[int, dict[Colour, list[str]]] = defaultdict(lambda: defaultdict(list))

    @property
    def values(self) -> tuple[int, ...]:
        """Values of the classes, ascending."""
        return tuple(sorted(self.found))

    def read(self, page: Array, name: str, *, lossy: bool) -> Array:
        """Values (H, W) of a label page, (H, W) or (H, W, 3) RGB of any dtype. `lossy`: from a JPEG or WebP file.
        Raises UserError for values that cannot be classes."""
        if page.ndim == 3 and page.shape[2] != 3:
            raise UserError(f"found {page.shape[2]} channels; expected grey or RGB")
        coloured = has_colour(page)
        grey = page if page.ndim == 2 else page[:, :, 0]
        values = np.rint(luminance(page)).astype(page.dtype) if coloured else grey
        distinct = np.unique(values)
        if not np.isfinite(distinct).all() or (distinct != np.floor(distinct)).any():
            raise UserError("found values that are not whole numbers; expected one whole number per class")
        if len(distinct) > (2 if lossy else MAX_CLASSES):
            expected = f"expected 2, or one per class (at most {MAX_CLASSES})"
            raise UserError(f"found {len(distinct)} different values; {expected}: {NOISE_ADVICE}")
        for colour, value in _colours(page, values) if coloured else ((3 * (int(v),), v) for v in distinct):
            self.found[int(value)][colour].append(name)
        return values

    def indices(self, values: Array) -> npt.NDArray[np.uint8]:
        """Class indices (H, W) of values (H, W): their positions in `self.values`."""
        return np.searchsorted(self.values, values).astype(np.uint8)

    def problems(self) -> list[str]:
        """One line for each thing wrong with the labels as a whole."""
        low, high, count = self.values[0], self.values[-1], len(self.values)
        names = {value: [name for names in colours.values() for name in names] for value, colours in self.found.items()}
        if count == 1:
            return [f"{LABELS}: found only the value {low} in all labels; expected at least two values"]
        if count > MAX_CLASSES:
            return [f"{LABELS}: found {count} different values in all; expected 2 to {MAX_CLASSES}: {NOISE_ADVICE}"]
        if count > 2 and not 0 <= low <= high <= 255:
            name = names[low if low < 0 else high][0]
            return [f"{name}: class values are {low} to {high} in all; expected 0 to 255, since masks have 8 bits"]
        problems = []
        for value, colours in self.found.items():
            if len(colours) > 1:  # they would silently become one class
                (colour, (name, *_)), (other, (other_name, *_)), *_ = colours.items()
                equal = f"the colour {other} is as bright as {colour} in {name}, so both would be class {value}"
                problems.append(f"{other_name}: {equal}; expected one grey value per class")
        if self.values == (0, 1, 255) and set(names[1]).isdisjoint(names[255]):  # two conventions for one foreground
            problems.append(
                f"{LABELS}: the foreground is 1 in {names[1][0]} and 255 in {names[255][0]}; expected one value per "
                "class: save all as 0 and 255, or as 0, 1 and 2 if these are three classes"
            )
        return problems


def has_colour(image: Array) -> bool:
    """Whether channels differ: a grey image saved as RGB has no colour."""
    return image.ndim == 3 and bool((image != image[:, :, :1]).any())


def _colours(page: Array, values: Array) -> list[tuple[Colour, int]]:
    """Distinct colours of a page, (H, W, 3) of at most 16 bits each, with the value, (H, W), that each was read as."""
    packed = (page.astype(np.int64) * (2**32, 2**16, 1)).sum(axis=2)
    _, first = np.unique(packed, return_index=True)
    colours = page.reshape(-1, 3)[first].astype(int)
    return list(zip(map(tuple, colours.tolist()), values.ravel()[first].tolist(), strict=True))
