"""Files of a data folder and its subfolders."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unet.listing import is_image, listing

JSON = (".json", ".geojson")


@dataclass(frozen=True)
class Tree:
    """A folder and the files in it and in its subfolders."""

    root: Path
    folders: dict[Path, list[Path]]  # the root and its subfolders, with their files in natural order
    deeper: list[Path]  # folders in subfolders, which are not searched

    @classmethod
    def of(cls, root: Path) -> "Tree":
        """Raises OSError."""
        files, subfolders = listing(root)
        folders, deeper = {root: files}, []
        for folder in subfolders:
            folders[folder], below = listing(folder)
            deeper += below
        return cls(root, folders, deeper)

    def name(self, path: Path) -> str:
        """Path from the root on, with slashes."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def folder(self, name: str) -> Path | None:
        """The subfolder of that name, whatever its case."""
        return next((path for path in self.folders if path.name.lower() == name.lower() and path != self.root), None)


def images_of(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if is_image(path)]
