"""The checkpoint file `best_model.pth`: written, read and explained here and nowhere else.

The file is a dict of tensors and plain builtins, so `torch.load(weights_only=True)` reads it and no code in it can run:

    format         1
    network        the fields of `NetworkConfig`
    preprocessing  the fields of `Preprocessing`
    class_values   label values in the order of the classes; for a binary network (background, foreground)
    threshold      foreground is where the probability is above it
    training       summary: recipe, epoch, score, data fingerprint, versions, time
    state_dict     the weights

`load` also takes a bare `state_dict` of the U-Nets in circulation (see `_read_bare`).
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

from unet.device import out_of_memory
from unet.network import NetworkConfig, UNet
from unet.pixels import InputRange, Preprocessing

FORMAT = 1


class CheckpointError(ValueError):
    """A file that is no usable checkpoint. Says which file and why."""


class NotReadError(CheckpointError):
    """Nothing is known of the file: it could not be opened, or there was no memory for it. Later that may change."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    network: NetworkConfig
    preprocessing: Preprocessing
    state_dict: Mapping[str, Tensor]
    class_values: tuple[int, ...] = (0, 255)
    threshold: float = 0.5
    training: Mapping[str, Any] = field(default_factory=dict)
    """Plain builtins only; empty for a bare state_dict."""
    id: str = ""
    """The first 12 digits of the SHA-256 of the file it was loaded from; empty if it was not."""

    def __post_init__(self) -> None:
        if self.network.n_channels not in (1, 3):
            raise ValueError(f"n_channels: expected 1 (grey) or 3 (RGB), found {self.network.n_channels}")
        if self.network.n_classes > 256:
            raise ValueError(f"n_classes: expected at most 256, a byte for each pixel, found {self.network.n_classes}")
        n_values = max(2, self.network.n_classes)
        if len(self.class_values) != n_values:
            raise ValueError(f"class_values: expected {n_values} values, found {len(self.class_values)}")
        if not all(isinstance(value, int) for value in self.class_values):
            raise ValueError(f"class_values: expected whole numbers, found {self.class_values}")
        if self.network.n_classes > 1 and not all(0 <= value <= 255 for value in self.class_values):
            raise ValueError(f"class_values: expected values of 0..255, found {self.class_values}")
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
        with torch.device("meta"):  # shapes without memory: no time goes into weights that are replaced at once
            return self.network.build()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file atomically, as `replace_atomically` does, and raises OSError as it does."""
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
    """Reads a checkpoint or a bare state_dict. Raises CheckpointError with the reason, never anything else.

    `input_range` says how the pixels of a *bare* file's training images were scaled, which it cannot say itself.
    """
    content, digest = read(path)
    try:
        checkpoint = _read_own(content) if "format" in content else _read_bare(content, input_range)
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
    """The dict in a file, by safe loading only, and the file's SHA-256. Raises CheckpointError, or NotReadError."""
    try:
        data = path.read_bytes()
        _check_sums(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise NotReadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises whatever its unpickler and zip reader meet in a damaged file
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
    """Raises BadZipFile where a CRC-32 is not that of its tensor, which torch.load does not ask: it would give weights
    of two files, one of which was copied over the other. The format of torch before 1.6 has none, and who saves may
    leave them out (`torch.serialization.set_crc32_options`)."""
    if not data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as records:
        if any(record.CRC for record in records.infolist()) and (damaged := records.testzip()):
            raise zipfile.BadZipFile(damaged)


def to_bytes(content: Mapping[str, Any]) -> memoryview:
    """As torch.save writes it; in memory, as it does not say why a file could not be written."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getbuffer()


def replace_atomically(path: Path, content: bytes | memoryview) -> None:
    """A reader sees the old file or the new one, whole, even if this process or the machine dies meanwhile.

    Raises OSError, which names the file, when that cannot be done; the old file is then unchanged.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would lock out a service with another user id
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def remove_leftovers(path: Path) -> None:
    """What `replace_atomically(path, ...)` left behind where it was killed. Nobody else may be writing the file."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _read_own(content: dict[str, Any]) -> Checkpoint:
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


def _read_bare(content: dict[str, Any], input_range: InputRange) -> Checkpoint:
    """A state_dict of the tutorials' network or of Pytorch-UNet; channels, classes, width and variant by its shapes.

    Wrappers' prefixes are removed. Pytorch-UNet adds an entry `mask_values` among the weights: its label values.
    """
    content = dict(content)
    mask_values = content.pop("mask_values", None)
    weights = {_without_prefix(str(name)): value for name, value in content.items()}
    if others := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        nested = [name for name in others if isinstance(content[name], dict)]
        hint = f"; perhaps its entry {nested[0]!r} is one: torch.save(content[{nested[0]!r}], ...)" if nested else ""
        raise ValueError(
            f"neither a checkpoint of unet-train (no `format`) nor a bare state_dict ({others[0]!r} is no tensor){hint}"
        )
    bottom = "down4.maxpool_conv.1.double_conv.3.weight"
    known = ("inc.double_conv.0.weight", "up1.conv.double_conv.0.weight", bottom, "outc.conv.weight")
    if missing := [name for name in known if name not in weights]:
        found = next(iter(weights), "nothing")
        raise ValueError(f"not a U-Net of the tutorials or Pytorch-UNet: expected {missing[0]!r}, found {found!r}")
    if flat := [name for name in known if weights[name].ndim != 4]:
        raise ValueError(f"{flat[0]}: expected 4 dimensions, found {tuple(weights[flat[0]].shape)}")
    base_channels, n_channels = weights["inc.double_conv.0.weight"].shape[:2]
    bilinear = "up1.up.weight" not in weights
    if bilinear:  # the middle of a tutorial's up step is as wide as its output, else half as wide as its input
        tutorial = weights["up1.conv.double_conv.0.weight"].shape[0] == 4 * base_channels
    else:  # a tutorial's bottom is 8 times as wide as its top, else 16 times, and up-convolutions halve
        tutorial = weights[bottom].shape[0] == 8 * base_channels
    network = NetworkConfig(
        n_channels=n_channels,
        n_classes=weights["outc.conv.weight"].shape[0],
        bilinear=bilinear,
        base_channels=base_channels,
        variant="tutorial" if tutorial else "pytorch-unet",
        conv_bias="inc.double_conv.0.bias" in weights,
    )
    return Checkpoint(
        network=network,
        # such networks see images at their own size; they pad inside, where levels meet
        preprocessing=Preprocessing(input_range=input_range, size_multiple=1),
        state_dict=weights,
        class_values=_class_values(mask_values, network.n_classes),
    )


def _without_prefix(name: str) -> str:
    """DataParallel wraps as `module.`, torch.compile as `_orig_mod.`, in either order."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def _class_values(mask_values: object, n_classes: int) -> tuple[int, ...]:
    """Those of the file, if they can be values of a mask, else 0, 1, 2 ... (0 and 255 for a binary network)."""
    found = mask_values if isinstance(mask_values, list) else []
    grey = {int(value) for value in found if isinstance(value, int | float) and value in range(256)}
    if len(grey) == len(found) == max(2, n_classes):
        return tuple(int(value) for value in found)
    return (0, 255) if n_classes == 1 else tuple(range(n_classes))


def _kind(tensor: object) -> str:
    """Shape, and what else makes weights unlike those of a network: `(8, 1, 3, 3)`, `(8,) whole numbers`, ..."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    if tensor.layout != torch.strided:
        return f"{tuple(tensor.shape)} sparse"
    numbers = " complex" if tensor.is_complex() else "" if tensor.is_floating_point() else " whole numbers"
    return f"{tuple(tensor.shape)}{numbers}"


def _difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The first disagreement between two sets of weights, and how many there are."""
    wrong = [
        f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"weights do not fit the network: {wrong[0]}{more}"
