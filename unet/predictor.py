"""Image in, probabilities or mask out: the one way to use a network, in validation as in the service.

The path of one image is five steps: preprocess (`Predictor.preprocess`), tile (`Prediction.next`), forward
(`Predictor.forward`), threshold (`Predictor.decide`), stitch (`Prediction.stitch`). A queue that computes pieces of
several images by turns takes the same steps through `start` and `compute`; a cluster sends inputs to `answer`.

Shapes: B pieces of one shape, C channels of the image, K channels of the network's output, H and W height and width in
pixels; h and w those of a piece, the network's margin included; h' and w' without it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet import checkpoint as checkpoints
from unet import engines
from unet.checkpoint import Checkpoint, Colour, default_colours, default_names
from unet.device import DeviceChoice, Precision, PrecisionChoice, resolve_device, resolve_precision
from unet.likeness import Likeness
from unet.network import UNet
from unet.pixels import FloatArray, InputRange, PixelError, Prepared, Preprocessing, normalise
from unet.prediction import SURE, VIEWS, Array, Input, Output, Piece, Prediction, Question, Wanted

Engine = Callable[[Tensor], Tensor]

TILE = {"cuda": 2048, "elsewhere": 896}
"""Side of the largest piece that is computed at once, by kind of device: at base 64 about 3 GiB and 1 GiB."""
PAGES = 32
"""Pages of a stack that are compared with the training images, at most: evenly over the stack."""


class Predictor:
    """A network with its preprocessing, classes, threshold, device and precision.

    >>> predictor = Predictor.load("best_model.pth")
    >>> mask = predictor.mask(image)  # (H, W) or (H, W, C), integers or floats in 0..1 -> (H, W) uint8

    Images with a side above `tile` pixels are computed in overlapping tiles (see `unet.tiles`).
    """

    def __init__(
        self,
        network: UNet,
        preprocessing: Preprocessing,
        *,
        class_values: tuple[int, ...] = (0, 255),
        class_names: tuple[str, ...] = (),
        class_colours: tuple[Colour, ...] = (),
        threshold: float = 0.5,
        objects: bool = False,
        min_area: int = 1,
        likeness: Likeness | None = None,
        precision: Precision = "fp32",
        engine: Engine | None = None,
    ) -> None:
        """`engine`: (B, C, h, w) float32 -> (B, K, h', w') logits, from `engines.prepare`. Default: the network
        itself, whose weights may then change between calls, as in training. Other arguments: see `Checkpoint`."""
        self.network, self.preprocessing = network, preprocessing
        self.class_values, self.threshold = class_values, threshold
        self.class_names = class_names or default_names(class_values)
        self.class_colours = class_colours or default_colours(len(class_values))
        self.objects, self.min_area, self.likeness = objects, min_area, likeness
        self.n_channels = network.config.n_channels  # of the images: 1 grey, 3 RGB, or others
        self.n_classes = network.config.n_classes  # K: 1 for a binary network, which tells foreground from background
        self.binary = self.n_classes == 1 or objects
        self.n_planes = 2 if objects else self.n_classes  # of the probabilities that `forward` gives
        self.precision: Precision = precision
        self.device = next(network.parameters()).device
        self.tile = TILE.get(self.device.type, TILE["elsewhere"])  # lowered by the queue when memory runs out
        self.views = VIEWS[:2] if preprocessing.upright else VIEWS
        self._engine: Engine = engine or network

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: DeviceChoice = "auto", precision: PrecisionChoice = "auto"
    ) -> Self:
        """Predictor on the device, with the fastest engine for it. Raises DeviceError."""
        where = resolve_device(device)
        resolved = resolve_precision(precision, where)
        network = checkpoint.build().to(where)
        return cls(
            network,
            checkpoint.preprocessing,
            class_values=checkpoint.class_values,
            class_names=checkpoint.class_names,
            class_colours=checkpoint.class_colours,
            threshold=checkpoint.threshold,
            objects=checkpoint.objects,
            min_area=checkpoint.min_area,
            likeness=checkpoint.likeness,
            precision=resolved,
            engine=engines.prepare(network, where, resolved),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: DeviceChoice = "auto",
        precision: PrecisionChoice = "auto",
        input_range: InputRange = "0-1",
    ) -> Self:
        """A predictor from a file of `unet-train`, or from a bare state_dict, whose pixel scale is `input_range`.

        Raises CheckpointError or DeviceError.
        """
        return cls.from_checkpoint(checkpoints.load(Path(path), input_range), device, precision)

    def __call__(self, image: Array, *, tta: bool = False) -> FloatArray:
        """Probabilities for an image (H, W) or (H, W, C) of any size, float32 in 0..1: (H, W) of the foreground for a
        binary network, (K, H, W) that sum to one for K classes. Raises PixelError.

        `tta`, test-time augmentation: the mean over the image's eight rotations and flips, in eight times the time; of
        a model of images that have an up, over the image and its mirror image.
        """
        return self.predict(image, "probabilities", tta=tta)

    def mask(self, image: Array, threshold: float | None = None, *, tta: bool = False) -> npt.NDArray[np.uint8]:
        """Mask (H, W) uint8: 0 and 255 for a binary network, the class values (those of the labels) for K classes.

        `threshold` (0..1; default: the checkpoint's) is for binary networks only. Raises PixelError.
        """
        return self.predict(image, "mask", threshold=threshold, tta=tta)

    def predict(
        self,
        image: Array,
        wanted: Wanted,
        *,
        threshold: float | None = None,
        tta: bool = False,
        class_name: str | None = None,
    ) -> Array:
        """The whole path of one image. `class_name`: the class of "probability". Raises PixelError."""
        prediction = self.start(image, wanted, threshold=threshold, tta=tta, class_name=class_name)
        while not prediction.finished:
            self.compute([prediction.next()])
        return prediction.result

    def start(
        self,
        image: Array,
        wanted: Wanted = "probabilities",
        *,
        threshold: float | None = None,
        tta: bool = False,
        class_name: str | None = None,
    ) -> Prediction:
        """The same path for a queue: preprocessed, to be computed piece by piece. Raises PixelError."""
        question = Question(wanted, self.resolve_threshold(threshold), self.resolve_class(class_name, wanted))
        return Prediction(self, self.preprocess(image), question, tta)

    def derive(
        self, planes: FloatArray, wanted: Wanted, *, threshold: float | None = None, class_name: str | None = None
    ) -> Array:
        """Another answer from that of "objects" for the same image: the one that `predict` would give, to the bit,
        without a second pass through the network. Raises PixelError."""
        question = Question(wanted, self.resolve_threshold(threshold), self.resolve_class(class_name, wanted))
        answer = self.decide(torch.from_numpy(planes if planes.ndim == 3 else planes[None]), question).numpy()
        return answer[0] if len(answer) == 1 else answer

    def compute(self, pieces: Sequence[Piece]) -> None:
        """Forward, threshold and stitch for pieces of one shape, which may belong to different predictions."""
        for piece, output in zip(pieces, self.answer([piece.input for piece in pieces]), strict=True):
            piece.prediction.stitch(piece, output)

    def answer(self, inputs: Sequence[Input]) -> Iterator[Output]:
        """Forward and threshold for inputs of one shape."""
        for each, probabilities in zip(inputs, self.forward(inputs), strict=True):
            seen = probabilities[:, ::4, ::4]
            sure = (seen[0] - 0.5).abs() > SURE - 0.5 if self.binary else seen.amax(dim=0) > SURE
            answer = self.decide(probabilities, each.question)
            yield Output(answer.numpy(force=True), float(sure.float().mean()))

    def preprocess(self, image: Array) -> Prepared:
        """Image -> (H, W, C) pixels with the offset and scale that normalise them. Raises PixelError."""
        return self.preprocessing(image, self.n_channels)

    def warning(self, pages: Sequence[Array]) -> str:
        """Why the network may be wrong about an image, or about which of its pages: an ASCII sentence that says how the
        first such page differs from the training images. Empty if none does. Raises PixelError as `preprocess`."""
        seen = range(0, len(pages), -(-len(pages) // PAGES))
        found = [(i + 1, said) for i in seen if (said := self._differences(pages[i]))]
        if not found:
            return ""
        page, first = found[0]
        too = f" (of the {len(seen)} pages looked at, {len(found)} differ)" if len(found) > 1 else ""
        return f"page {page}: {first}{too}" if len(pages) > 1 else first

    def _differences(self, image: Array) -> str:
        differences = self.likeness.differences(self.preprocessing.selected(image)) if self.likeness else []
        unlike = f"unlike the training images: {', '.join(differences)}" if differences else ""
        return joined([self.preprocessing.misfit(image) or "", unlike])

    def planes_kept(self, wanted: Wanted, tta: bool) -> int:
        """Numbers that are kept of each pixel until the answer for the whole image is decided."""
        whole = tta or self.preprocessing.scale != 1 or wanted in ("objects", "probabilities")
        return self.n_planes if whole else 1

    @torch.inference_mode()
    def forward(self, inputs: Sequence[Input]) -> Tensor:
        """B inputs of one shape -> probabilities (B, K, h', w') float32, on the device; for a model that has learned
        borders (B, 2, h', w'), of objects and of their insides."""
        arrays = [i.pixels for i in inputs], [i.offset for i in inputs], [i.scale for i in inputs]
        pixels, offset, scale = (torch.from_numpy(np.stack(each)).to(self.device) for each in arrays)
        x = normalise(pixels, offset[:, :, None, None], scale[:, :, None, None])  # (B, C, h, w)
        logits = self._engine(x).float()  # (B, K, h', w')
        if self.n_classes == 1:
            return logits.sigmoid_()
        probabilities = logits.softmax(dim=1)
        if self.objects:  # background, inside, border; borders belong to objects
            return torch.stack([1 - probabilities[:, 0], probabilities[:, 1]], dim=1)
        return probabilities

    @torch.inference_mode()
    def decide(self, probabilities: Tensor, question: Question) -> Tensor:
        """Answer from probabilities (K, h, w): the same, or (1, h, w) uint8: mask values, or the probability of a
        class. With borders, the foreground's (1, h, w) for all but "objects"."""
        if question.wanted == "objects":
            return probabilities
        if self.objects:
            probabilities = probabilities[:1]
        if question.wanted == "probabilities":
            return probabilities
        if question.wanted == "probability":
            if question.class_index is None:
                chosen = probabilities.amax(dim=0, keepdim=True)
            elif self.binary:
                chosen = probabilities if question.class_index else 1 - probabilities
            else:
                chosen = probabilities[question.class_index][None]
            return (chosen * 255).round().to(torch.uint8)
        if self.binary:
            return probabilities.gt(question.threshold).to(torch.uint8).mul_(255)
        values = torch.tensor(self.class_values, dtype=torch.uint8, device=probabilities.device)
        return values[probabilities.argmax(dim=0, keepdim=True)]

    def background(self, question: Question) -> Array:
        """Answer (K or 1, 1) for a pixel without data: certainly of the first class."""
        certain = torch.zeros(self.n_planes, 1)
        certain[0] = 0 if self.binary else 1
        return self.decide(certain, question).numpy()

    def to_classes(self, probabilities: FloatArray, threshold: float | None = None) -> npt.NDArray[np.intp]:
        """Probabilities as from a call -> (H, W) indices into `class_values`; for a binary network 0 background, 1
        foreground. Raises PixelError."""
        threshold = self.resolve_threshold(threshold)
        if self.binary:
            return (probabilities > threshold).astype(np.intp)
        return np.asarray(probabilities.argmax(axis=0))

    def resolve_threshold(self, threshold: float | None) -> float:
        """The threshold to use. Raises PixelError for one outside 0..1, and for one given to a network of classes."""
        if threshold is None:
            return self.threshold
        if not self.binary:
            raise PixelError(f"threshold: expected none, as this model tells {self.n_classes} classes apart")
        if not 0 <= threshold <= 1:
            raise PixelError(f"threshold: expected 0..1, found {threshold}")
        return threshold

    def resolve_class(self, name: str | None, wanted: Wanted) -> int | None:
        """Position of the class of that name, for "probability"; None for none. Raises PixelError."""
        if name is None:
            return None
        if wanted != "probability":
            raise PixelError("class: expected with the output probability only")
        if name not in self.class_names:
            raise PixelError(f"class: expected {' or '.join(self.class_names)}, found {name!r}")
        return self.class_names.index(name)


def joined(warnings: Iterable[str]) -> str:
    """Warnings as one, those that are empty or the same left out."""
    return "; ".join(dict.fromkeys(filter(None, warnings)))
