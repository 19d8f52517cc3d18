"""Muon: which weights it moves, in which directions, and where it is used."""

import pytest
import torch
from torch import nn

from trainer import muon
from trainer.muon import MuonAndAdamW, suited
from trainer.recipes import RECIPES
from unet.network import NetworkConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_hidden_convolutions_move_by_as_much_in_all_directions(order: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = NetworkConfig(base_channels=4, bilinear=False, conv_bias=False).build().to(memory_format=order)  # type: ignore[call-overload]
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = MuonAndAdamW(network, lr=1e-3, decay=0.0)
    network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    optimizer.step()
    moved = {name: (weight - before[name]).detach() for name, weight in network.named_parameters()}
    hidden = [name for name, weight in before.items() if weight.ndim == 4][1:-1]
    assert len(hidden) == len(optimizer.hidden) == 21
    for name, change in moved.items():
        if name in hidden:  # Newton and Schulz's five steps come within a third of an orthogonal matrix
            lengths = torch.linalg.svdvals(change.flatten(1))
            assert lengths.max() < 2.5 * lengths.median(), name
            # as large as AdamW's usual steps: 0.2 of the learning rate, root mean square
            assert 0.1e-3 < change.square().mean().sqrt() < 0.3e-3, name
        else:
            assert change.abs().max() == pytest.approx(1e-3, rel=0.01), name  # AdamW's first step


def test_a_gradient_that_is_missing_moves_nothing() -> None:
    network = nn.Sequential(*[nn.Conv2d(2, 2, 3) for _ in range(3)])
    optimizer = MuonAndAdamW(network, lr=1e-3, decay=0.5)
    before = [weight.detach().clone() for weight in network.parameters()]
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("fast", "device", "found"), [(True, CPU, "muon"), (False, CPU, "adamw"), (True, torch.device("cuda"), "adamw")]
)
def test_it_is_for_cpus_that_are_fast_at_bfloat16(
    fast: bool, device: torch.device, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "fast_bf16", lambda device: fast)
    assert suited(RECIPES["default"], device).optimizer == found
    for name in ("quick", "tutorial", "paper"):
        assert suited(RECIPES[name], device) == RECIPES[name]
