"""The network: number of parameters, shapes, initial weights, drop-out."""

import pytest
import torch
from torch import nn

from unet.network import NetworkConfig, UNet


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ({}, 13.394),
        ({"variant": "pytorch-unet", "conv_bias": False}, 17.262),
        ({"variant": "pytorch-unet", "conv_bias": False, "bilinear": False}, 31.036),
        ({"variant": "paper", "bilinear": False}, 31.031),
    ],
)
def test_each_variant_has_the_published_number_of_parameters(config: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        network = NetworkConfig(**config).build()  # type: ignore[arg-type]
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert n_parameters / 1e6 == pytest.approx(millions, abs=0.0005)


def test_channels_per_level_equal_those_of_the_tutorial() -> None:
    with torch.device("meta"):
        convolutions = {n: tuple(m.weight.shape[:2]) for n, m in UNet().named_modules() if isinstance(m, nn.Conv2d)}
    steps = ["inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4", "outc"]
    last = {step: [shape for name, shape in convolutions.items() if name.startswith(step)][-1][0] for step in steps}
    assert list(last.values()) == [64, 128, 256, 512, 512, 256, 128, 64, 64, 1]


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("variant", ["tutorial", "pytorch-unet"])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (47, 64), (572, 16)])
def test_padded_variants_keep_height_and_width(bilinear: bool, variant: str, size: tuple[int, int]) -> None:
    network = UNet(3, 2, bilinear, base_channels=2, variant=variant).eval()  # type: ignore[arg-type]
    assert network(torch.randn(2, 3, *size)).shape == (2, 2, *size)


@pytest.mark.parametrize(("side", "out"), [(572, 388), (188, 4), (204, 20)])
def test_the_paper_variant_loses_a_constant_border(side: int, out: int) -> None:
    network = UNet(bilinear=False, base_channels=2, variant="paper").eval()
    assert network(torch.randn(1, 1, side, 188)).shape == (1, 1, out, 4)
    assert side - out == 2 * network.margin


def test_the_paper_variant_has_he_initialisation_and_no_batch_norm() -> None:
    torch.manual_seed(0)
    network = UNet(bilinear=False, base_channels=16, variant="paper")
    kinds = {type(module) for module in network.modules()}
    assert nn.BatchNorm2d not in kinds
    weight = network.down4.maxpool_conv[1].double_conv[2].weight  # type: ignore[index, union-attr]
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)  # type: ignore[union-attr, operator]


def test_dropout_acts_at_the_bottom_and_only_in_training() -> None:
    torch.manual_seed(0)
    network = UNet(base_channels=2)
    network.dropout.p = 0.5
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    network.dropout.register_forward_hook(lambda _, given, out: calls.append((given[0], out)))
    x = torch.randn(4, 1, 64, 64)
    network(x)
    network.eval()(x)
    (given, dropped), (in_evaluation, unchanged) = calls
    assert given.shape == (4, 16, 4, 4)
    assert 0.4 < (dropped[given > 0] == 0).float().mean() < 0.6
    assert unchanged is in_evaluation


@pytest.mark.parametrize("bilinear", [True, False])
def test_every_parameter_gets_a_gradient(bilinear: bool) -> None:
    network = UNet(bilinear=bilinear, base_channels=2)
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    weights = [p for p in network.parameters() if p.ndim == 4]
    assert all(p.grad.abs().sum() > 0 for p in weights)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"n_channels": 0}, "n_channels"),
        ({"base_channels": 1.5}, "base_channels"),
        ({"variant": "nested"}, "variant"),
        ({"variant": "paper"}, "bilinear=False"),
    ],
)
def test_an_invalid_configuration_is_refused_by_field_name(config: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NetworkConfig(**config)  # type: ignore[arg-type]
