"""The `--out` folder of a run: its files, and how an interrupted run is found again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.learner import Learner
from unet import checkpoint as checkpoints
from unet import files
from unet.checkpoint import CheckpointError
from unet.device import out_of_memory
from unet.errors import UserError

BEST, LAST, HISTORY, REPORT = "best_model.pth", "last.pth", "history.csv", "report.json"
CURVES, SAMPLES, PROGRESS = "training.png", "samples.png", "progress.json"
LOCK = ".lock"

WAYS_OUT = "put the file back, choose another --out, or start over with --force"


@dataclass
class Progress:
    """How far a run has come; all of it is in `last.pth`."""

    epoch: int = 0
    elapsed: float = 0.0  # seconds of training, those of interrupted processes included
    finished: bool = False
    joined: bool = False  # images to validate on are learned from by now: there are no more scores
    scored: dict[str, float] = field(default_factory=dict)  # the last row of `history` with a score
    objects: dict[str, float] = field(default_factory=dict)  # scores of objects in that epoch
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, row: dict[str, float]) -> None:
        """Append the row of an epoch."""
        self.epoch = int(row["epoch"])
        self.elapsed += row["seconds"]
        self.history.append(row)
        if "score" in row:
            self.scored = row


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Create the folder, lock it against other trainers, and remove what a killed one has left. Raises UserError."""
    with files.locked(path, LOCK, "unet-train"):
        for name in (BEST, LAST, HISTORY, REPORT, CURVES, SAMPLES, PROGRESS):
            files.remove_leftovers(path / name)
        yield


class RunFolder:
    """The files of one run. Runs with the same `identity` (recipe, seed, split, data) are the same run."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self.best, self.last, self.report = path / BEST, path / LAST, path / REPORT

    def restore(self, learner: Learner) -> Progress:
        """Load the state of the same run into the learner, as far as it came; a new run starts at epoch 0. A folder in
        which another run has not finished an epoch counts as empty. Raises UserError."""
        if not self.last.exists():
            if self.best.exists():
                raise UserError(
                    f"{self.best} is there, but no {LAST} to go on from: choose another --out, or overwrite it with "
                    "--force"
                )
            return Progress()
        try:
            state, _ = checkpoints.read(self.last)
            progress = Progress(**state["progress"])
            if not (progress.epoch or self.best.exists()):
                return Progress()
            changed = _differences(state["run"], self.identity) or self._check_best(progress)
            if not changed:
                learner.load_state_dict(state["learner"])
                return progress
        except CheckpointError as error:
            raise UserError(f"{error}. Nothing was changed: {WAYS_OUT}") from error
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error):  # not the file's fault
                raise
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.last} is damaged, or of another program or version ({reason}). Nothing was changed: {WAYS_OUT}"
            ) from error
        raise UserError(
            f"{self.path} holds another run ({'; '.join(changed)}): "
            "choose another --out, repeat the run as it was, or start over with --force"
        )

    def _check_best(self, progress: Progress) -> list[str]:
        """Compare `best_model.pth` with the progress, as a finished run leaves this file; differences, if any. A run
        killed between the two files has written a later model than `progress` knows, and will write it again."""
        if not progress.epoch or checkpoints.load(self.best).training.get("epoch", 0) >= progress.epoch:
            return []
        return [f"{BEST} is not the one that it has written"]

    def begin(self, progress: Progress, learner: Learner) -> None:
        """Write `last.pth`, to find out now whether the folder can be written; remove what would tell that this run is
        finished, or of a run before it."""
        self.save_last(progress, learner)
        for name in (REPORT,) if progress.epoch else (REPORT, HISTORY, PROGRESS):
            (self.path / name).unlink(missing_ok=True)

    def save_last(self, progress: Progress, learner: Learner) -> None:
        """Write `last.pth`: everything needed to resume."""
        state = {"run": self.identity, "progress": asdict(progress), "learner": learner.state_dict()}
        files.replace_atomically(self.last, checkpoints.to_bytes(state))

    def save_history(self, rows: list[dict[str, float]]) -> None:
        """Write `history.csv`, with the columns of the first row; an epoch without a score leaves them empty."""
        lines = [list(rows[0]), *([f"{row[name]:.6g}" if name in row else "" for name in rows[0]] for row in rows)]
        self.save_file(HISTORY, "".join(f"{','.join(line)}\n" for line in lines).encode())

    def save_file(self, name: str, content: bytes) -> None:
        files.replace_atomically(self.path / name, content)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], most_files: int = 5) -> list[str]:
    """`name: was a, is b` for each setting that differs; for the data, which files."""
    old, new = flat(then), flat(now)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    settings = [f"{name}: was {old.get(name)}, is {new.get(name)}" for name in changed if not name.startswith("data.")]
    files = [
        f"{name[5:]} {'is gone' if name not in new else 'is new' if name not in old else 'has changed'}"
        for name in changed
        if name.startswith("data.")
    ]
    if len(files) > most_files:
        files[most_files:] = [f"and {len(files) - most_files} more files"]
    return files + settings


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under names like `recipe.augmentation.flip`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
