"""The `--out` folder: which files answers get, and how each is there whole or not at all.

An answer lies under a name of its own in the hidden folder until the manifest has its line, then it is renamed. So
however the program ends: an answer that is there is whole, and is the one that the manifest describes; and one that the
manifest does not know is somebody else's.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from batch import table
from batch.inputs import Item, unchanged
from batch.manifest import STATE, TABLE, Manifest, Record
from batch.settings import SegmentSettings
from unet.files import locked, write_temporary
from unet.listing import natural_order, plural
from unet.outputs import SUFFIXES, Answer, file_name


@dataclass(frozen=True)
class Staging:
    """The folder where answers wait until `OutFolder.commit`, also as actors on other nodes see it."""

    root: Path  # absolute
    new: Path  # folder of answers that have no line in the manifest yet

    def stage(self, item: Item, kind: str, answer: Answer) -> tuple[str, Path]:
        """The name of an answer, and the file where it waits for `commit`. Raises OSError."""
        name = _name(item.stem, kind, SUFFIXES[answer.media_type])
        return name, write_temporary(self.root / name, answer.body, self.new)

    @contextmanager
    def tried(self, item: Item) -> Iterator[int]:
        """Count tries of an image that a killed process leaves unfinished: 1 in the first block, 2 if a process has
        died in one, ... Raises OSError."""
        note = self.new / sha256(os.fsencode(item.stem)).hexdigest()
        with note.open("ab", buffering=0) as file:
            file.write(b".")
            n = file.tell()
        try:
            yield n
        finally:
            note.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what a killed program, or actor, has left."""
        self.new.mkdir(exist_ok=True)  # the same folder as before: other nodes may still know that one
        for path in self.new.iterdir():
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class OutFolder(Staging):
    kinds: Sequence[str]  # of answers
    options: Mapping[str, Any]  # an image that was answered with others is not done
    overwrite: bool
    manifest: Manifest

    @classmethod
    @contextmanager
    def claim(cls, settings: SegmentSettings) -> Iterator[Self]:
        """Creates the folder, locks it against other processes, and removes what a killed one has left. Raises
        UserError."""
        root = settings.out.resolve()
        options = {"threshold": settings.threshold, "tta": settings.tta, "class": settings.class_}
        with locked(root, f"{STATE}/lock", "unet-segment"):
            folder = cls(root, root / STATE / "new", settings.output, options, settings.overwrite, Manifest(root))
            folder.clear()
            yield folder
            folder.clear()

    def conflicts(self, items: Iterable[Item]) -> dict[Item, str]:
        """Items whose answers would replace those of another one, with the reason; unless they may `overwrite`, also
        answers of an image that is no longer asked for but there, and files that are no answers."""
        found: dict[Item, str] = {}
        records = self.manifest.records
        owners = {item.stem: item.path for item in items if self._answered(item)}
        for item in items:
            record = records.get(item.stem)
            if (owner := owners.setdefault(item.stem, item.path)) != item.path:
                found[item] = f"its answers would have the names of those of {owner}"
            elif record and not self.overwrite and not self._answered(item) and Path(record.path).exists():
                found[item] = f"its answers would replace those of {record.path} (--overwrite)"
            elif not self.overwrite and (path := self._foreign(item)):
                found[item] = f"its answer would replace {path} (--overwrite)"
        return found

    def _answered(self, item: Item) -> bool:
        """Whether the newest answers of that name are this image's, as it is or was."""
        record = self.manifest.records.get(item.stem)
        return record is not None and record.path == str(item.path)

    def _foreign(self, item: Item) -> Path | None:
        """A file in the place of an answer that no run has written."""
        record, endings = self.manifest.records.get(item.stem), SUFFIXES.values()
        new = [kind for kind in self.kinds if not record or kind not in record.outputs]
        names = (TABLE if k == "table" else _name(item.stem, k, ending) for k in new for ending in endings)
        paths = (self.root / name for name in names)
        return next((path for path in paths if path not in self.manifest.answers and path.exists()), None)

    def missing(self, item: Item, model: str) -> list[str]:
        """Kinds of answers by this model that are not there yet."""
        record = self._current(item, model)
        outputs = record.outputs if record else {}
        return [kind for kind in self.kinds if kind not in outputs or not (self.root / outputs[kind]).exists()]

    def _current(self, item: Item, model: str) -> Record | None:
        """The record of the image as it is, if this model answered with these options."""
        record = self.manifest.records.get(item.stem)
        if not record or (record.model, record.options) != (model, self.options):
            return None
        same = (record.path, record.size, record.mtime_ns) == (str(item.path), item.size, item.mtime_ns)
        return record if same else None

    def commit(self, item: Item, staged: Mapping[str, tuple[str, Path]], model: str, warning: str) -> None:
        """Puts answers in their places, by kind. Raises OSError."""
        before, current = self.manifest.records.get(item.stem), self._current(item, model)
        outputs = {kind: name for kind, (name, _) in staged.items()}
        for kind, name in outputs.items():
            for old in {name, before.outputs.get(kind, name) if before else name}:
                (self.root / old).unlink(missing_ok=True)
        outputs = {**(current.outputs if current else {}), **outputs}
        found = item.stem, str(item.path), item.size, item.mtime_ns
        self.manifest.append(Record(*found, model, self.options, outputs, warning))
        for name, temporary in staged.values():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(self.root / name)

    def join_tables(self, model: str, keep_gone: bool) -> str:
        """Writes the table of all images that were answered by this model with these options, in natural order of their
        names, and that have not changed since; or are gone, with `keep_gone`. Returns what it holds and leaves out."""
        parts: list[Path] = []
        n_other = n_gone = 0
        for record in sorted(self.manifest.records.values(), key=lambda each: natural_order(each.stem)):
            if "table" not in record.outputs or not (part := self.root / record.outputs["table"]).exists():
                continue
            if (record.model, record.options) != (model, self.options):
                n_other += 1
            elif unchanged(record.path, record.size, record.mtime_ns) or (keep_gone and not Path(record.path).exists()):
                parts.append(part)
            else:
                n_gone += 1
        n_rows: list[int] = []
        if parts:
            n_rows = table.join(parts, self.new / TABLE)
            (self.new / TABLE).replace(self.root / TABLE)
        else:
            (self.root / TABLE).unlink(missing_ok=True)
        said = f"{plural(sum(n_rows), 'object')} of {plural(len(parts), 'image')} in {TABLE}"
        said += f" ({n_rows.count(0)} without any)" if 0 in n_rows else ""
        said += f", without {n_other} of another model or other options" if n_other else ""
        return said + (f", without {n_gone} that are gone or have changed" if n_gone else "")


def _name(stem: str, kind: str, ending: str) -> str:
    """Path of an answer in the folder; tables wait in the hidden folder to be joined."""
    return f"{STATE}/tables/{stem}.csv" if kind == "table" else file_name(stem, kind, ending)
