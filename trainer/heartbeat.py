"""`progress.json` in --out: how far a run is, for those who wait for its model."""

import json
import math
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from trainer import world
from trainer.folder import PROGRESS
from trainer.pace import Position
from unet import files

EVERY_S = 2.0


class Heartbeat:
    """Writes the file in a thread, every two seconds: a step may take half a minute, and a validation longer, but a
    file that stays the same for longer than some beats is that of a run that was killed. A run that leaves the block
    before `finish` has stopped. Only the first process of a run writes, and nothing before `start`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PROGRESS
        # runs of --curve before the one that starts next, and seconds of each that follows it; inf: not known
        self.runs: tuple[int, list[float]] = 0, []
        self._classes: dict[int, str] = {}
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # it would hide the error that has ended the run
            self._end("stopped")

    def start(self, position: Position, classes: dict[int, str]) -> None:
        """Begin to write, or go on with the next run of --curve. `classes`: names by value. Raises OSError."""
        self._present, self._classes = self.runs, classes
        self.at(position)
        if world.is_first():
            self.beat()
            if not self._thread:
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()

    def at(self, position: Position) -> None:
        """The run has come to this position, which the next beat writes."""
        self._seen = position, time.monotonic(), self._present

    def beat(self) -> None:
        """Write now: the files of an epoch are there. Raises OSError."""
        self._write("running")

    def finish(self, position: Position) -> None:
        """The model is complete, or the next run of --curve follows. Raises OSError."""
        self.at(position)
        _, later = self._present
        if not later:
            self._end("finished")

    def _end(self, state: Literal["finished", "stopped"]) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
            self._thread = None
            self._write(state)

    def _beat(self) -> None:
        while not self._over.wait(EVERY_S):
            with suppress(OSError):  # no reason to stop in an epoch: its own files fail as well, if it lasts
                self.beat()

    def _write(self, state: Literal["running", "finished", "stopped"]) -> None:
        with self._writing:
            position, then, (earlier, later) = self._seen
            age = time.monotonic() - then
            left = max(position.left - age, 0.0) + sum(later)
            content: dict[str, Any] = {
                "state": state,
                # history.csv beside this file is that of the last run
                "epoch": None if later else position.epoch,
                "epochs": None if later else position.epochs,
                "done": (earlier + position.done) / (earlier + 1 + len(later)),
                "seconds": position.seconds + age,
                "seconds_left": left if state == "running" and math.isfinite(left) else None,
                "classes": self._classes,
                "written": datetime.now(UTC).isoformat(timespec="milliseconds"),
            }
            files.replace_atomically(self.path, (json.dumps(content, indent=2) + "\n").encode())
