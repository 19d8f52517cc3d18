"""Weights of other U-Nets: bare state_dicts of the tutorials' network and of Pytorch-UNet.

Channels, classes, width and variant follow from the shapes of the weights. Wrappers' prefixes are removed. Pytorch-UNet
stores its label values among the weights, as `mask_values`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unet.network import NetworkConfig

_BOTTOM = "down4.maxpool_conv.1.double_conv.3.weight"
_EXPECTED = ("inc.double_conv.0.weight", "up1.conv.double_conv.0.weight", _BOTTOM, "outc.conv.weight")
"""Weights that every one of these networks has; all are 4-dimensional."""


def recognise(content: Mapping[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor], tuple[int, ...]]:
    """Network, weights and class values of a bare state_dict. Raises ValueError with the reason for anything else."""
    weights = {_without_prefix(str(name)): value for name, value in content.items() if name != "mask_values"}
    _check(weights, content)
    base_channels, n_channels = weights["inc.double_conv.0.weight"].shape[:2]
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
    return network, weights, _class_values(content.get("mask_values"), n_classes)


def _check(weights: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    if others := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        nested = [name for name in others if isinstance(content.get(name), dict)]
        hint = f"; perhaps its entry {nested[0]!r} is one: torch.save(content[{nested[0]!r}], ...)" if nested else ""
        raise ValueError(
            f"neither a checkpoint of unet-train (no `format`) nor a bare state_dict ({others[0]!r} is no tensor){hint}"
        )
    if missing := [name for name in _EXPECTED if name not in weights]:
        found = next(iter(weights), "nothing")
        raise ValueError(f"not a U-Net of the tutorials or Pytorch-UNet: expected {missing[0]!r}, found {found!r}")
    if flat := [name for name in _EXPECTED if weights[name].ndim != 4]:
        raise ValueError(f"{flat[0]}: expected 4 dimensions, found {tuple(weights[flat[0]].shape)}")


def _without_prefix(name: str) -> str:
    """The weight's own name, without the prefixes of DataParallel (`module.`) and torch.compile (`_orig_mod.`)."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def _class_values(mask_values: object, n_classes: int) -> tuple[int, ...]:
    """The file's label values if they can be values of a mask, else 0, 1, 2 ... (0 and 255 for a binary network)."""
    found = mask_values if isinstance(mask_values, list) else []
    grey = {int(value) for value in found if isinstance(value, int | float) and value in range(256)}
    if len(grey) == len(found) == max(2, n_classes):
        return tuple(int(value) for value in found)
    return (0, 255) if n_classes == 1 else tuple(range(n_classes))
