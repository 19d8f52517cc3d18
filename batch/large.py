"""Large images on a Ray cluster: this program reads and cuts them, actors on all nodes compute their pieces, and it
stitches what they answer. Objects are found in the whole, as in any other image: no seam cuts one.

(Ray's own restarts would wait for ever for the core of a node that is lost.)
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from batch.engine import Stop
from batch.local import Local
from batch.settings import SegmentSettings
from unet.errors import UserError
from unet.imaging import Array
from unet.prediction import Input, Output, Piece, Prediction, Wanted
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
        self._actors, self._most = Actors(new, n_actors), WINDOW * n_actors

    def close(self) -> None:
        self._actors.close()

    def predict(self, page: Array, wanted: Wanted) -> tuple[Array, str]:
        """As that of `Local`. Raises UserError."""
        prediction = self.start(page, wanted)
        while not prediction.finished:
            try:
                self._compute_all(prediction)
            except Exception as error:
                self.restart(prediction, self.predictor.tile, error)
        return prediction.result, prediction.doubt

    def _compute_all(self, prediction: Prediction) -> None:
        """Has all pieces computed, and stitches them in their order, as sums of views depend on it."""
        pieces: dict[int, Piece] = {}  # by their numbers, until they are stitched
        outputs: dict[int, Output] = {}
        unsent: deque[int] = deque()
        n_cut = n_stitched = 0
        self._actors.forget()
        while pieces or not prediction.finished:
            while self._actors.free and (unsent or (not prediction.finished and len(pieces) < self._most)):
                if not unsent:
                    pieces[n_cut] = prediction.next()
                    unsent.append(n_cut)
                    n_cut += 1
                number = unsent.popleft()
                self._actors.send(number, pieces[number].input)
            for number, output in self._actors.outputs():
                if output:
                    outputs[number] = output
                else:
                    unsent.append(number)
            while n_stitched in outputs:
                prediction.stitch(pieces.pop(n_stitched), outputs.pop(n_stitched))
                n_stitched += 1


class Actors:
    """Processes on the cluster that compute pieces. For one that dies, also with its node, another is started."""

    def __init__(self, new: Callable[[], Any], n: int) -> None:
        self.free: deque[Any] = deque()  # those that are up, once for each piece that they may get
        self._new, self._n_losses, self._most_losses = new, 0, LOSSES * n
        self._all: list[Any] = []
        self._busy: dict[ray.ObjectRef[Any], tuple[Any, int | None]] = {}  # with what, the number of a piece
        for _ in range(n):
            self._start()

    def close(self) -> None:
        for actor in self._all:
            ray.kill(actor)

    def forget(self) -> None:
        """Leaves out what is being computed: its outputs are not wanted any more."""
        self._busy = {answer: (actor, None) for answer, (actor, _) in self._busy.items()}

    def send(self, number: int, piece: Input) -> None:
        actor = self.free.popleft()
        self._busy[actor.answer.remote(piece)] = actor, number

    def outputs(self) -> Iterator[tuple[int, Output | None]]:
        """Outputs that come within a second, by the numbers of their pieces; None: lost, and to be sent again. Raises
        UserError, and what the network raised."""
        for answer in ray.wait(list(self._busy), timeout=1)[0]:
            actor, number = self._busy.pop(answer)
            output: Output | UserError | None = None
            try:
                output = ray.get(answer)
                self._n_losses = 0
                self.free.append(actor)
            except RayTaskError as error:
                self.free.append(actor)
                if number is not None:
                    raise error.cause from error
            except RayError as error:  # its process or its node has died
                self._replace(actor, error)
            if isinstance(output, UserError):
                raise output
            if number is not None:
                yield number, output

    def _replace(self, actor: Any, error: RayError) -> None:
        self._n_losses += 1
        if self._n_losses > self._most_losses:
            raise UserError(f"processes on the cluster die again and again: {error}") from error
        self.free = deque(each for each in self.free if each is not actor)
        if actor in self._all:  # not yet noticed
            self._all.remove(actor)
            self._start()

    def _start(self) -> None:
        """Starts an actor. It is free when it is up: on a full cluster that may be late."""
        actor = self._new()
        self._all.append(actor)
        self._busy |= {actor.ready.remote(): (actor, None) for _ in range(AHEAD)}
