"""Image in, probabilities or mask out: the one way to use a network, in validation as in the service."""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint
from unet.device import DeviceChoice, Precision, PrecisionChoice, resolve_device, resolve_precision
from unet.forward import ForwardPass, Output
from unet.fused import fused
from unet.int8 import in_int8
from unet.network import STRIDE, UNet
from unet.pixels import FloatArray, InputRange, PixelError, Prepared, Preprocessing, mirror
from unet.replay import recorded
from unet.tiles import CONTEXT, Tile, cut

TILE = {"cpu": 896, "cuda": 2048}
"""Side of the largest piece that is computed at once, by kind of device: at base 64 about 1 GiB and 3 GiB."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
"""Of what goes into the network."""

VIEWS = tuple((turns, flip) for turns in range(4) for flip in (1, -1))
"""Test-time augmentation: quarter turns, then flipped or not."""


class Predictor:
    """A network with what belongs to it: preprocessing, classes, threshold, device and precision.

    >>> predictor = Predictor.load("best_model.pth")
    >>> mask = predictor.mask(image)  # (H, W), or (H, W, 3) RGB, uint8, uint16 or float in 0..1 -> (H, W) uint8

    Images with a side above `tile` pixels are cut, computed in pieces and put together again (see `unet.tiles`).
    """

    def __init__(
        self,
        network: UNet,
        preprocessing: Preprocessing,
        *,
        class_values: tuple[int, ...] = (0, 255),
        threshold: float = 0.5,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        tile: int | None = None,
    ) -> None:
        """The network's weights may change, but in place: a GPU's computations are recorded."""
        self.device = device or next(network.parameters()).device
        self.dtype = DTYPES[precision]
        self.network = network.to(self.device, self.dtype)
        self.preprocessing = preprocessing
        self.class_values = class_values
        self.threshold = threshold
        self.precision: Precision = precision
        self.tile = tile or TILE[self.device.type]
        # a binary mask has values of its own, whatever its labels have
        values = torch.tensor((0, 255) if self.binary else class_values, dtype=torch.uint8, device=self.device)
        self.forward = ForwardPass(self.network, self.dtype, values)
        self._passes: dict[Output, Callable[[Tensor, Tensor], Tensor]] = {
            output: recorded(partial(self.forward, output), self.device) for output in get_args(Output)
        }

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: DeviceChoice = "auto", precision: PrecisionChoice = "auto"
    ) -> Self:
        """Raises DeviceError when there is no such device, or CheckpointError for a network that int8 is not for."""
        where = resolve_device(device)
        resolved = resolve_precision(precision, where)
        network = checkpoint.build()
        if resolved == "int8":
            network = in_int8(network)
        else:
            network = fused(network.folded().to(where, memory_format=torch.channels_last), DTYPES[resolved])  # type: ignore[call-overload]
        return cls(
            network,
            checkpoint.preprocessing,
            class_values=checkpoint.class_values,
            threshold=checkpoint.threshold,
            device=where,
            precision=resolved,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: DeviceChoice = "auto",
        precision: PrecisionChoice = "auto",
        input_range: InputRange = "0-1",
    ) -> Self:
        """From a file of `unet-train`, or from a bare state_dict, for which `input_range` tells its pixel scale.

        Raises CheckpointError or DeviceError.
        """
        return cls.from_checkpoint(checkpoints.load(Path(path), input_range), device, precision)

    @property
    def n_channels(self) -> int:
        return self.network.config.n_channels

    @property
    def n_classes(self) -> int:
        """1 for a binary network, K for K exclusive classes."""
        return self.network.config.n_classes

    @property
    def binary(self) -> bool:
        return self.n_classes == 1

    def __call__(self, image: npt.NDArray[Any], *, tta: bool = False) -> FloatArray:
        """(H, W) or (H, W, C) image -> probabilities, float32 in 0..1: (H, W) of the foreground for a binary network,
        (K, H, W) that sum to one for K classes. Any size of at least 1 x 1. Raises PixelError.

        `tta`, test-time augmentation: the mean over the image's eight rotations and flips, in eight times the time.
        """
        return self.run(self.start(image, "probabilities", tta=tta))

    def mask(
        self, image: npt.NDArray[Any], threshold: float | None = None, *, tta: bool = False
    ) -> npt.NDArray[np.uint8]:
        """(H, W) uint8: 0 and 255 for a binary network, the class values (those of the labels) for K classes.

        `threshold` (0..1; default: the checkpoint's) is for binary networks only. Raises PixelError.
        """
        return self.run(self.start(image, "mask", threshold=threshold, tta=tta))

    def start(
        self,
        image: npt.NDArray[Any],
        output: Output = "probabilities",
        *,
        threshold: float | None = None,
        tta: bool = False,
    ) -> "Prediction":
        """A prediction that is computed piece by piece, by whoever calls `compute`. Raises PixelError.

        `output`: probabilities as from a call, the mask as from `mask`, or `probability`, (H, W) uint8 with 255 for
        certain: of the foreground, or of each pixel's likeliest class.
        """
        self._check_threshold(threshold)
        prepared = self.preprocessing(image, self.n_channels)
        return Prediction(self, prepared, output, threshold, VIEWS if tta else VIEWS[:1])

    def run(self, prediction: "Prediction") -> npt.NDArray[Any]:
        """All of a prediction, here and now."""
        while not prediction.finished:
            self.compute([prediction.next()])
        return prediction.result

    @torch.inference_mode()
    def compute(self, pieces: Sequence["Piece"]) -> None:
        """One forward pass for pieces of one shape, and each one's share to its prediction."""
        by_output: dict[Output, list[Piece]] = defaultdict(list)  # mostly one
        for piece in pieces:
            by_output[piece.prediction.piece_output].append(piece)
        finished = self._downloaded([self._passes[output](*self._uploaded(of)) for output, of in by_output.items()])
        for of, together in zip(by_output.values(), finished, strict=True):
            for piece, each in zip(of, together.numpy(), strict=True):
                piece.prediction.put(piece.place, each)

    def _uploaded(self, pieces: Sequence["Piece"]) -> list[Tensor]:
        """Pixels and numbers for a `ForwardPass`, on the device. A GPU, which is not waited for, fetches them itself:
        from pinned memory."""
        both = [piece.pixels for piece in pieces], [piece.prediction.numbers for piece in pieces]
        if self.device.type != "cuda":
            return [torch.from_numpy(np.stack(arrays)) for arrays in both]
        uploaded = []
        for arrays in both:
            dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype  # torch warns of arrays that are read-only
            pinned = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=True)
            np.stack(arrays, out=pinned.numpy())
            uploaded.append(pinned.to(self.device, non_blocking=True))
        return uploaded

    def _downloaded(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """A GPU is waited for once, and without what other threads have asked of it since."""
        if self.device.type != "cuda":
            return tensors
        here = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for to, tensor in zip(here, tensors, strict=True):
            to.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # leaves the core to others meanwhile
        done.record(torch.cuda.current_stream(self.device))
        done.synchronize()
        return here

    def to_classes(self, probabilities: FloatArray, threshold: float | None = None) -> npt.NDArray[np.intp]:
        """Probabilities as from a call -> (H, W) indices into `class_values`; for a binary network 0 background, 1
        foreground. Raises PixelError for a threshold that is none, or where there is none."""
        self._check_threshold(threshold)
        if self.binary:
            return (probabilities > (self.threshold if threshold is None else threshold)).astype(np.intp)
        return np.asarray(probabilities.argmax(axis=0))

    def _check_threshold(self, threshold: float | None) -> None:
        if threshold is not None and not self.binary:
            raise PixelError(f"a threshold is for binary models; this one has {self.n_classes} classes")
        if threshold is not None and not 0 <= threshold <= 1:
            raise PixelError(f"threshold: expected 0..1, found {threshold}")


class Piece(NamedTuple):
    """What goes through the network at once: a tile of one view of one image."""

    prediction: "Prediction"
    place: "Place"
    pixels: npt.NDArray[Any]
    """(h, w, C), the network's margin included."""


class Place(NamedTuple):
    """Where a piece comes from."""

    view: tuple[int, int]
    rows: Tile
    columns: Tile


class Prediction:
    """One image on its way through the network.

    `next` gives its pieces, one after the other; `Predictor.compute` is to have had the last one before the next is
    asked for. So the result does not depend on who else is being computed.
    """

    def __init__(
        self,
        predictor: Predictor,
        prepared: Prepared,
        output: Output,
        threshold: float | None,
        views: Sequence[tuple[int, int]],
    ) -> None:
        self.predictor = predictor
        self.prepared = prepared
        self._output: Output = output
        self._threshold = predictor.threshold if threshold is None else threshold
        numbers = np.hstack([prepared.offset, prepared.scale, self._threshold])
        self.numbers: FloatArray = numbers.astype(np.float32)[:, np.newaxis, np.newaxis]
        """(2 C + 1, 1, 1): what belongs to the pixels of every piece."""
        self._views = views
        self._places: deque[Place] = deque()
        self._view: tuple[int, int] | None = None
        self._seen: npt.NDArray[Any] = prepared.pixels
        """The current view, mirrored to a size that the network takes."""
        self.restart()

    def restart(self) -> None:
        """From the beginning, in pieces of the predictor's present `tile`."""
        vars(self).pop("_planes", None)
        self._places = deque(place for view in self._views for place in self._cut(view))

    @property
    def finished(self) -> bool:
        """Whether there is no next piece."""
        return not self._places

    @property
    def next_shape(self) -> tuple[int, int]:
        """Height and width of the next piece, the network's margin included."""
        _, rows, columns = self._places[0]
        margin = 2 * self.predictor.network.margin
        return rows.stop - rows.start + margin, columns.stop - columns.start + margin

    def next(self) -> Piece:
        """The next piece."""
        height, width = self.next_shape
        place = self._places.popleft()
        if place.view != self._view:
            self._view = place.view
            turned = _turned(self.prepared.pixels, place.view)
            self._seen = mirror(turned, *self._input_size(*turned.shape[:2]), self.predictor.network.margin)
        top, left = place.rows.start, place.columns.start
        return Piece(self, place, np.ascontiguousarray(self._seen[top : top + height, left : left + width]))

    @cached_property
    def _planes(self) -> npt.NDArray[Any]:
        """(K, H, W), the result so far. Not before the first piece is there: many predictions may wait for theirs."""
        exact = self.piece_output == "probabilities"
        shape = (self.predictor.n_classes if exact else 1, *self.prepared.pixels.shape[:2])
        return np.zeros(shape, np.float32 if exact else np.uint8)

    @property
    def piece_output(self) -> Output:
        """What `ForwardPass.finish` is to make of the pieces. Several views are averaged first: a mean is no mask."""
        return self._output if len(self._views) == 1 else "probabilities"

    def put(self, place: Place, finished: npt.NDArray[Any]) -> None:
        """Writes the (K, h, w) of a finished piece into the result, without the context around it."""
        target = self._target(place)
        height, width, _ = target.shape
        kept = finished[:, place.rows.kept, place.columns.kept][:, :height, :width].transpose(1, 2, 0)
        if len(self._views) > 1:
            target += kept / np.float32(len(self._views))
        else:
            target[:] = kept

    def _target(self, place: Place) -> npt.NDArray[Any]:
        """(h', w', K) of the result, which a piece is kept for."""
        view, rows, columns = place
        turned = _turned(self._planes.transpose(1, 2, 0), view)  # (H', W', K)
        return turned[rows.keep_start : rows.keep_stop, columns.keep_start : columns.keep_stop]

    @property
    def result(self) -> npt.NDArray[Any]:
        """(H, W), or (K, H, W) probabilities; of use when every piece has been computed."""
        planes = self._planes
        if len(self._views) > 1:
            planes = self.predictor.forward.finish(torch.from_numpy(planes), self._output, self._threshold).numpy()
        return planes[0] if len(planes) == 1 else planes

    def _cut(self, view: tuple[int, int]) -> list[Place]:
        height, width = self.prepared.pixels.shape[:2]
        height, width = self._input_size(*((width, height) if view[0] % 2 else (height, width)))
        margin, tile, context = self.predictor.network.margin, self.predictor.tile, CONTEXT
        if margin:  # unpadded: what comes out has seen all that it depends on
            tile, context = (tile - 2 * margin - 4) // STRIDE * STRIDE + 4, 0
        return [
            Place(view, rows, columns) for rows in cut(height, tile, context) for columns in cut(width, tile, context)
        ]

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to mirror a view to (before the margin), such that the network covers it."""
        if self.predictor.network.margin:  # unpadded: only sides of 16 k + 4 can come out
            return height + (4 - height) % STRIDE, width + (4 - width) % STRIDE
        return self.predictor.preprocessing.padded_size(height, width)


def _turned(image: npt.NDArray[Any], view: tuple[int, int]) -> npt.NDArray[Any]:
    """(H, W, C) as seen in a view; shares memory."""
    turns, flip = view
    return np.rot90(image, turns)[:, ::flip]
