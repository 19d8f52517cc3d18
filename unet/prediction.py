"""One image on its way through the network: cut into pieces, and its answer stitched from theirs.

Shapes: K channels of the network's output, H and W height and width in pixels; h and w those of a piece, the network's
margin included; h' and w' without it.
"""

from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from unet.network import STRIDE
from unet.pixels import FloatArray, Prepared, mirror, resize
from unet.tiles import CONTEXT, Span, cut

if TYPE_CHECKING:
    from unet.predictor import Predictor

Array = npt.NDArray[Any]
Wanted = Literal["probabilities", "mask", "probability", "objects"]
"""probabilities: float32 as from a call; mask: uint8 as from `mask`; probability: uint8, 255 for certain, of the
foreground, of a named class, or of each pixel's likeliest class; objects: the probabilities that tell objects apart,
float32, (2, H, W) of objects and of their insides for a model that has learned borders, else as from a call."""
View = tuple[int, int]
"""Number of quarter turns, and the step along a row: 1, or -1 for an image flipped left to right."""

SURE, UNSURE = 0.75, 0.1
"""A pixel is sure of its class above this probability; a model of an image below this share of sure pixels is not."""
DOUBT = "the model is hardly sure of any pixel (was it trained long enough, and on such images?)"
VIEWS: tuple[View, ...] = tuple((turns, flip) for turns in range(4) for flip in (1, -1))
"""Test-time augmentation: the eight rotations and flips of an image; the first two if it has an up."""


class Question(NamedTuple):
    """What is asked of the probabilities of a pixel."""

    wanted: Wanted
    threshold: float
    class_index: int | None = None  # position of the class whose probability is wanted


class Input(NamedTuple):
    """What passes through the network at once; it can be sent to another process."""

    pixels: Array  # (h, w, C)
    offset: FloatArray  # (C,), see `Prepared`
    scale: FloatArray  # (C,)
    question: Question


class Output(NamedTuple):
    """The answer to the question of an input."""

    answer: Array  # (K or 1, h', w')
    sure: float  # share of pixels that the model is sure of, looked at in every fourth row and column


class Piece(NamedTuple):
    """A tile of one view of one image."""

    prediction: "Prediction"
    view: View
    rows: Span
    columns: Span
    input: Input


class Prediction:
    """One image on its way through the network: its pieces, in order, and the answer stitched from them.

    The answer does not depend on the pieces of other images that are computed in the same batch.
    """

    def __init__(self, predictor: "Predictor", prepared: Prepared, question: Question, tta: bool = False) -> None:
        self.predictor = predictor
        self.prepared = prepared
        self._question = question
        self._views = predictor.views if tta else VIEWS[:1]
        # views are averaged, and resized, before the threshold: a mean of masks is no mask
        combined = question.wanted != "objects" and (tta or prepared.resized_from is not None)
        self._per_piece = question._replace(wanted="probabilities") if combined else question
        self._mirrored: tuple[View, Array] | None = None
        self._answer: Array | None = None
        self.restart()

    def restart(self) -> None:
        """Starts again, in tiles of the predictor's `tile`, which may be smaller now."""
        self._answer = None
        self._sure: list[float] = []  # share of sure pixels of each piece
        self._places = deque(place for view in self._views for place in self._tiles(view))

    @property
    def finished(self) -> bool:
        """True when no piece is left to be taken with `next`."""
        return not self._places

    @property
    def next_shape(self) -> tuple[int, int]:
        """Size (h, w) of the next piece."""
        _, rows, columns = self._places[0]
        margin = 2 * self.predictor.network.margin
        return rows.stop - rows.start + margin, columns.stop - columns.start + margin

    def next(self) -> Piece:
        """The next piece, cut from its view of the mirrored image."""
        height, width = self.next_shape
        view, rows, columns = self._places.popleft()
        if self._mirrored is None or self._mirrored[0] != view:
            turned = _turned(self.prepared.pixels, view)
            self._mirrored = view, mirror(turned, *self._input_size(*turned.shape[:2]), self.predictor.network.margin)
        pixels = self._mirrored[1][rows.start : rows.start + height, columns.start : columns.start + width]
        normal = self.prepared.offset, self.prepared.scale
        return Piece(self, view, rows, columns, Input(np.ascontiguousarray(pixels), *normal, self._per_piece))

    @property
    def doubt(self) -> str:
        """What is to be said of an image of which the model is not sure; else empty, and before `compute`."""
        return DOUBT if self._sure and np.mean(self._sure) < UNSURE else ""

    def stitch(self, piece: Piece, output: Output) -> None:
        """Writes the kept part of a piece's answer into the answer for the image."""
        self._sure.append(output.sure)
        answer = output.answer
        if self._answer is None:  # not before the first piece: many predictions may be waiting for theirs
            self._answer = np.zeros((len(answer), *self.prepared.pixels.shape[:2]), answer.dtype)
        rows, columns = piece.rows, piece.columns
        turned = _turned(self._answer.transpose(1, 2, 0), piece.view)  # (H', W', K), a view
        target = turned[rows.keep_start : rows.keep_stop, columns.keep_start : columns.keep_stop]
        kept = answer.transpose(1, 2, 0)[rows.kept, columns.kept][: target.shape[0], : target.shape[1]]
        if len(self._views) == 1:
            target[:] = kept
        else:
            target += kept / np.float32(len(self._views))

    @property
    def result(self) -> Array:
        """The answer for the image, when every piece has been computed: (H, W), or (K, H, W) probabilities."""
        answer = self._answer
        assert answer is not None
        if self.prepared.resized_from:
            answer = resize(answer.transpose(1, 2, 0), *self.prepared.resized_from).transpose(2, 0, 1)
        if self._per_piece != self._question:
            answer = self.predictor.decide(torch.from_numpy(answer), self._question).numpy()
        if self.prepared.missing is not None:
            answer[:, self.prepared.missing] = self.predictor.background(self._question)
        return answer[0] if len(answer) == 1 else answer

    def _tiles(self, view: View) -> list[tuple[View, Span, Span]]:
        height, width = self.prepared.pixels.shape[:2]
        height, width = self._input_size(*((width, height) if view[0] % 2 else (height, width)))
        margin, size, context = self.predictor.network.margin, self.predictor.tile, CONTEXT
        if margin:  # unpadded convolutions: every pixel that comes out has seen its whole context
            size, context = (size - 2 * margin - 4) // STRIDE * STRIDE + 4, 0
        across = cut(width, size, context)
        return [(view, rows, columns) for rows in cut(height, size, context) for columns in across]

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to mirror a view to, before the margin, so that the network's output covers it."""
        if self.predictor.network.margin:  # unpadded convolutions: the output has sides of 16 k + 4
            return height + (4 - height) % STRIDE, width + (4 - width) % STRIDE
        return self.predictor.preprocessing.padded_size(height, width)


def _turned(image: Array, view: View) -> Array:
    """View of an image (H, W, C); it shares memory."""
    turns, flip = view
    return np.rot90(image, turns)[:, ::flip]
