"""Muon (Jordan et al. 2024) for the hidden convolutions of a network, AdamW for all else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.recipes import Recipe
from unet.device import fast_bf16


def suited(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe, with AdamW instead of Muon where that is not known to be the faster way to a score. Muon multiplies
    matrices in bfloat16: a step takes 1.2 to 1.3 times as long on a CPU that is fast at it, 2.5 times on others. On
    GPUs it was not measured, and cannot be part of a CUDA graph."""
    pays = device.type == "cpu" and fast_bf16(device)
    return recipe if pays or recipe.optimizer != "muon" else replace(recipe, optimizer="adamw")


class MuonAndAdamW:
    """An optimiser as those of torch. Muon's update of a weight (out, in, height, width), seen as a matrix (out, in *
    height * width), has the same length in all directions; it is scaled to the usual size of AdamW's ("Muon is scalable
    for LLM training", Liu et al. 2025), so that both have one learning rate. The first convolution and the last, norms
    and biases are AdamW's, as the authors advise."""

    def __init__(self, network: nn.Module, lr: float, decay: float) -> None:
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
        self.hidden = [module.weight for module in convolutions[1:-1]]
        self.matrices = [nn.Parameter(_matrix(weight.data)) for weight in self.hidden]  # in the weights' memory
        chosen = set(map(id, self.hidden))
        rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(self.matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(rest, lr=lr, weight_decay=decay),
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.hidden:
            weight.grad = None
        self.parts["adamw"].zero_grad(set_to_none)

    def step(self) -> None:
        for matrix, weight in zip(self.matrices, self.hidden, strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, like=weight)
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"state": {name: part.state_dict()["state"] for name, part in self.parts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(part.state_dict() | {"state": state["state"][name]})


def _matrix(values: Tensor, like: Tensor | None = None) -> Tensor:
    """A weight or its gradient (N, ...) as (N, n): columns in the order in which the weight is stored, so that it is
    not copied."""
    like = values if like is None else like
    if like.is_contiguous():
        return values.contiguous().view(len(values), -1)
    return values.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(len(values), -1)
