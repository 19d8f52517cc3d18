"""What a run says on stderr: lines, and how far it has come."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from tqdm import tqdm

from unet.listing import natural_order, plural

T = TypeVar("T")

EVERY_S = 10.0
"""Seconds between two lines where there is no terminal for a bar."""


def say(text: str) -> None:
    """A line, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def list_some(title: str, reasons: Mapping[str, str], most: int | None = 10) -> None:
    """A line for each file, by name; for so many at most."""
    for name in sorted(reasons, key=natural_order)[:most]:
        say(f"{title:10}{name}: {reasons[name]}")
    if most is not None and len(reasons) > most:
        say(f"{title:10}and {len(reasons) - most} more")


def shown(outcomes: Iterable[T], total: int) -> Iterator[T]:
    """The outcomes, while a bar or lines tell how many have come."""
    if sys.stderr.isatty():
        yield from tqdm(outcomes, total=total, unit=" images")
        return
    started = told = time.monotonic()
    for n, outcome in enumerate(outcomes, 1):
        yield outcome
        if (now := time.monotonic()) - told > EVERY_S:
            told = now
            say(f"{n} of {plural(total, 'image')}, {n / (now - started):.3g} per second")
