"""Arrays of a data set that may be larger than the memory: beyond a limit they are in temporary files, of which the
system keeps in memory what is in use (`mmap`)."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LIMIT = 4 * 2**30  # bytes kept in memory
SEGMENT = 2**30  # bytes of a temporary file: one for each array would be more files than a process may open
ALIGNMENT = 64


class Store:
    """`image = store.keep(image)`. The files are in `folder`, without a name, and end with the process."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self.kept = 0  # bytes
        self._segment: Array = np.empty(0, np.uint8)
        self._used = 0

    def keep(self, array: Array) -> Array:
        """The array, or an equal one in a file. Raises OSError if the disk is full."""
        self.kept += array.nbytes
        if self.kept <= self.limit or not array.nbytes:
            return array
        if self._used + array.nbytes > len(self._segment):
            self.folder.mkdir(parents=True, exist_ok=True)
            size = max(SEGMENT, array.nbytes)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.truncate(size)
                self._segment, self._used = np.memmap(file, np.uint8, "r+", shape=(size,)), 0
        part = np.asarray(self._segment)[self._used : self._used + array.nbytes]
        copy: Array = part.view(array.dtype).reshape(array.shape)
        copy[...] = array
        self._used += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return copy
