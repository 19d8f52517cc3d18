"""The model that is served, and hot reload of its file."""

import asyncio
import errno
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unet import Predictor
from unet import checkpoint as checkpoints
from unet.checkpoint import CheckpointError, NotReadError
from unet.device import DeviceChoice, PrecisionChoice
from unet.pixels import InputRange
from unet.prediction import Prediction

log = logging.getLogger(__name__)

FIRST_S = 1.0  # between looks for the first model, if no other shall be loaded after it
RETRY_S = 30.0  # before a file that could not be read is tried again: there may have been no memory for it

Status = Literal["ok", "waiting", "failed"]


@dataclass(frozen=True)
class Model:
    """A model file, loaded and warmed up."""

    id: str
    predictor: Predictor
    loaded_at: datetime
    training: dict[str, Any]
    n_images: int | None


@dataclass
class ModelSlot:
    """Holds the current model; loads a new file beside it, then swaps them. An unusable file changes nothing."""

    path: Path
    device: DeviceChoice
    precision: PrecisionChoice
    input_range: InputRange = "0-1"
    warm_up: Callable[[Prediction], object] = field(kw_only=True)
    on_outcome: Callable[[str], object] = field(default=lambda outcome: None, kw_only=True)
    current: Model | None = None
    refusal: str | None = None  # why the newest file is not served; None if it is, or if there is none
    _seen: tuple[int, ...] = ()
    _again: float = math.inf  # time of `time.monotonic` at which the same file is tried again

    @property
    def status(self) -> Status:
        if self.current:
            return "ok"
        return "failed" if self.refusal else "waiting"

    async def watch(self, interval: float) -> None:
        """Checks the file every `interval` seconds, until cancelled; if that is 0, until there is a model."""
        while interval or not self.current:
            await asyncio.to_thread(self.refresh)
            await asyncio.sleep(interval or FIRST_S)

    def refresh(self) -> None:
        """Loads the file if it has changed since the last look, or is due for another try. Blocks; never raises."""
        seen = _identity(self.path)
        if seen == self._seen and time.monotonic() < self._again:
            return
        self._seen, self._again = seen, math.inf
        if seen == (errno.ENOENT,) and not self.current:  # it is still being trained
            self.refusal = None
            log.info("no model yet: waiting for %s", self.path)
            return
        try:
            if self.path.is_fifo():
                raise CheckpointError(f"{self.path}: expected a file, found a pipe")
            checkpoint = checkpoints.load(self.path, self.input_range)
            predictor = Predictor.from_checkpoint(checkpoint, self.device, self.precision)
            # the first prediction is slow at any size: no client should wait for it
            self.warm_up(predictor.start(np.zeros((128, 128, predictor.n_channels), np.uint8), "mask"))
        except Exception as error:  # no file may stop the service, whatever is wrong with it
            self._refuse(error)
        else:
            self.current = Model(
                checkpoint.id, predictor, datetime.now(UTC), dict(checkpoint.training), checkpoint.n_images
            )
            self.refusal = None
            self.on_outcome("loaded")
            log.info("serving model %s from %s", self.current.id, self.path)

    def _refuse(self, error: Exception) -> None:
        """Keeps the old model. After an error that may pass, the same file is tried again after a while, but counted
        and logged once."""
        known = isinstance(error, CheckpointError)
        again = not known or isinstance(error, NotReadError)
        # clients must not see paths
        reason = str(error).replace(str(self.path), self.path.name) if known else f"{self.path.name} cannot be loaded"
        if again:
            self._again = time.monotonic() + RETRY_S
        if reason != self.refusal:
            log.warning("not served: %s", reason, exc_info=None if known else error)
        if reason != self.refusal or not again:
            self.on_outcome("refused")
        self.refusal = reason


def _identity(path: Path) -> tuple[int, ...]:
    """Changes when another file is put at the same path; the error number if there is no file."""
    try:
        stat = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns  # ctime: made readable meanwhile
