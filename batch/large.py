"""Large images on a Ray cluster: this program reads and cuts them, actors on all nodes compute their pieces, and it
stitches what they answer. Objects are found in the whole, as in any other image: no seam cuts one.

(Ray's own restarts would wait for ever for the core of a node that is lost.)
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from batch.engine import Stop
from batch.local import Local
from batch.settings import SegmentSettings
from unet.errors import UserError
from unet.imaging import Array
from unet.prediction import Output, Piece, Prediction, Wanted
from unet.predictor import TILE

AHEAD = 2
"""Pieces that an actor has got, so that it never waits for the next one."""
WINDOW = 8
"""Pieces in memory for each actor: those that are computed already wait for the ones before them."""
LOSSES = 3
"""Pieces for each actor that may be lost one after another, until the run is given up."""


class Large(Local):
    """A model here, on a CPU, that leaves the network's part to actors."""

    def __init__(self, settings: SegmentSettings, new: Callable[[], Any], n_actors: int, kind: str) -> None:
        """`new`: starts an `Actor` of `batch.cluster`; `kind`: GPU or CPU, what each gets. Raises UserError."""
        super().__init__(settings.model_copy(update={"device": "cpu"}), Stop())
        self.predictor.tile = TILE["cuda" if kind == "GPU" else "elsewhere"]
        self._new, self._n_actors = new, n_actors
        self._actors: list[Any] = []
        self._free: deque[Any] = deque()  # those that are up, for each piece that they may get
        self._busy: dict[ray.ObjectRef[Any], tuple[Any, int | None]] = {}  # actor, and number of its piece
        for _ in range(n_actors):
            self._add()

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def predict(self, page: Array, wanted: Wanted) -> tuple[Array, str]:
        """As that of `Local`. Raises UserError."""
        prediction = self.start(page, wanted)
        while not self._compute_all(prediction):
            pass
        return prediction.result, prediction.doubt

    def _add(self) -> None:
        """Starts an actor. It gets pieces when it is up: on a full cluster that may be late."""
        actor = self._new()
        self._actors.append(actor)
        self._busy |= {actor.ready.remote(): (actor, None) for _ in range(AHEAD)}

    def _compute_all(self, prediction: Prediction) -> bool:
        """Has all pieces computed, and stitches them in their order, as sums of views depend on it. False if memory was
        too small: smaller pieces are to be computed."""
        pieces: dict[int, Piece] = {}  # by their numbers, until they are stitched
        outputs: dict[int, Output] = {}
        unsent: deque[int] = deque()
        n_cut = n_stitched = n_lost = 0
        self._busy = {answer: (actor, None) for answer, (actor, _) in self._busy.items()}  # of what was before
        while pieces or not prediction.finished:
            self._stop.sleep()
            while self._free and (unsent or (not prediction.finished and len(pieces) < WINDOW * self._n_actors)):
                if not unsent:
                    pieces[n_cut] = prediction.next()
                    unsent.append(n_cut)
                    n_cut += 1
                next_one, actor = unsent.popleft(), self._free.popleft()
                self._busy[actor.answer.remote(pieces[next_one].input)] = actor, next_one
            for answer in ray.wait(list(self._busy), timeout=1)[0]:
                actor, number = self._busy.pop(answer)
                try:
                    output = ray.get(answer)
                except RayTaskError as error:
                    self._free.append(actor)
                    if number is None:
                        continue
                    self.restart(prediction, max(pieces[number].input.pixels.shape), error.cause)
                    return False
                except RayError as error:  # its process or its node has died
                    n_lost += 1
                    if n_lost > LOSSES * self._n_actors:
                        raise UserError(f"the processes on the cluster die again and again: {error}") from error
                    unsent.extend([] if number is None else [number])
                    self._replace(actor)
                    continue
                if isinstance(output, UserError):
                    raise output
                self._free.append(actor)
                if number is not None:
                    outputs[number], n_lost = output, 0
            while n_stitched in outputs:
                prediction.stitch(pieces.pop(n_stitched), outputs.pop(n_stitched))
                n_stitched += 1
        return True

    def _replace(self, actor: Any) -> None:
        """Another actor for one that has died."""
        self._free = deque(each for each in self._free if each is not actor)
        if actor in self._actors:
            self._actors.remove(actor)
            self._add()
