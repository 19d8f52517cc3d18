"""Paths of the command line -> image files, each with the name that its answers get."""

import glob
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from batch.manifest import answers_in
from unet.errors import UserError
from unet.imaging import SUFFIXES
from unet.listing import endings, is_image, listing, natural_order, plural, some, stem

LOOK_S = 1.0
"""Seconds between two looks at what is watched; more where a look takes long."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image file as it is at one time: when it has changed, it is another item."""

    path: Path  # absolute
    name: str  # from the folder that was given on, with slashes
    size: int
    mtime_ns: int

    @property
    def stem(self) -> str:
        """The name without its ending: names of answers begin with it."""
        folder, slash, _ = self.name.rpartition("/")
        return f"{folder}{slash}{stem(self.path)}"


@dataclass
class Look:
    """What the paths of a command line lead to at one time."""

    out: Path  # absolute
    answers: Set[Path]  # of this run and of former ones, in `out`
    items: dict[Path, Item] = field(default_factory=dict)
    no_images: list[Path] = field(default_factory=list)
    n_answers: int = 0  # answers, and whatever else is in `out`
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # folders below those that were given
    unmatched: list[str] = field(default_factory=list)  # patterns

    @classmethod
    def at(cls, paths: Sequence[str], out: Path, answers: Set[Path]) -> "Look":
        look = cls(out, answers)
        for path in paths:
            look._add(path)
        return look

    def _add(self, text: str) -> None:
        """Adds a file, the files of a folder, or those that a pattern matches."""
        path = Path(text)
        if path.is_dir():
            self._add_folder(path.resolve(), path.resolve())
        elif path.exists():
            folder = path.parent.resolve()
            self._add_files([folder / path.name], folder, folder)
        elif not glob.has_magic(text):
            self.problems.append(f"{text}: no such file or folder")
        else:
            fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
            root, pattern = Path(*fixed).resolve(), str(Path(*path.parts[len(fixed) :]))
            found = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207  (Path.glob's has hidden files)
            matches = sorted(found, key=natural_order)
            for match in (root / each for each in matches):
                if match.is_dir():
                    self._add_folder(match, root)
                else:
                    self._add_files([match], match.parent, root)
            if not matches:
                self.unmatched.append(f"{text}: matches no file")

    def _add_folder(self, folder: Path, root: Path) -> None:
        waiting, seen = [folder], set[str]()
        while waiting:
            folder = waiting.pop()
            if (place := os.path.realpath(folder)) in seen:  # a link to a folder above
                continue
            seen.add(place)
            try:
                files, folders = listing(folder)
            except FileNotFoundError:  # it has just been removed
                continue
            except OSError as error:
                of = self.problems if folder == root else self.unreadable
                of.append(f"{folder}: cannot be read: {error.strerror}")
                continue
            self._add_files(files, folder, root)
            waiting += reversed(folders)

    def _add_files(self, files: Sequence[Path], folder: Path, root: Path) -> None:
        """Adds files of a folder, which is the root or below it."""
        above = [folder, *folder.parents][: len(folder.parts) - len(root.parts) + 1]
        in_out = self.out in above[:-1]
        answers = [self.answers, *(answers_in(each) for each in above if each != self.out)]
        prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        for path in files:
            if in_out or any(path in each for each in answers):
                self.n_answers += 1
            elif not is_image(path):
                self.no_images.append(path)
            elif path not in self.items:
                try:
                    found = path.stat()
                except OSError:  # a broken link, or gone
                    continue
                if stat.S_ISREG(found.st_mode):
                    self.items[path] = Item(path, f"{prefix}{path.name}", found.st_size, found.st_mtime_ns)

    def check(self, paths: Sequence[str], watched: bool) -> None:
        """Raises UserError about every path that leads nowhere, or if there is no image; images may come where it is
        `watched`."""
        if problems := self.problems + ([] if watched else self.unmatched):
            raise UserError("; ".join(problems))
        if not self.items and not watched:
            raise UserError(f"{some(paths)}: expected images ({', '.join(SUFFIXES)}), found none{self.skipped}")

    @property
    def skipped(self) -> str:
        """What was found but is not segmented; empty if there is nothing."""
        said = [f"{endings(self.no_images)}: no images"] if self.no_images else []
        said += [f"{plural(self.n_answers, 'answer')} or others in --out"] if self.n_answers else []
        return f" (skipped: {'; '.join(said)})" if said else ""


def unchanged(path: str | Path, size: int, mtime_ns: int) -> bool:
    """Whether a file is there, as it was."""
    try:
        now = Path(path).stat()
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns) == (size, mtime_ns)


def arriving(look: Callable[[], Look], sleep: Callable[[float], object]) -> Iterator[list[Item]]:
    """Again and again, items that have not changed since the look before, and are not empty."""
    before: Set[Item] = set()
    while True:
        started = time.monotonic()
        now = look().items.values()
        pause = max(LOOK_S, 4 * (time.monotonic() - started))
        yield [item for item in now if item in before and item.size]
        before = set(now)
        sleep(pause)
