"""Folders of images: which of their files count, in which order, and how messages name them."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from unet.imaging import SUFFIXES

_OF_SYSTEMS = {"@eadir", "__macosx", "thumbs.db", "desktop.ini"}  # by Synology, macOS, Windows


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, in natural order, without hidden ones and those that operating systems add."""
    files: list[Path] = []
    folders: list[Path] = []
    with os.scandir(folder) as entries:  # (`entry.is_dir()` raises for a link to itself)
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS:
                (folders if Path(entry.path).is_dir() else files).append(Path(entry.path))
    return sorted(files, key=_order), sorted(folders, key=_order)


def _order(path: Path) -> tuple[list[str | int], str]:
    return natural_order(path.stem), path.name  # the name for 1 and 01


def is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def composed(name: str) -> str:
    """The name with é as one letter (NFC): macOS stores it as two."""
    return unicodedata.normalize("NFC", name)


def stem(path: Path) -> str:
    """Name without ending, composed; a.ome.tif is a."""
    name = composed(path.stem)
    return name[:-4] if name.lower().endswith(".ome") else name


def natural_order(text: str) -> list[str | int]:
    """Sort key: text and numbers in turn, so that 2 comes before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def plural(number: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def endings(files: Iterable[Path]) -> str:
    """How many files there are of each ending: 5 .png, 1 .txt."""
    return ", ".join(f"{n} {ending or 'without ending'}" for ending, n in Counter(p.suffix for p in files).items())
