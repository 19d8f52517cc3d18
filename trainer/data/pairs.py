"""Pairs of files: `Training_Images/NAME.ext` with `Training_Labels/NAME.ext`. The two endings may differ."""

import re
from pathlib import Path
from typing import NamedTuple

from unet.imaging import SUFFIXES

IMAGES, LABELS = "Training_Images", "Training_Labels"


class Pair(NamedTuple):
    name: str
    image: Path
    label: Path


def find_pairs(folder: Path) -> tuple[list[Pair], list[str]]:
    """Pairs in natural order of their names (2 before 10), and one line for each thing wrong with the folder."""
    if missing := [name for name in (IMAGES, LABELS) if not (folder / name).is_dir()]:
        return [], [f"{name}/: no such folder; expected {IMAGES}/ with {LABELS}/" for name in missing]
    problems: list[str] = []
    images, labels = (_files_by_stem(folder / name, problems) for name in (IMAGES, LABELS))
    if not (problems or images or labels):
        problems.append(f"no images: expected {IMAGES}/NAME.png with {LABELS}/NAME.png ({', '.join(SUFFIXES)})")
    for stem in sorted(images.keys() - labels.keys()):
        problems.append(f"{IMAGES}/{images[stem].name}: has no label {_expected(folder / LABELS, stem)}")
    for stem in sorted(labels.keys() - images.keys()):
        problems.append(f"{LABELS}/{labels[stem].name}: has no image {_expected(folder / IMAGES, stem)}")
    return [Pair(stem, images[stem], labels[stem]) for stem in images if stem in labels], problems


def _files_by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Image files by name without ending, in natural order. Adds subfolders and names used twice to `problems`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=_natural_order):
        name = f"{folder.name}/{path.name}"
        if path.name.startswith("."):
            continue
        if path.is_dir():
            problems.append(f"{name}/: found a folder; expected images, since folders in it are not searched")
        elif path.suffix.lower() in SUFFIXES and found.setdefault(path.stem, path) != path:
            problems.append(f"{name}: has the same name as {found[path.stem].name}; expected one file per name")
    return found


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Sort key: text and numbers in turn, so that 2 comes before 10; then the file name, for 1 and 01."""
    parts = re.split(r"(\d+)", path.stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _expected(folder: Path, stem: str) -> str:
    """Pattern of a missing file, and the file of that name in an unsupported format, if there is one."""
    others = sorted(path.name for path in folder.iterdir() if path.stem == stem)
    return f"{folder.name}/{stem}.*" + (f"; {others[0]} is not one of {', '.join(SUFFIXES)}" if others else "")
