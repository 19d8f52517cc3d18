"""The `--out` folder of a run: what is written there, and how an interrupted run is found again."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainer.fit import Learner, Progress
from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint, CheckpointError

BEST, LAST, HISTORY, REPORT = "best_model.pth", "last.pth", "history.csv", "report.json"


class FolderError(ValueError):
    """The folder holds something that this run must not overwrite, or cannot be written."""


class RunFolder:
    """`run` is what makes two runs the same: recipe, seed, split, data. Only the same run goes on in a folder."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.run = dict(run)
        self.best, self.last = path / BEST, path / LAST

    def restore(self, learner: Learner) -> Progress:
        """Fills the learner as it was where the same run stopped; a new run begins at epoch 0. Raises FolderError."""
        if not self.last.exists():
            if self.best.exists():
                raise FolderError(
                    f"{self.best} is there, {LAST} to go on from is not: choose another --out, or replace it by --force"
                )
            return Progress()
        try:
            state, _ = checkpoints.read(self.last)
            changed = _differences(state["run"], self.run)
            if not changed:
                learner.load_state_dict(state["learner"])
                return Progress(**state["progress"])
        except (CheckpointError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise FolderError(
                f"{self.last} is damaged ({error}): choose another --out, or start over with --force"
            ) from error
        raise FolderError(
            f"{self.path} holds another run ({'; '.join(changed)}): "
            "choose another --out, repeat the run as it was, or start over with --force"
        )

    def save_best(self, checkpoint: Checkpoint) -> None:
        checkpoints.save(checkpoint, self.best)

    def save_last(self, progress: Progress, learner: Learner) -> None:
        """`last.pth`: all that is needed to go on; and `history.csv`, which repeats part of it for people."""
        state = {"run": self.run, "progress": asdict(progress), "learner": learner.state_dict()}
        checkpoints.replace_atomically(self.last, lambda file: torch.save(state, file))
        if progress.history:
            self._write(HISTORY, _csv(progress.history))

    def save_report(self, report: Mapping[str, Any]) -> None:
        self._write(REPORT, json.dumps(report, indent=2) + "\n")

    def save_picture(self, name: str, png: bytes) -> None:
        checkpoints.replace_atomically(self.path / name, lambda file: file.write(png))

    def _write(self, name: str, text: str) -> None:
        checkpoints.replace_atomically(self.path / name, lambda file: file.write(text.encode()))


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    return text.getvalue()


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: was a, is b` for each leaf that differs."""
    found = []
    for name in sorted(then.keys() | now.keys()):
        a, b = then.get(name), now.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: was {a}, is {b}")
    return found
