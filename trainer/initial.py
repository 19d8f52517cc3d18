"""`--init-from`: a run that starts with the weights of another model, whose channels and classes may differ."""

from dataclasses import replace

import torch

from trainer.recipes import ARCHITECTURE, Recipe
from trainer.settings import TrainSettings
from unet import UNet
from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint
from unet.errors import UserError

FIRST = "inc.double_conv.0.weight"
"""Weights of the first convolution, (base channels, channels of the image, 3, 3)."""


def load(settings: TrainSettings, recipe: Recipe) -> tuple[Checkpoint | None, Recipe]:
    """The model of --init-from, None without that flag, and the recipe with the model's architecture. Raises UserError
    if the flags ask for another architecture, or for a file that this run will overwrite."""
    path = settings.init_from
    if path is None:
        return None, recipe
    if path.resolve().parent == settings.out.resolve():
        raise UserError(f"--init-from {path}: expected a file outside --out {settings.out}, which this run writes to")
    source = checkpoints.load(path)
    network = source.network
    if settings.base_channels not in (None, network.base_channels):
        raise UserError(
            f"--base-channels {settings.base_channels}: --init-from {path} has {network.base_channels}, which decide "
            "the shape of all its weights; leave --base-channels out"
        )
    if (recipe.variant == "paper") != (network.variant == "paper"):
        needed = "paper" if network.variant == "paper" else "default, quick or tutorial"
        raise UserError(
            f"--recipe {recipe.name}: --init-from {path} is a network of the variant {network.variant}; expected "
            f"--recipe {needed}"
        )
    return source, replace(recipe, **{name: getattr(network, name) for name in ARCHITECTURE})


@torch.no_grad()
def transfer(network: UNet, source: Checkpoint, path: object) -> str:
    """Copy the weights whose shapes match into the network, and adapt the first convolution to its channels; the rest
    stays new. Returns a line that says what was taken from `path`."""
    new: list[str] = []
    weights = network.state_dict()  # shares memory with the network
    for name, weight in weights.items():
        found = source.state_dict[name]
        if found.shape == weight.shape:
            weight.copy_(found)
        elif name == FIRST:  # the mean over channels, repeated: a grey picture in all channels has the same activations
            weight.copy_(found.sum(dim=1, keepdim=True) / weight.shape[1])
        else:
            new.append(name)
    origin = f"{', '.join(source.class_names)}; base {source.network.base_channels}"
    said = f"{len(weights) - len(new)} of {len(weights)} weights from {path} ({origin})"
    if source.network.n_channels != network.config.n_channels:
        said += f"; adapted: inc, from {source.network.n_channels} channels to {network.config.n_channels}"
    return said + (f"; new: {', '.join(sorted({name.partition('.')[0] for name in new}))}" if new else "")
