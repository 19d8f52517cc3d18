"""Files that are written: atomically, and in folders that one process at a time writes to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unet.errors import UserError


def replace_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes a file such that a reader sees the old one or the new one, whole, even after a crash (write, fsync,
    rename).

    Raises OSError that names the file; the old file is then unchanged.
    """
    temporary = write_temporary(path, content, path.parent)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_temporary(path: Path, content: bytes | memoryview, folder: Path) -> Path:
    """The content of a file, whole and synced to disk, in a new file of the folder that is to be renamed to `path`.
    Raises OSError that names `path`; nothing is left then."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:99]}.", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would lock out a service that runs as another user
                os.fsync(file.fileno())
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
    return Path(name)


def remove_leftovers(path: Path) -> None:
    """Deletes temporary files of a killed `replace_atomically(path, ...)`. No other process may be writing the file."""
    for leftover in path.parent.glob(f".{path.name[:99]}.*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str, program: str) -> Iterator[None]:
    """Creates a folder with a file in it that locks it against other processes of the program. Raises UserError. The
    kernel releases the lock however this process ends. A file system without locks is used without one."""
    import fcntl  # here, as Windows has none

    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("a")
    except OSError as error:
        message = f"{folder}: cannot be written: {error.strerror}; expected a folder for the results"
        raise UserError(message) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{folder}: another {program} is writing there: wait for it, or choose another --out"
            raise UserError(message) from None
        except OSError:
            pass  # no locks on this file system
        yield
