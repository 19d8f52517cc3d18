"""Large images on a Ray cluster: this program reads and cuts them, actors on all nodes compute their pieces, and it
stitches what they answer. Objects are found in the whole, as in any other image: no seam cuts one."""

from collections import deque
from typing import Any

import ray
from ray.exceptions import RayTaskError

from batch.engine import Stop
from batch.local import Local
from batch.settings import SegmentSettings
from unet.errors import UserError
from unet.imaging import Array
from unet.prediction import Piece, Wanted
from unet.predictor import TILE

AHEAD = 2
"""Pieces that an actor has got, so that it never waits for the next one."""
WINDOW = 8
"""Pieces in memory for each actor: those that are computed already wait for the ones before them."""


class Large(Local):
    """A model here, on a CPU, that leaves the network's part to `actors`, each an `Actor` of `batch.cluster`."""

    def __init__(self, settings: SegmentSettings, actors: list[Any], kind: str) -> None:
        """`kind`: GPU or CPU, what each actor has. Raises UserError."""
        super().__init__(settings.model_copy(update={"device": "cpu"}), Stop())
        self.predictor.tile = TILE["cuda" if kind == "GPU" else "elsewhere"]
        self._actors = actors

    def predict(self, page: Array, wanted: Wanted) -> tuple[Array, str]:
        """As that of `Local`. Pieces are stitched in their order, as sums of views depend on it. Raises UserError."""
        prediction = self.start(page, wanted)
        free: deque[Any] = deque()
        busy: dict[ray.ObjectRef[Any], Any] = {}  # with the actor of each
        pieces: deque[tuple[Piece, ray.ObjectRef[Any]]] = deque()
        while pieces or not prediction.finished:
            self._stop.sleep()
            if not pieces:
                free = deque(self._actors * AHEAD)
            while free and not prediction.finished and len(pieces) < WINDOW * len(self._actors):
                piece, actor = prediction.next(), free.popleft()
                answer = actor.answer.remote(piece.input)
                pieces.append((piece, answer))
                busy[answer] = actor
            (done,), _ = ray.wait(list(busy))
            free.append(busy.pop(done))
            while pieces and pieces[0][1] not in busy:
                piece, answer = pieces.popleft()
                try:
                    output = ray.get(answer)
                except RayTaskError as error:
                    self.restart(prediction, max(piece.input.pixels.shape), error.cause)
                    pieces.clear()
                    busy.clear()
                    break
                if isinstance(output, UserError):
                    raise output
                prediction.stitch(piece, output)
        return prediction.result, prediction.doubt
