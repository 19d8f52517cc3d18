"""The checkpoint file `best_model.pth`: the one place that writes and reads it.

The file is a dict of tensors and plain builtins, so that `torch.load(weights_only=True)` reads it and no code in it can
run:

    format         1
    network        the fields of `NetworkConfig`
    preprocessing  the fields of `Preprocessing`
    class_values   label values in the order of the classes; for a binary network (background, foreground)
    threshold      probability above which a pixel is foreground
    training       summary: recipe, epoch, score, data fingerprint, versions, time
    state_dict     the weights

`load` also takes files of other U-Nets (see `unet.foreign`).
"""

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet import foreign
from unet.device import out_of_memory
from unet.errors import UserError
from unet.network import NetworkConfig, UNet
from unet.pixels import InputRange, Preprocessing

FORMAT = 1


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
    threshold: float = 0.5
    training: Mapping[str, Any] = field(default_factory=dict)  # plain builtins; empty for a file of another U-Net
    id: str = ""  # first 12 digits of the file's SHA-256; empty for a checkpoint that was not loaded

    def __post_init__(self) -> None:
        if self.network.n_classes > 256:
            raise ValueError(f"n_classes: expected at most 256, as masks are 8-bit, found {self.network.n_classes}")
        n, values = max(2, self.network.n_classes), self.class_values
        if len(values) != n or not all(isinstance(value, int) for value in values):
            raise ValueError(f"class_values: expected {n} whole numbers, found {values}")
        if self.network.n_classes > 1 and not all(0 <= value <= 255 for value in values):
            raise ValueError(f"class_values: expected values of 0..255, found {values}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: expected 0..1, found {self.threshold}")
        for name, kind in (("epoch", int), ("score", int | float)):
            if not isinstance(self.training.get(name), kind | None):
                raise ValueError(f"training: expected a number as {name}, found {self.training[name]!r}")
        expected, found = (
            {name: _kind(tensor) for name, tensor in weights.items()}
            for weights in (self._unfilled().state_dict(), self.state_dict)
        )
        if expected != found:
            raise ValueError(_difference(expected, found))

    def build(self) -> UNet:
        """The network with its weights, float32, in evaluation mode. The weights are shared, not copied."""
        network = self._unfilled()
        network.load_state_dict(self.state_dict, assign=True)
        return network.float().eval()

    def _unfilled(self) -> UNet:
        with torch.device("meta"):  # shapes without memory: initial weights would be replaced at once
            return self.network.build()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file atomically. Raises OSError as `replace_atomically` does."""
    content = {
        "format": FORMAT,
        "network": asdict(checkpoint.network),
        "preprocessing": asdict(checkpoint.preprocessing),
        "class_values": list(checkpoint.class_values),
        "threshold": checkpoint.threshold,
        "training": dict(checkpoint.training),
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
    try:
        data = path.read_bytes()
        _check_sums(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise NotReadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch's unpickler and zip reader raise almost anything on a damaged file
        if out_of_memory(error):
            raise NotReadError(f"{path}: cannot be read: there is no memory for it") from error
        raise CheckpointError(
            f"{path}: expected a file of tensors and plain values, written by torch.save(network.state_dict()) or by "
            f"unet-train; it is damaged or holds something else ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict of weights, found {type(content).__name__}")
    return content, hashlib.sha256(data).hexdigest()


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


def replace_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes a file such that a reader sees the old one or the new one, whole, even after a crash (write, fsync,
    rename).

    Raises OSError that names the file; the old file is then unchanged.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would lock out a service that runs as another user
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def remove_leftovers(path: Path) -> None:
    """Deletes temporary files of a killed `replace_atomically(path, ...)`. No other process may be writing the file."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _from_own(content: dict[str, Any]) -> Checkpoint:
    if content["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {content['format']!r}: written by another version")
    return Checkpoint(
        network=NetworkConfig(**content["network"]),
        preprocessing=Preprocessing(**content["preprocessing"]),
        state_dict=content["state_dict"],
        class_values=tuple(content["class_values"]),
        threshold=content["threshold"],
        training=content["training"],
    )


def _from_foreign(content: dict[str, Any], input_range: InputRange) -> Checkpoint:
    network, weights, values = foreign.recognise(content)
    # such networks see images at their own size and pad inside, where levels meet
    preprocessing = Preprocessing(input_range=input_range, size_multiple=1)
    return Checkpoint(network=network, preprocessing=preprocessing, state_dict=weights, class_values=values)


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
