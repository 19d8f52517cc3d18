"""GET /training: how far the training is that writes the served file."""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

router = APIRouter()

SILENCE_S = 90.0
"""Age of a `progress.json` whose writer is dead: it is written every two seconds, in long steps, too. (A network file
system may show a file as it was a minute ago.)"""
POINTS = 300
MOST_PROGRESS, MOST_HISTORY = 2**20, 2**23  # bytes that are read of each file: a folder may hold anything

NUMBERS = TypeAdapter(dict[str, FiniteFloat])


class Epoch(BaseModel):
    epoch: int
    seconds: FiniteFloat | None = Field(default=None, description="that it took, with its validation")
    loss: FiniteFloat
    score: FiniteFloat | None = Field(
        default=None, description="mean Dice of the classes; null where nothing was validated"
    )


class Training(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)  # all are there in each answer

    state: Literal["none", "running", "finished", "stopped"] = Field(
        description="none: no training has written beside the model file; stopped: it has not come to its end, and the "
        "same command continues it"
    )
    epoch: int | None = Field(
        default=None, description="the one that it is in, from 1, or that was the last; null: not known"
    )
    epochs: int | None = Field(default=None, description="of how many; null if the time decides when it ends")
    done: float | None = Field(default=None, description="share of the whole run, 0..1")
    seconds: float | None = Field(default=None, description="that it has taken")
    seconds_left: float | None = Field(
        default=None, description="null if it is not running, and in its first two steps"
    )
    finishes_at: datetime | None = Field(default=None, description="null likewise")
    score: float | None = Field(
        default=None, description="the newest: mean Dice of the classes on validation images, 0..1"
    )
    scores: dict[str, float] = Field(default={}, description="the Dice of each class, by its name")
    history: list[Epoch] = Field(
        default=[], description=f"the epochs so far; of more than {POINTS} as many, evenly chosen"
    )


class Progress(BaseModel):
    """`progress.json`, as the trainer writes it."""

    state: Literal["running", "finished", "stopped"]
    epoch: int | None = Field(ge=0, le=2**31)
    epochs: int | None = Field(ge=0, le=2**31)
    done: float = Field(ge=0, le=1)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    seconds_left: float | None = Field(ge=0, allow_inf_nan=False)
    classes: dict[str, str]
    written: AwareDatetime


@router.head("/training", include_in_schema=False)
@router.get("/training")
async def training(request: Request) -> Training:
    """How far the training is that writes the model file, from the files beside it."""
    return await asyncio.to_thread(read_training, request.app.state.settings.model.parent)


def read_training(folder: Path) -> Training:
    """The training that has written `progress.json` and `history.csv` in a folder; "none" if they cannot be read."""
    try:
        progress = Progress.model_validate_json(read(folder / "progress.json", MOST_PROGRESS))
    except (OSError, ValidationError):
        return Training(state="none")
    found = Training(**progress.model_dump(include={"state", "epoch", "epochs", "done", "seconds"}))
    age = (datetime.now(UTC) - progress.written).total_seconds()
    if progress.state == "running" and abs(age) > SILENCE_S:
        found.state = "stopped"
    elif progress.state == "running" and progress.seconds_left is not None:
        found.seconds_left = max(progress.seconds_left - max(age, 0.0), 0.0)
        with suppress(OverflowError):  # after the year 9999
            found.finishes_at = progress.written + timedelta(seconds=progress.seconds_left)
    if progress.epoch is not None:  # otherwise history.csv is not of this training
        with suppress(OSError):
            add_history(found, progress.classes, read(folder / "history.csv", MOST_HISTORY))
    return found


def read(path: Path, most: int) -> bytes:
    """A file; of a larger one than `most` bytes the first line and the end. Raises OSError."""
    if not path.is_file():  # a pipe would wait for its writer
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= most:
            return file.read(most)
        head = file.readline(most)
        file.seek(size - most)
        file.readline(most)
        return head + file.read(most)


def add_history(training: Training, classes: dict[str, str], data: bytes) -> None:
    """Adds what `history.csv` says; rows that are damaged are left out."""
    *lines, _ = data.decode(errors="replace").split("\n")  # without a half one at the end
    columns, rows = lines[0].split(",") if lines else [], lines[1:]

    def parse(row: str) -> dict[str, str]:
        return {name: text for name, text in zip(columns, row.split(","), strict=False) if text}

    n = len(rows)
    for i in range(n) if n <= POINTS else [i * (n - 1) // (POINTS - 1) for i in range(POINTS)]:
        with suppress(ValidationError):
            training.history.append(Epoch.model_validate(parse(rows[i])))
    newest = next((row for row in map(parse, reversed(rows)) if "score" in row), {})
    shared = Counter(classes.values())
    labels = {f"dice_{value}": name if shared[name] == 1 else f"{name} ({value})" for value, name in classes.items()}
    with suppress(ValidationError):
        scored = NUMBERS.validate_python({name: newest[name] for name in ("score", *labels) if name in newest})
        training.score = scored.pop("score", None)
        training.scores = {labels[name]: dice for name, dice in scored.items()}
