"""What is done: a line of JSON in a hidden file of `--out` for each image that was answered."""

import functools
import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE = ".unet-segment"
MANIFEST = f"{STATE}/manifest.jsonl"
TABLE = "objects.csv"


@dataclass(frozen=True, slots=True)
class Record:
    """An image that was answered: which, by what, and the files of its answers."""

    stem: str  # see Item
    path: str  # absolute
    size: int
    mtime_ns: int
    model: str
    options: Mapping[str, Any]
    outputs: Mapping[str, str]  # by kind, from `--out` on
    warning: str = ""


class Manifest:
    """The newest record of each stem; appended to, never rewritten, so that no end of the program damages it."""

    def __init__(self, out: Path) -> None:
        """Reads it, if it is there. Raises OSError."""
        self._out, self._path = out, out / MANIFEST
        self.records: dict[str, Record] = {}
        self.answers: set[Path] = set()  # all that were ever written
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        for line in lines:
            try:
                self._add(Record(**json.loads(line)))
            except (ValueError, TypeError):  # empty, or torn by the end of the program
                continue
        self._torn = bool(lines[-1])

    def append(self, record: Record) -> None:
        """Raises OSError."""
        with self._path.open("a") as file:
            file.write("\n" * self._torn + json.dumps(asdict(record)) + "\n")
        self._torn = False
        self._add(record)

    def _add(self, record: Record) -> None:
        self.records[record.stem] = record
        self.answers.update(self._out / (TABLE if kind == "table" else name) for kind, name in record.outputs.items())


def answers_in(folder: Path) -> Set[Path]:
    """Answers that a run has written to this folder and its subfolders."""
    path = folder / MANIFEST
    return _answers(folder, path.stat().st_size) if path.exists() else frozenset()


@functools.lru_cache(maxsize=8)
def _answers(folder: Path, _n_bytes: int) -> Set[Path]:
    return Manifest(folder).answers
