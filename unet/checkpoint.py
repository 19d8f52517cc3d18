"""The checkpoint file `best_model.pth`: the one place that writes and reads it.

The file is a dict of tensors and plain builtins, so that `torch.load(weights_only=True)` reads it and no code in it can
run:

    format         2
    network        the fields of `NetworkConfig`
    preprocessing  the fields of `Preprocessing`
    class_values   label values in the order of the classes; for a binary network (background, foreground)
    class_names    a name for each of them
    class_colours  red, green and blue of each, 0..255
    threshold      probability above which a pixel is foreground
    objects        whether the network has learned borders of objects: its classes are background, inside, border
    min_area       pixels of the smallest object in the training labels
    training       summary: recipe, epoch, score, data fingerprint, versions, time
    likeness       statistics of the training images, see `Likeness.to_plain`; may be missing
    state_dict     the weights

`load` also takes files of format 1, which had no names, colours, objects and min_area, and of other U-Nets (see
`unet.foreign`).
"""

import colorsys
import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet import foreign
from unet.device import out_of_memory
from unet.errors import UserError
from unet.files import replace_atomically
from unet.likeness import Likeness
from unet.network import NetworkConfig, UNet
from unet.pixels import InputRange, Preprocessing

FORMAT = 2

Colour = tuple[int, ...]
"""Red, green and blue, 0..255."""


class CheckpointError(UserError):
    """A file that is no usable checkpoint, with the file's name and the reason."""


class NotReadError(CheckpointError):
    """Transient read failure (I/O or memory): retry later."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network with all that prediction needs. Raises ValueError naming the entry that makes no sense."""

    network: NetworkConfig
    preprocessing: Preprocessing
    state_dict: Mapping[str, Tensor]
    class_values: tuple[int, ...] = (0, 255)
    class_names: tuple[str, ...] = ()  # one for each value; by default as `default_names` has them
    class_colours: tuple[Colour, ...] = ()  # likewise
    threshold: float = 0.5
    objects: bool = False  # a binary problem, learned as three classes: background, inside of an object, its border
    min_area: int = 1  # pixels of the smallest object in the training labels
    training: Mapping[str, Any] = field(default_factory=dict)  # plain builtins; empty for a file of another U-Net
    likeness: Likeness | None = None  # to the training images; None: nothing is known of them
    id: str = ""  # first 12 digits of the file's SHA-256; empty for a checkpoint that was not loaded

    def __post_init__(self) -> None:
        if self.network.n_classes > 256:
            raise ValueError(f"n_classes: expected at most 256, as masks are 8-bit, found {self.network.n_classes}")
        if not isinstance(self.objects, bool) or (self.objects and self.network.n_classes != 3):
            raise ValueError(f"objects: expected a network of 3 classes, found {self.network.n_classes}")
        n, values = 2 if self.objects else max(2, self.network.n_classes), self.class_values
        if len(values) != n or not all(isinstance(value, int) for value in values):
            raise ValueError(f"class_values: expected {n} whole numbers, found {values}")
        if self.network.n_classes > 1 and not all(0 <= value <= 255 for value in values):
            raise ValueError(f"class_values: expected values of 0..255, found {values}")
        object.__setattr__(self, "class_names", self.class_names or default_names(values))
        object.__setattr__(self, "class_colours", self.class_colours or default_colours(n))
        if len(self.class_names) != n or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"class_names: expected {n} texts, found {self.class_names}")
        if len(self.class_colours) != n or not all(_is_colour(colour) for colour in self.class_colours):
            raise ValueError(f"class_colours: expected {n} triples of 0..255, found {self.class_colours}")
        if not isinstance(self.min_area, int) or self.min_area < 1:
            raise ValueError(f"min_area: expected a whole number of pixels, found {self.min_area!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: expected 0..1, found {self.threshold}")
        for name, kind in (("epoch", int), ("score", int | float), ("time", str)):
            if not isinstance(self.training.get(name), kind | None):
                wanted = "text" if kind is str else "a number"
                raise ValueError(f"training: expected {wanted} as {name}, found {self.training[name]!r}")
        if not isinstance(self.n_images, int | None):
            raise ValueError(f"training: expected a number of images, found {self.n_images!r}")
        expected, found = (
            {name: _kind(tensor) for name, tensor in weights.items()}
            for weights in (self._unfilled().state_dict(), self.state_dict)
        )
        if expected != found:
            raise ValueError(_difference(expected, found))

    @property
    def n_images(self) -> int | None:
        """Number of annotated images that the training was given; None for a file of another U-Net."""
        data = self.training.get("data", {})
        return data.get("images") if isinstance(data, Mapping) else data

    def build(self) -> UNet:
        """The network with its weights, float32, in evaluation mode. The weights are shared, not copied."""
        network = self._unfilled()
        network.load_state_dict(self.state_dict, assign=True)
        return network.float().eval()

    def _unfilled(self) -> UNet:
        with torch.device("meta"):  # shapes without memory: initial weights would be replaced at once
            return self.network.build()


def default_names(class_values: tuple[int, ...]) -> tuple[str, ...]:
    """Names of classes that have none: background and foreground, or their values."""
    return ("background", "foreground") if len(class_values) == 2 else tuple(map(str, class_values))


def default_colours(n: int) -> tuple[Colour, ...]:
    """RGB of n classes: black, then a wheel of hues from orange on, light and dark by turns."""
    wheel = [colorsys.hsv_to_rgb((0.09 + i / (n - 1)) % 1, 1, 0.6 if i % 2 else 1) for i in range(n - 1)]
    return ((0, 0, 0), *(tuple(round(255 * c) for c in colour) for colour in wheel))


def _is_colour(colour: object) -> bool:
    return isinstance(colour, tuple) and len(colour) == 3 and all(isinstance(c, int) and 0 <= c < 256 for c in colour)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file atomically. Raises OSError as `replace_atomically` does."""
    content = {
        "format": FORMAT,
        "network": asdict(checkpoint.network),
        "preprocessing": asdict(checkpoint.preprocessing),
        "class_values": list(checkpoint.class_values),
        "class_names": list(checkpoint.class_names),
        "class_colours": [list(colour) for colour in checkpoint.class_colours],
        "threshold": checkpoint.threshold,
        "objects": checkpoint.objects,
        "min_area": checkpoint.min_area,
        "training": dict(checkpoint.training),
        "likeness": checkpoint.likeness.to_plain() if checkpoint.likeness else None,
        "state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state_dict.items()},
    }
    replace_atomically(path, to_bytes(content))


def load(path: Path, input_range: InputRange = "0-1") -> Checkpoint:
    """Reads a checkpoint or a file of another U-Net. Raises CheckpointError with the reason, and nothing else.

    `input_range`: the pixel scale of the training images, for a file of another U-Net, which does not hold it.
    """
    content, digest = read(path)
    try:
        checkpoint = _from_own(content) if "format" in content else _from_foreign(content, input_range)
        checkpoint = replace(checkpoint, id=digest[:12])
        finite = all(bool(tensor.float().isfinite().all()) for tensor in checkpoint.state_dict.values())
    except KeyError as error:
        raise CheckpointError(f"{path}: has no entry {error}") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {str(error).partition(chr(10))[0]}") from error
    if not finite:
        raise CheckpointError(f"{path}: expected finite weights, found NaN or infinity")
    return checkpoint


def read(path: Path) -> tuple[dict[str, Any], str]:
    """The dict in a file, by safe loading only, and the SHA-256 of the file. Raises CheckpointError or NotReadError."""
    data = b""
    try:
        data = path.read_bytes()
        content = _safetensors(path, data) if data[8:9] == b"{" else _unpickled(data)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise NotReadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch's unpickler and zip reader raise almost anything on a damaged file
        if out_of_memory(error):
            raise NotReadError(f"{path}: cannot be read: there is no memory for it") from error
        reason = _classes_in(data) or f"it is damaged or holds something else ({type(error).__name__})"
        raise CheckpointError(
            f"{path}: expected a file of tensors and plain values, written by unet-train or by "
            f"torch.save(model.state_dict(), ...); {reason}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict of weights, found {type(content).__name__}")
    return content, hashlib.sha256(data).hexdigest()


def _safetensors(path: Path, data: bytes) -> Mapping[str, Tensor]:
    """Tensors of a file of the safetensors library. Raises CheckpointError without it, and its own errors."""
    try:
        import safetensors.torch
    except ImportError:
        advice = "pip install safetensors, or write them with torch.save(model.state_dict(), ...)"
        raise CheckpointError(f"{path}: holds safetensors, which need their library: {advice}") from None
    return safetensors.torch.load(data)


def _unpickled(data: bytes) -> Any:
    """Content of a file of torch.save, if it is made of tensors, arrays and plain values only."""
    _check_sums(data)
    with torch.serialization.safe_globals(_NUMPY):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_globals() -> list[Any]:
    """Types and functions by which NumPy's numbers and arrays are unpickled, by their names in NumPy 1 and 2. None runs
    code."""
    functions: list[Any] = [np.int64().__reduce__()[0], np.zeros(1).__reduce__()[0]]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    named = [(f, f"numpy.{core}.multiarray.{f.__name__}") for f in functions for core in ("core", "_core")]
    return [np.dtype, np.ndarray, *kinds, *named]


_NUMPY = _numpy_globals()


def _classes_in(data: bytes) -> str:
    """Classes in a file of torch.save, for which it is not read, with the reason and advice; empty if it has none."""
    try:
        with torch.serialization.safe_globals(_NUMPY):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:  # damaged, or older than torch 1.6
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"it holds {names[0]}{more}, and loading classes could run code: save the weights alone" if names else ""


def _check_sums(data: bytes) -> None:
    """Checks the CRC-32 of each tensor, which torch.load ignores. Raises BadZipFile.

    A file that was overwritten while it was copied holds weights of two models. Files without checksums pass: those of
    torch before 1.6, and those saved with `torch.serialization.set_crc32_options(False)`.
    """
    if not data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as records:
        if any(record.CRC for record in records.infolist()) and (damaged := records.testzip()):
            raise zipfile.BadZipFile(damaged)


def to_bytes(content: Mapping[str, Any]) -> memoryview:
    """The bytes that torch.save writes; in memory, since its own file errors hide the reason."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getbuffer()


def _from_own(content: dict[str, Any]) -> Checkpoint:
    if content["format"] not in (1, FORMAT):
        raise ValueError(f"expected format 1 or {FORMAT}, found {content['format']!r}: written by a newer version")
    since_2 = {}
    if content["format"] == FORMAT:
        since_2 = {
            "class_names": tuple(content["class_names"]),
            "class_colours": tuple(map(tuple, content["class_colours"])),
            "objects": content["objects"],
            "min_area": content["min_area"],
        }
    return Checkpoint(
        network=NetworkConfig(**content["network"]),
        preprocessing=Preprocessing(**content["preprocessing"]),
        state_dict=content["state_dict"],
        class_values=tuple(content["class_values"]),
        threshold=content["threshold"],
        training=content["training"],
        likeness=Likeness.from_plain(content.get("likeness")),
        **since_2,
    )


def _from_foreign(content: dict[str, Any], input_range: InputRange) -> Checkpoint:
    found = foreign.recognise(content)
    # such networks see images at their own size and pad inside, where levels meet
    preprocessing = Preprocessing(input_range=input_range, size_multiple=1)
    return Checkpoint(preprocessing=preprocessing, **found._asdict())


def _kind(tensor: object) -> str:
    """Shape and kind of a weight, to compare and to show: `(8, 1, 3, 3)`, `(8,) whole numbers`, ..."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    if tensor.layout != torch.strided:
        return f"{tuple(tensor.shape)} sparse"
    numbers = " complex" if tensor.is_complex() else "" if tensor.is_floating_point() else " whole numbers"
    return f"{tuple(tensor.shape)}{numbers}"


def _difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The first weight that differs between two networks, and the number of those that do."""
    wrong = [
        f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"weights do not fit the network: {wrong[0]}{more}"
