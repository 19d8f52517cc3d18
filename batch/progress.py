"""What a run says on stderr: lines, and how far it has come."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from tqdm import tqdm

from unet.listing import natural_order

T = TypeVar("T")


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
    """The outcomes, while a bar tells how many have come; in a log it is drawn every ten seconds."""
    yield from tqdm(outcomes, total=total, unit=" images", mininterval=0.1 if sys.stderr.isatty() else 10)
