"""What the labels of a data set mean: values in all of them become classes, or objects.

What is stored is the class: indices of a palette, samples as they are. Two values in the whole data set make a binary
problem, in which the higher one is the foreground; more values make one class each; so do colours, with the background
first. Object ids (see `trainer.data.recognise`) make one class of objects.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected_components

from trainer.data.labels import Colour, LabelPage, Reading, has_colour
from trainer.data.recognise import MAX_CLASSES, Verdict, look, recognise
from trainer.losses import IGNORED
from unet.errors import UserError
from unet.pixels import luminance

LABELS = "labels"  # all of a data set, in messages
LOSSY = (".jpg", ".jpeg", ".webp")
SOFT_ADVICE = "save labels as PNG and resize them with nearest-neighbour interpolation"
THRESHOLD = ", or --labels threshold"
VOID = 255  # index of a palette for pixels without an opinion, by the habit of PASCAL VOC
NAN_IGNORED = "pixels of labels that are not a number (NaN) are ignored"
WHITE = 0xFFFFFF
GREY = 0x010101  # times 0..255
STRIP = 2**24  # pixels that are counted or looked up at once, at 8 bytes and more

Array = npt.NDArray[Any]


@dataclass
class Page:
    """A page of a label, as a number for each pixel."""

    name: str
    source: LabelPage
    image: Array
    values: Array  # (H, W) as stored; of colours 0xRRGGBB
    coloured: bool
    counts: Counter[int]  # number of pixels of each value; those that the source ignores are left out


@dataclass(frozen=True)
class Meaning:
    """Classes of a data set: their values in answers, and how they are stored in the labels."""

    values: tuple[int, ...]
    stored: tuple[int, ...]  # in the order of `values`
    names: tuple[str, ...]
    colours: tuple[Colour, ...]  # empty: the default ones
    instances: bool = False


class Labels:
    """The labels of a data set, added page by page; then `decide` says what they mean, or what is wrong with them."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.pages: list[Page] = []
        self.names: dict[int | Colour, str] = {}
        self.notes: list[str] = []  # what was guessed, or should be known, a line each
        self.ignored: int | None = None  # value of pixels without an opinion
        self.background = 0
        self.looked_up = False  # whether values are colours of palettes

    def add(self, source: LabelPage, image: Array, name: str) -> None:
        """Add a page of the label called `name`. Raises UserError for values that can be neither classes nor ids."""
        values, threshold = source.values, self.reading.labels == "threshold"
        if values.ndim == 3 and values.shape[2] != 3:
            raise UserError(f"found {values.shape[2]} channels; expected grey or RGB")
        coloured = has_colour(values)
        if coloured and threshold:
            values = luminance(values)
        elif coloured and values.dtype != np.uint8:
            raise UserError(f"found colours of type {values.dtype}; expected 8 bits")
        elif coloured:
            values = _packed(values)
        elif values.ndim == 3:
            values = np.ascontiguousarray(values[:, :, 0])
        if values.dtype.kind == "f":
            if (unknown := np.isnan(values)).any() and not unknown.all():
                values = np.where(unknown, np.nanmin(values), values)
                source = replace(source, ignored=unknown if source.ignored is None else unknown | source.ignored)
                self.notes += [NAN_IGNORED] if NAN_IGNORED not in self.notes else []
            if not np.isfinite(values).all() or not (threshold or (values == np.floor(values)).all()):
                raise UserError(
                    "found values that are not whole numbers; expected one whole number per class (or --labels "
                    "threshold, for two classes with soft edges)"
                )
            values = values if threshold else values.astype(np.int64)
        extremes = {float(values.min()): 1, float(values.max()): 1}
        counts: Counter[Any] = Counter(extremes) if threshold else count(values)
        if source.ignored is not None and not threshold:
            counts -= count(values[source.ignored][:, np.newaxis])
        lossy = name.lower().endswith(LOSSY) and self.reading.labels in ("auto", "instances")
        if lossy and len(counts) > 2:
            advice = SOFT_ADVICE if coloured else SOFT_ADVICE + THRESHOLD
            raise UserError(f"found {len(counts)} different values in a lossy file: soft edges; {advice}")
        self.names |= source.names
        self.pages.append(Page(name, source, image, values, coloured and not threshold, counts))

    def decide(self) -> tuple[Meaning | None, list[str]]:
        """What the labels mean; or None, and a line for each thing wrong with them as a whole."""
        if self.reading.labels == "threshold":
            self._divide_by_threshold()
        problems = [*self._look_up_colours(), *self._leave_out_ignored()]
        total = self._total()
        coloured = any(page.coloured for page in self.pages)
        self.background = _background(total, coloured)
        if not total:
            problems.append(f"{LABELS}: found no pixel with an opinion")
        if problems:
            return None, problems
        verdict = self._verdict(total, coloured)
        instances = self.reading.labels == "instances" or verdict.kind == "ids"
        self._note(verdict, total)
        if verdict.kind == "unclear":
            return None, [f"{LABELS}: found {verdict.seen}; expected --labels instances for ids, or --labels classes"]
        if instances:
            return self._objects(total)
        if verdict.kind == "soft":
            advice = SOFT_ADVICE if coloured else SOFT_ADVICE + THRESHOLD
            return None, [f"{LABELS}: {verdict.seen}, in {self._where(verdict.values)}; {advice}"]
        if problems := self._not_classes(total, coloured):
            return None, problems
        stored = sorted(total, key=lambda value: (value != self.background, value) if coloured else (False, value))
        values = stored if not coloured else [0, 255] if len(stored) == 2 else range(len(stored))
        return self._meaning(tuple(values), tuple(stored), coloured)

    def drawn(self, meaning: Meaning) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32] | None]]:
        """Class indices (H, W) of each page, IGNORED where there is no opinion; and, of instances, ids (H, W)."""
        while self.pages:
            page = self.pages.pop(0)  # labels as stored and as drawn need not be in memory together
            if meaning.instances:
                objects = self._ids(page, meaning).astype(np.int32)
                label = (objects > 0).astype(np.uint8)
            else:
                objects, label = None, _positions(page.values, meaning.stored)
            for without in (page.source.ignored, None if self.ignored is None else page.values == self.ignored):
                if without is not None:
                    label[without] = IGNORED
                    if objects is not None:
                        objects[without] = 0
            yield label, objects

    def _divide_by_threshold(self) -> None:
        low, high = (extreme(value for page in self.pages for value in page.counts) for extreme in (min, max))
        for page in self.pages:
            page.values = np.where(page.values > (low + high) / 2, np.uint8(255), np.uint8(0))
            page.counts = count(page.values)
        self.notes.append(f"values up to {(low + high) / 2:g} are background, higher ones foreground")

    def _look_up_colours(self) -> list[str]:
        """Replace values by colours, 0xRRGGBB, where only these mean the same in all labels: some are RGB, or the
        palettes differ. Returns a line for each label that has no such colours."""
        tables = [{value: _colour(page, value) for value in page.counts} for page in self.pages]
        coloured = any(page.coloured for page in self.pages)
        meanings: dict[int, set[int]] = {}
        for page, table in zip(self.pages, tables, strict=True):
            for value in table if page.source.colours else ():
                meanings.setdefault(value, set()).add(table[value])
        differ = any(len(colours) > 1 for colours in meanings.values())
        if differ and not coloured:
            self.notes.append("palettes differ from label to label: their colours are the classes, not the indices")
        if not (coloured or differ or self._greys_fit_better(tables)):
            return []
        self.looked_up, problems = True, []
        for page, table in zip(self.pages, tables, strict=True):
            if page.coloured:
                continue
            if coloured and not page.source.colours and (others := sorted(page.counts.keys() - {0, 255})):
                problems.append(f"{page.name}: found grey values {_listed(others)}, while other labels are in colour")
            page.values = _replaced(page.values, table)
            page.counts = sum((Counter({table[v]: n}) for v, n in page.counts.items()), Counter())
            page.coloured = True
        if all(colour % GREY == 0 for page in self.pages for colour in page.counts):
            for page in self.pages:
                page.values, page.coloured = (page.values & 255).astype(np.uint8), False
                page.counts = Counter({value & 255: n for value, n in page.counts.items()})
        return problems

    def _greys_fit_better(self, tables: list[dict[int, int]]) -> bool:
        """Whether palettes of greys, black first, give fewer values together with labels without a palette: 0 and 1
        in a GIF are the 0 and 255 of a PNG."""
        for table in tables:
            greys = [table[value] for value in sorted(table)]
            if any(grey % GREY for grey in greys) or greys != sorted(greys):
                return False
        return len({grey for table in tables for grey in table.values()}) < len(self._total())

    def _leave_out_ignored(self) -> list[str]:
        """Find the value that is ignored, by the flag or as index 255 of a palette; returns what is wrong with it."""
        total, text = self._total(), self.reading.ignore_value
        coloured = any(page.coloured for page in self.pages)
        palette = any(page.source.colours for page in self.pages) and not self.looked_up
        if text is not None:
            if text.startswith("#") != coloured:
                expected = "a colour, #rrggbb, as the labels have" if coloured else "a number, since labels are grey"
                return [f"--ignore-value {text}: expected {expected}"]
            self.ignored = int(text.removeprefix("#"), 16 if coloured else 10)
            if self.ignored not in total:
                self.notes.append(f"--ignore-value {text}: no pixel has this value")
        elif palette and not coloured and VOID in total and self._is_void(total):
            self.ignored = VOID
            self.notes.append("index 255 of the palette is ignored, as in PASCAL VOC")
        for page in self.pages:
            if self.ignored is not None:
                page.counts.pop(self.ignored, None)
        return []

    def _is_void(self, total: Counter[int]) -> bool:
        """Whether index 255 of a palette is no class or id like the others."""
        return len(total) > 2 and VOID - 1 not in total and not self._two_conventions(total)

    def _verdict(self, total: Counter[int], coloured: bool) -> Verdict:
        if self.reading.labels != "auto" or len(total) < 3 or any(p.source.objects is not None for p in self.pages):
            return Verdict("classes")
        ignored = {page.name for page in self.pages if self.ignored is not None or page.source.ignored is not None}
        looks = [
            look(page.values, page.image, self.background, list(page.counts) if page.name in ignored else None)
            for page in self.pages
        ]
        sizes = {page.source.values.dtype.itemsize for page in self.pages if page.source.values.dtype.kind in "iuf"}
        return recognise(looks, self.background, wide=min(sizes, default=1) > 1, coloured=coloured)

    def _note(self, verdict: Verdict, total: Counter[int]) -> None:
        if verdict.kind == "ids":
            background = f", and {self._text(self.background)} for the background" if self.background else ""
            self.notes.append(f"values are taken for object ids{background}: {verdict.seen} (if not: --labels classes)")
        elif verdict.kind == "classes" and verdict.seen:
            self.notes.append(verdict.seen)
        others = sorted(total.keys() - {VOID})
        small = len(others) > 1 and others[0] in (0, 1) and others[-1] - others[0] == len(others) - 1
        if verdict.kind == "classes" and VOID in total and small:
            self.notes.append("--ignore-value 255 if 255 means 'no opinion' rather than a class")
        if verdict.kind == "classes" and self.background != WHITE and WHITE in total and len(total) > 2:
            self.notes.append("--ignore-value '#ffffff' if white means 'no opinion' rather than a class")

    def _objects(self, total: Counter[int]) -> tuple[Meaning | None, list[str]]:
        """Meaning of ids, of objects that the sources know, or of pieces of a foreground."""
        if len(total) == 1 and all(page.source.objects is None for page in self.pages):
            return None, [f"{LABELS}: found only the value {next(iter(total))} in all labels; expected object ids"]
        if len(total) == 2 and any(page.source.objects is None for page in self.pages):
            self.notes.append(f"each connected piece of the value {self._text(max(total))} is taken for an object")
        return self._meaning((0, 255), tuple(sorted(total)), coloured=False, instances=True)

    def _ids(self, page: Page, meaning: Meaning) -> Array:
        """Object ids (H, W) of a page, 1 to n in the order of its values; 0 for the background."""
        if page.source.objects is not None:
            return page.source.objects
        if len(meaning.stored) == 2:
            foreground = next(value for value in reversed(meaning.stored) if value != self.background)
            pieces: Array = connected_components(page.values == foreground, connectivity=1)
            return pieces
        distinct, ids = np.unique(page.values, return_inverse=True)
        left_out = (distinct == self.background) | (distinct == self.ignored)
        return np.where(left_out, 0, np.cumsum(~left_out))[ids.reshape(page.values.shape)]

    def _not_classes(self, total: Counter[int], coloured: bool) -> list[str]:
        """One line for each reason why the values cannot be classes."""
        low, high, n = min(total), max(total), len(total)
        if n == 1:
            found = f"{LABELS}: found only the value {self._text(low)} in all labels"
            return [f"{found}; expected at least two values, grey or colours (transparency is not read)"]
        if n > MAX_CLASSES:
            return [
                f"{LABELS}: found {n} different values in all; expected 2 to {MAX_CLASSES}, or object ids (--labels "
                f"instances). JPEG, WebP and smooth resizing add values between classes: {SOFT_ADVICE}{THRESHOLD}"
            ]
        if n > 2 and not coloured and not 0 <= low <= high <= 255:
            where = self._where([low if low < 0 else high])
            return [
                f"{where}: class values are {low} to {high} in all; expected 0 to 255, since masks have 8 bits (for "
                f"object ids: --labels instances; for pixels without an opinion: --ignore-value {min(low, 0) or high})"
            ]
        if self._two_conventions(total):  # for one foreground
            return [
                f"{LABELS}: the foreground is 1 in {self._where([1])} and 255 in {self._where([255])}; expected one "
                "value per class: save all as 0 and 255, or as 0, 1 and 2 if these are three classes"
            ]
        return []

    def _two_conventions(self, total: Counter[int]) -> bool:
        return total.keys() == {0, 1, 255} and not any({1, 255} <= page.counts.keys() for page in self.pages)

    def _meaning(
        self, values: tuple[int, ...], stored: tuple[int, ...], coloured: bool, instances: bool = False
    ) -> tuple[Meaning | None, list[str]]:
        """Meaning with the names and colours of the classes."""
        if (given := self.reading.class_names) and len(given) != len(values):
            of = "background and objects" if instances else f"the values {', '.join(map(self._text, stored))}"
            return None, [f"--class-names: found {len(given)} names; expected {len(values)}, for {of}"]
        if instances:
            return Meaning(values, stored, given or ("background", "object"), (), instances=True), []
        palette = {v: c for page in reversed(self.pages) for v, c in page.source.colours.items()}
        colours = [_rgb(v) if coloured else palette.get(v) for v in stored]
        first, *_, last = colours
        if len(stored) == 2 and not coloured and first and last and sum(last) < sum(first):
            self.notes.append(f"{stored[1]} is the foreground, as stored, though the palette shows it darker")
        by_value = {v: self.names.get(c or (v, v, v)) for v, c in zip(stored, colours, strict=True)} | self.names
        usual = {stored[0]: "background", stored[-1]: "foreground"} if len(stored) == 2 else {}
        usual |= {self.background: "background"} if self.names or coloured else {}
        names = given or tuple(by_value.get(v) or usual.get(v) or self._text(v) for v in stored)
        telling = None not in colours and any(len(set(colour)) > 1 for colour in colours if colour)
        return Meaning(values, stored, names, tuple(c for c in colours if c) if telling else ()), []

    def _total(self) -> Counter[int]:
        """Number of pixels of each value in all labels."""
        return sum((page.counts for page in self.pages), Counter())

    def _text(self, value: int) -> str:
        return f"#{value:06x}" if any(page.coloured for page in self.pages) else str(value)

    def _where(self, values: Iterable[int]) -> str:
        """Names of the first labels that hold one of the values."""
        names = [page.name for page in self.pages if not page.counts.keys().isdisjoint(values)]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def count(values: Array) -> Counter[int]:
    """Number of pixels of each value (H, W)."""
    found: Counter[int] = Counter()
    rows = max(1, STRIP // values.shape[1])
    for strip in (values[top : top + rows] for top in range(0, len(values), rows)):
        if strip.dtype == np.uint8:  # many times as fast; exact up to 2**24 pixels
            n = cv2.calcHist([np.ascontiguousarray(strip)], [0], None, [256], [0, 256]).ravel().astype(int)
            distinct, n = np.flatnonzero(n), n[n > 0]
        else:
            distinct, n = np.unique(strip, return_counts=True)
        found.update(dict(zip(distinct.tolist(), n.tolist(), strict=True)))
    return found


def _positions(values: Array, stored: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Positions (H, W) of values in `stored`; any for others."""
    if values.dtype == np.uint8:
        table = np.zeros(256, np.uint8)
        for position, value in enumerate(stored):
            if 0 <= value <= 255:  # others are in labels of more bits
                table[value] = position
        return cv2.LUT(values, table).astype(np.uint8, copy=False)
    order = np.argsort(stored).astype(np.uint8)
    found = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        strip = np.searchsorted(stored, values[top : top + rows], sorter=order)
        found[top : top + rows] = order[strip.clip(max=len(stored) - 1)]
    return found


def _packed(colours: Array) -> npt.NDArray[np.uint32]:
    """Colours (..., 3) uint8 as 0xRRGGBB."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    packed: npt.NDArray[np.uint32] = red << 16 | green << 8 | blue
    return packed


def _rgb(packed: int) -> Colour:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _colour(page: Page, value: int) -> int:
    """Colour 0xRRGGBB of a value: itself, as the palette has it, or grey."""
    if page.coloured:
        return value
    red, green, blue = page.source.colours.get(value, 3 * (value & 255,))
    return red << 16 | green << 8 | blue


def _replaced(values: Array, table: dict[int, int]) -> npt.NDArray[np.uint32]:
    """Values (H, W) looked up in a table; those that are not in it become 0."""
    known = np.array(sorted(table))
    positions = np.searchsorted(known, values).clip(max=len(known) - 1)
    looked_up = np.array([table[v] for v in known.tolist()], np.uint32)[positions]
    return np.where(known[positions] == values, looked_up, np.uint32(0))


def _background(total: Counter[int], coloured: bool) -> int:
    """Value of the background: -1 or the like, 0 or black; of colours white; else the most common value, if it covers
    much, or 0, which is in no label then."""
    if not total or (0 in total and min(total) == 0):
        return 0
    if min(total) < 0:
        return min(total)
    if coloured and WHITE in total:
        return WHITE
    value, n = total.most_common(1)[0]
    return value if coloured or n > 0.3 * total.total() else 0


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
