"""The network that is trained, with its optimiser and the moving average of its weights: one step at a time."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer import world
from trainer.data import Batch
from trainer.losses import IGNORED, loss_of
from trainer.muon import MuonAndAdamW
from trainer.recipes import Recipe
from unet.device import fast_bf16
from unet.engines.graphs import recorded

SURE = 0.9
"""Probability of an answer that is learned from as if it were a label."""


class Average(nn.Module):
    """Exponential moving average (EMA) of a network's weights and buffers, as `module`. It averages over fewer steps at
    the start, so that the initial weights are soon forgotten. (torch's AveragedModel copies its counter to the GPU in
    each step, and so waits for all queued work.)"""

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(network)
        self.register_buffer("n_averaged", torch.tensor(0))
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the network's present weights to the average; counters of batch norm are copied."""
        n = int(self.n_averaged)
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        for averaged, current in zip(self.module.state_dict().values(), network.state_dict().values(), strict=True):
            averaged.lerp_(current, 1 - keep) if averaged.is_floating_point() else averaged.copy_(current)
        self.n_averaged += 1


class Learner:
    """State that a training step changes: network, optimiser, average. All of it is in `last.pth`."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.device = next(network.parameters()).device
        self.memory_format = memory_format(self.device)
        self.network = world.synchronise(network).to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.recipe = recipe
        self.optimizer = make_optimizer(self.network, recipe)
        self.averaged = Average(self.network, recipe.ema) if recipe.ema else None
        self.mixed = recipe.mixed_precision and fast_bf16(self.device)  # forward passes in bfloat16, by autocast
        self.parallel = world.average_gradients(self.network)
        self.on_gpu = isinstance(self.optimizer.param_groups[0]["lr"], Tensor)  # see `make_optimizer`
        self._captured = recorded(self._one_step, self.device) if self.on_gpu and world.size() == 1 else None

    @property
    def result(self) -> nn.Module:
        """The network to validate and save: the moving average, if there is one."""
        return self.averaged.module if self.averaged else self.network

    def step(self, batch: Batch, lr: float, unlabelled: Batch | None = None, consistency: float = 0.0) -> Tensor:
        """One optimiser step at this learning rate; returns the loss before it, a scalar on the device. A non-finite
        loss leaves the weights as they are. On a GPU nothing here waits for the result.

        `unlabelled` crops are learned from with the weight `consistency`: the network, which sees them distorted, shall
        answer what the average of its weights answers for them undistorted, where that is sure (mean teacher, Tarvainen
        and Valpola 2017; confident pixels only, as in FixMatch, Sohn et al. 2020)."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(lr) if self.on_gpu else lr
        images, labels, weights, _ = batch
        if unlabelled and consistency:
            pseudo_labels = self.pseudo_labels(unlabelled.plain)
            loss = self._one_step(images, labels, weights, unlabelled.images, pseudo_labels, consistency)
        else:
            loss = (self._captured or self._one_step)(images, labels, weights)
        if self.averaged:
            self.averaged.update(self.network)
        return loss

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor) -> Tensor:
        """The average's likeliest classes (B, S, S) for images (B, C, S', S'), IGNORED where it is not sure."""
        network = self.result.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits = network(images.to(memory_format=self.memory_format)).float()  # (B, K, S, S)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        probability, classes = logits.softmax(dim=1).max(dim=1)
        labels: Tensor = classes.where(probability > SURE, IGNORED)
        return labels

    def _one_step(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        unlabelled: Tensor | None = None,
        pseudo_labels: Tensor | None = None,
        consistency: float = 0.0,
    ) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        n = len(images)
        images = images if unlabelled is None else torch.cat([images, unlabelled])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits = self.parallel(images.to(memory_format=self.memory_format))  # (B, K, S, S)
        loss = loss_of(logits[:n], labels, weights, self.recipe.loss)
        if pseudo_labels is not None:
            loss = loss + consistency * loss_of(logits[n:], pseudo_labels, None, "ce")
        loss.backward()  # type: ignore[no-untyped-call]
        loss = world.sum(loss.detach()) / world.size()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        if self.on_gpu:
            self.optimizer.found_inf = 1 - loss.isfinite().float()  # type: ignore[union-attr]  # 1: skip the step
        if self.on_gpu or loss.isfinite():
            self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        # only the state: hyperparameters are the recipe's, and where they are stored depends on the device
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]["state"]})
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last, the fastest layout for training, except on a CPU with AVX2 only: there oneDNN's weight gradients
    are three times as slow from channels last."""
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if slow else torch.channels_last


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer | MuonAndAdamW:
    """The recipe's optimiser. AdamW and SGD on a GPU are such that a CUDA graph can hold their step: the learning rate
    is a tensor there, and `found_inf`, another one, skips the step."""
    parameters, lr, decay = list(network.parameters()), recipe.lr, recipe.weight_decay
    if recipe.optimizer == "muon":
        return MuonAndAdamW(network, lr, decay)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, weight_decay=decay, momentum=recipe.momentum)
    gpu = parameters[0].is_cuda
    rate = torch.tensor(lr, device=parameters[0].device) if gpu else lr
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=gpu or None, capturable=gpu)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=recipe.momentum, fused=gpu or None)
