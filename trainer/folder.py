"""The `--out` folder of a run: what is written there, and how an interrupted run is found again."""

import csv
import fcntl
import io
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from trainer.fit import Learner, Progress
from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint, CheckpointError
from unet.device import out_of_memory

BEST, LAST, HISTORY, REPORT = "best_model.pth", "last.pth", "history.csv", "report.json"
CURVES, SAMPLES = "training.png", "samples.png"
LOCK = ".lock"

WAYS_OUT = "put the file back, choose another --out, or start over with --force"


class FolderError(ValueError):
    """The folder holds something that this run must not overwrite, or cannot be written."""


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Makes the folder and keeps other trainers out of it. Raises FolderError if it is taken or cannot be written.

    The kernel lets go of the lock however this process ends. Where the file system has no locks, there is none.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path / LOCK)
    except OSError as error:
        raise FolderError(f"{path}: cannot be written: {error.strerror}; expected a folder for the results") from error
    with lock:
        with suppress(OSError):  # a full disk is better told of a file that matters
            lock.truncate(0)
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        for name in (BEST, LAST, HISTORY, REPORT, CURVES, SAMPLES):
            checkpoints.remove_leftovers(path / name)
        try:
            yield
        finally:
            (path / LOCK).unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    """The file, locked. In it is who holds it. Raises FolderError if that is another process."""
    while True:
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                raise FolderError(
                    f"{path.parent}: another unet-train is writing there ({lock.read()}): wait for it, or choose "
                    "another --out"
                ) from None
        except OSError:
            pass  # this file system has no locks
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
        lock.close()  # its holder has removed it meanwhile


class RunFolder:
    """`run` is what makes two runs the same: recipe, seed, split, data. Only the same run goes on in a folder."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.run = dict(run)
        self.best, self.last, self.report = path / BEST, path / LAST, path / REPORT

    def restore(self, learner: Learner) -> Progress:
        """Fills the learner as it was where the same run stopped; a new run begins at epoch 0, and so does any where
        another one had learned nothing yet. Raises FolderError."""
        if not self.last.exists():
            if self.best.exists():
                raise FolderError(
                    f"{self.best} is there, {LAST} to go on from is not: choose another --out, or replace it by --force"
                )
            return Progress()
        try:
            state, _ = checkpoints.read(self.last)
            if not (state["progress"]["epoch"] or self.best.exists()):
                return Progress()
            changed = _differences(state["run"], self.run)
            if not changed:
                learner.load_state_dict(state["learner"])
                progress = Progress(**state["progress"])
                if progress.best:  # if no later epoch is better, the run ends with this file
                    training = checkpoints.load(self.best).training
                    if training.get("epoch", 0) > progress.epoch:  # killed between the two files
                        progress.best = dict(training["best"])
                    elif training.get("epoch") != progress.best["epoch"] and not progress.finished:
                        changed = [f"{BEST} is not the one that it has written"]
                if not changed:
                    return progress
        except CheckpointError as error:
            raise FolderError(f"{error}. Nothing was changed: {WAYS_OUT}") from error
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error):  # nothing is wrong with the file
                raise
            reason = f"{type(error).__name__}: {error}"
            raise FolderError(
                f"{self.last} is damaged, or of another program or version ({reason}). Nothing was changed: {WAYS_OUT}"
            ) from error
        raise FolderError(
            f"{self.path} holds another run ({'; '.join(changed)}): "
            "choose another --out, repeat the run as it was, or start over with --force"
        )

    def save_best(self, checkpoint: Checkpoint) -> None:
        checkpoints.save(checkpoint, self.best)

    def save_last(self, progress: Progress, learner: Learner) -> None:
        """`last.pth`: all that is needed to go on."""
        state = {"run": self.run, "progress": asdict(progress), "learner": learner.state_dict()}
        checkpoints.replace_atomically(self.last, checkpoints.to_bytes(state))

    def save_history(self, rows: list[dict[str, float]]) -> None:
        self._write(HISTORY, _csv(rows))

    def save_report(self, report: Mapping[str, Any]) -> None:
        self._write(REPORT, json.dumps(report, indent=2) + "\n")

    def save_picture(self, name: str, png: bytes) -> None:
        checkpoints.replace_atomically(self.path / name, png)

    def _write(self, name: str, text: str) -> None:
        checkpoints.replace_atomically(self.path / name, text.encode())


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    return text.getvalue()


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: was a, is b` for each leaf that differs; of the data, which files."""
    found = []
    for name in sorted(then.keys() | now.keys()):
        a, b = then.get(name), now.get(name)
        if name == "data":
            found += _changed_files(then[name], now[name])
        elif isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: was {a}, is {b}")
    return found


def _changed_files(then: Mapping[str, str], now: Mapping[str, str], most: int = 5) -> list[str]:
    names = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    found = [
        f"{name} {'is gone' if name not in now else 'is new' if name not in then else 'has changed'}" for name in names
    ]
    return found if len(found) <= most else [*found[:most], f"and {len(found) - most} more files"]
