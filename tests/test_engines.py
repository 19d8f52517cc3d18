"""Engines compute what the trained network computes."""

import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet.device import DTYPES, Precision
from unet.engines import operators, prepare
from unet.engines.composed_up import ComposedUp
from unet.engines.fused_unet import FusedUNet, FusedUp
from unet.engines.operators import CuDNNConvolution
from unet.engines.plain import Engine
from unet.network import NetworkConfig, UNet, Up

CPU = torch.device("cpu")
CONFIGS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({}, (40, 33)),  # odd sizes: pooling drops a row and a column, which are padded back
    ({"bilinear": False, "n_channels": 3, "n_classes": 4}, (64, 48)),
    ({"bilinear": False, "conv_bias": False}, (47, 33)),
    ({"variant": "pytorch-unet", "conv_bias": False}, (47, 32)),
    ({"variant": "pytorch-unet", "bilinear": False, "n_channels": 3}, (33, 47)),
    ({"variant": "paper", "bilinear": False}, (188, 204)),
]


def has_operators(precision: Precision) -> bool:
    return operators.available(CPU, DTYPES[precision]) is not None


def trained(**config: Any) -> UNet:
    """A network whose every part matters to its output."""
    torch.manual_seed(0)
    network = NetworkConfig(**{"base_channels": 4, **config}).build()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.5, 1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 1)
            module.running_mean = torch.rand(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return network.eval()


def images(network: UNet, size: tuple[int, int]) -> Tensor:
    return torch.rand(2, network.config.n_channels, *size)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("config", "size"), CONFIGS)
@torch.inference_mode()
def test_engine_in_float32_agrees_with_the_network(config: dict[str, Any], size: tuple[int, int]) -> None:
    network = trained(**config)
    x = images(network, size)
    expected = network(x)
    assert expected.std() > 0.01
    assert error(prepare(network, CPU, "fp32")(x), expected) < 1e-5
    assert error(Engine(network.folded(), torch.float32)(x), expected) < 1e-5
    assert torch.equal(network(x), expected)  # it was copied


@pytest.mark.parametrize(("config", "size"), CONFIGS)
@torch.inference_mode()
def test_engine_in_bfloat16_is_as_exact_as_plain_bfloat16(config: dict[str, Any], size: tuple[int, int]) -> None:
    network = trained(**config)
    x = images(network, size)
    expected = network(x)
    plain = Engine(network.folded(), torch.bfloat16)(x) - expected
    logits = prepare(network, CPU, "bf16")(x)
    assert logits.dtype == torch.float32
    found = logits - expected
    assert 0 < found.abs().mean() < 1.2 * plain.abs().mean()
    assert plain.norm() < 0.05 * expected.norm()


@pytest.mark.skipif(not has_operators("fp32"), reason="torch was built without oneDNN")
def test_fused_convolutions_are_used_where_they_exist() -> None:
    engine = prepare(trained(bilinear=False), CPU, "fp32")
    assert isinstance(engine, Engine)
    left = {type(module) for module in engine.network.modules()}
    assert left.isdisjoint({nn.ReLU, nn.MaxPool2d, nn.BatchNorm2d, nn.ConvTranspose2d})


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (5, 6), (7, 9)])
@pytest.mark.parametrize("channels", [2, 6])  # one channel: any order of memory is channels last
@pytest.mark.skipif(not has_operators("fp32"), reason="torch was built without oneDNN")
@torch.inference_mode()
def test_composed_up_convolution_agrees_up_to_the_borders(size: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    up = Up(channels, 3, bilinear=False, norm=False).requires_grad_(False)
    nn.init.normal_(up.up.bias)  # type: ignore[arg-type]
    assert ComposedUp.applies(up)
    convolve = operators.available(CPU, torch.float32)
    assert convolve
    half = channels // 2
    x, skip = torch.randn(2, half, *(side // 2 for side in size)), torch.randn(2, half, *size)
    expected = up(x, skip)
    torch.testing.assert_close(ComposedUp(up, convolve, torch.float32)(x, [skip]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bilinear", [True, False])
@torch.inference_mode()
def test_forward_hooks_see_every_feature_map_intact(bilinear: bool) -> None:
    network = trained(bilinear=bilinear)
    engine = prepare(network, CPU, "fp32")
    assert isinstance(engine, Engine)
    fused = isinstance(engine.network, FusedUNet)
    maps: dict[str, list[Tensor]] = {}
    for name in ("inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4"):
        part = f"{name[:-1]}s.{int(name[-1]) - 1}" if fused and name != "inc" else name
        keep = lambda module, inputs, output, name=name: maps.setdefault(name, []).append(output)  # noqa: E731
        network.get_submodule(name).register_forward_hook(keep)
        engine.network.get_submodule(part).register_forward_hook(keep)
    x = images(network, (48, 32))
    network(x)
    engine(x)
    for name, (expected, found) in maps.items():
        assert error(found, expected) < 1e-5, name


@torch.inference_mode()
def test_skip_connections_are_freed_before_the_last_layer() -> None:
    engine = prepare(trained(), CPU, "fp32")
    assert isinstance(engine, Engine)
    if not isinstance(engine.network, FusedUNet):
        pytest.skip("torch was built without oneDNN")
    first: list[weakref.ref[Tensor]] = []
    freed: list[bool] = []
    engine.network.inc.register_forward_hook(lambda module, inputs, output: first.append(weakref.ref(output)))
    engine.network.outc.register_forward_pre_hook(lambda module, inputs: freed.append(first[0]() is None))
    engine(torch.rand(1, 1, 32, 32))
    assert freed == [True]


@torch.inference_mode()
def test_threads_share_an_engine() -> None:
    network = trained()
    engine = prepare(network, CPU, "fp32")
    inputs = [images(network, (32, 16 * n)) for n in (1, 2, 3, 4)]

    def infer(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return engine(x)

    with ThreadPoolExecutor(4) as threads:
        for found, x in zip(threads.map(infer, inputs), inputs, strict=True):
            assert error(found, network(x)) < 1e-5


def wrong(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return torch.zeros(len(x), 8, *x.shape[2:])


@pytest.mark.parametrize(
    ("mkldnn", "reason"),
    [
        (SimpleNamespace(), "_convolution_pointwise"),
        (SimpleNamespace(_convolution_pointwise=lambda x: x), "positional argument"),
        (SimpleNamespace(_convolution_pointwise=wrong, _convolution_pointwise_=SimpleNamespace(binary=wrong)), "100%"),
    ],
    ids=["operator is missing", "has another signature", "computes wrong results"],
)
@torch.inference_mode()
def test_falls_back_to_the_plain_network(
    mkldnn: SimpleNamespace, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", mkldnn)
    network = trained()
    with caplog.at_level(logging.WARNING):
        engine = prepare(network, CPU, "fp32")
    assert isinstance(engine, Engine)
    assert isinstance(engine.network, UNet)
    assert reason in caplog.text
    x = images(network, (32, 48))
    assert error(engine(x), network(x)) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_device_of_torch_has_the_plain_engine(precision: Precision, caplog: pytest.LogCaptureFixture) -> None:
    """`meta` computes shapes only, and has no operators of its own."""
    meta = torch.device("meta")
    engine = prepare(trained(n_classes=3), meta, precision)
    assert engine(torch.rand(2, 1, 32, 48, device=meta)).shape == (2, 3, 32, 48)
    assert not caplog.records


@pytest.mark.parametrize(("config", "size"), CONFIGS)
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("bf16", 0.05)])
@torch.inference_mode()
def test_engine_of_a_gpu_agrees_with_its_operators_imitated(
    config: dict[str, Any], size: tuple[int, int], precision: Precision, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def relu(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *options).relu_()

    def add_relu(x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor | None, *options: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *options).add_(z, alpha=alpha).relu_()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    monkeypatch.setitem(operators.KINDS, "cpu", CuDNNConvolution)
    monkeypatch.setattr(ComposedUp, "applies", lambda up: False)
    network = trained(**config)
    x = images(network, size)
    expected = network(x)
    engine = prepare(network, CPU, precision)
    assert isinstance(engine, Engine)
    assert isinstance(engine.network, FusedUNet)
    assert isinstance(engine.network.ups[0], FusedUp)
    assert (engine(x) - expected).norm() < close * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "size"), CONFIGS)
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 0.05)])
@torch.inference_mode()
def test_engine_on_a_gpu_agrees_with_the_network(
    config: dict[str, Any], size: tuple[int, int], precision: Precision, close: float
) -> None:
    network = trained(**config, base_channels=16)
    x = images(network, size)
    expected = network(x)
    cuda = torch.device("cuda")
    assert operators.available(cuda, DTYPES[precision])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        engine = prepare(network, cuda, precision)
        for _ in range(3):  # the first call step by step, the others as a CUDA graph
            assert (engine(x.cuda()).cpu() - expected).norm() < close * expected.norm()
