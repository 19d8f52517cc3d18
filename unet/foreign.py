"""Weights of other U-Nets: state_dicts of the tutorials' network and of Pytorch-UNet, bare or inside a training state.

Channels, classes, width and variant follow from the shapes of the weights. Whatever wrappers have put before the names
is removed (`module.`, `model.`, `net._orig_mod.`). Pytorch-UNet stores its label values among the weights, as
`mask_values`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unet.network import NetworkConfig

_FIRST = "inc.double_conv.0.weight"
_BOTTOM = "down4.maxpool_conv.1.double_conv.3.weight"
_EXPECTED = (_FIRST, "up1.conv.double_conv.0.weight", _BOTTOM, "outc.conv.weight")
"""Weights that every one of these networks has; all are 4-dimensional."""
_NO_LAYERS = ("loss", "criterion", "metric")
"""Parts of names of tensors that training modules keep beside a network, such as weights of classes."""


class ForeignNetwork(NamedTuple):
    """The network in a file of another U-Net; the last two as in `unet.checkpoint.Checkpoint`."""

    network: NetworkConfig
    state_dict: dict[str, Tensor]
    class_values: tuple[int, ...]
    class_colours: tuple[tuple[int, ...], ...]  # empty if the file has none


def recognise(content: Mapping[str, Any]) -> ForeignNetwork:
    """The only network in a file. Raises ValueError with the reason for anything else."""
    weights, mask_values = _weights(content)
    if missing := [name for name in _EXPECTED if name not in weights]:
        raise ValueError(f"not a U-Net of the tutorials or Pytorch-UNet: expected {missing[0]!r}, found none")
    if flat := [name for name in _EXPECTED if weights[name].ndim != 4]:
        raise ValueError(f"{flat[0]}: expected 4 dimensions, found {tuple(weights[flat[0]].shape)}")
    base_channels, n_channels = weights[_FIRST].shape[:2]
    n_classes = weights["outc.conv.weight"].shape[0]
    bilinear = "up1.up.weight" not in weights
    if bilinear:  # the middle of a tutorial's up step is as wide as its output, else half as wide as its input
        tutorial = weights["up1.conv.double_conv.0.weight"].shape[0] == 4 * base_channels
    else:  # a tutorial's bottom is 8 times as wide as its top, else 16 times, and the up-convolutions halve
        tutorial = weights[_BOTTOM].shape[0] == 8 * base_channels
    network = NetworkConfig(
        n_channels=n_channels,
        n_classes=n_classes,
        bilinear=bilinear,
        base_channels=base_channels,
        variant="tutorial" if tutorial else "pytorch-unet",
        conv_bias="inc.double_conv.0.bias" in weights,
    )
    for name in [name for name in weights if name.endswith(".running_mean")]:
        # a counter that nothing needs here; files of torch before 0.4.1 have none, and `.half()` makes it a float
        weights[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return ForeignNetwork(network, weights, *_classes(mask_values, n_classes))


def _weights(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], object]:
    """Weights of the only network in a dict or the dicts in it, without their prefix, and the `mask_values` around."""
    found = []
    seen: list[str] = []
    for place, mapping, mask_values in _mappings(content, "content", None, set()):
        tensors = {str(name): value for name, value in mapping.items() if isinstance(value, Tensor)}
        seen += tensors
        prefixes = [name.removesuffix(_FIRST) for name in tensors if f".{name}".endswith(f".{_FIRST}")]
        found += [(place, prefix, tensors, mask_values) for prefix in prefixes]
    if not found:
        names = ", ".join(map(repr, (seen or list(content))[:3])) or "nothing"
        raise ValueError(
            f"neither a checkpoint of unet-train (no `format`) nor a state_dict of a U-Net of the tutorials or "
            f"Pytorch-UNet: expected {_FIRST!r}, with or without a prefix, found {names}"
        )
    if len(found) > 1:
        places = " and ".join(f"{place} ({prefix}inc)" for place, prefix, *_ in found)
        raise ValueError(f"expected one network, found {places}: save one of them with torch.save")
    ((place, prefix, tensors, mask_values),) = found
    others = [name for name in tensors if not name.startswith(prefix) and _may_be_a_layer(name, tensors[name])]
    if others:
        raise ValueError(
            f"expected nothing but {prefix}* in {place}, found {others[0]!r}, which this network does not have; if its "
            f"answer does not depend on that, save its own part: torch.save(net.{prefix}state_dict(), ...)"
        )
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    own.pop("mask_values", None)
    return own, mask_values


def _mappings(
    content: Mapping[Any, Any], place: str, mask_values: object, seen: set[int]
) -> Iterator[tuple[str, Mapping[Any, Any], object]]:
    """A dict and those in it: where each is, itself, and the nearest `mask_values`."""
    if id(content) in seen:
        return
    seen.add(id(content))
    mask_values = content.get("mask_values", mask_values)
    yield place, content, mask_values
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _mappings(value, f"{place}[{name!r}]", mask_values, seen)


def _may_be_a_layer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor outside a network may work on its input or output; counters and class weights do not."""
    return tensor.ndim > 0 and name != "mask_values" and not any(part in name.lower() for part in _NO_LAYERS)


def _classes(mask_values: object, n_classes: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Class values and colours. Grey label values of 0..255 are class values, RGB ones are colours. Without such values
    classes are 0, 1, 2, ...; two are 0 and 255 (also by softmax from labels of 0 and 1, as 1 is black to the eye)."""
    found = _plain(mask_values)
    n = max(2, n_classes)
    values: tuple[int, ...] = tuple(range(n)) if n > 2 else (0, 255)
    colours: tuple[tuple[int, ...], ...] = ()
    if isinstance(found, list) and len(found) == n == len(set(map(str, found))):
        if all(_is_byte(value) for value in found):
            values = tuple(map(int, found))
        elif all(isinstance(each, list) and len(each) in (3, 4) and all(map(_is_byte, each)) for each in found):
            colours = tuple(tuple(map(int, each[:3])) for each in found)
    return (0, 255) if n_classes == 2 and values == (0, 1) else values, colours


def _is_byte(value: object) -> bool:
    return isinstance(value, int | float) and value in range(256)


def _plain(value: Any) -> Any:
    """Lists and numbers from those of NumPy and torch."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value
