"""In whole numbers of eight bits, what comes out is nearly the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Serve, picture, png
from torch import nn

from service.__main__ import main
from trainer.data import sample
from unet import NetworkConfig, Predictor, device
from unet.checkpoint import CheckpointError
from unet.device import DeviceError, resolve_precision
from unet.int8 import Convolution, in_int8

pytestmark = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="int8 is for x86 processors with AVX2"
)

Make = Callable[..., Path]


def channels_last(values: list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[None, None].to(memory_format=torch.channels_last)


def test_sums_that_can_be_done_by_hand() -> None:
    x = channels_last([[1, 2, 3], [4, 5, 6], [7, 8, 200]])
    around = torch.ones(1, 1, 3, 3)
    around[0, 0, 1, 1] = -1
    found = Convolution(around, torch.tensor([0.25]))(x, torch.float32)
    expected = [[10.25, 17.25, 10.25], [19.25, 226.25, 212.25], [10.25, 214.25, -180.75]]
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-3)
    rounded = Convolution(around, torch.tensor([0.75]))(x)  # and what is below zero is zero
    assert rounded[0, 0].tolist() == [[11, 18, 11], [20, 227, 213], [11, 215, 0]]
    doubled = Convolution(2 * around)(x)
    assert doubled[0, 0, 1].tolist() == [38, 255, 255]  # as much as fits


def test_the_largest_sums_fit() -> None:
    """All pixels at their largest, all weights, too: where products are added in 16 bits, they must not be cut off."""
    x = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8).to(memory_format=torch.channels_last)
    found = Convolution(torch.ones(3, 64, 1, 1), padding=0)(x, torch.float32)
    np.testing.assert_allclose(found, 64 * 255, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({}, (40, 33)),
        ({"bilinear": False, "n_channels": 3, "n_classes": 4}, (64, 48)),
        ({"variant": "pytorch-unet", "conv_bias": False}, (47, 32)),
        ({"variant": "pytorch-unet", "bilinear": False, "base_channels": 1}, (33, 47)),
    ],
)
def test_the_network_computes_nearly_the_same(config: dict[str, object], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = NetworkConfig(**{"base_channels": 8, **config}).build()  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            module.momentum = None  # the mean of all batches
    x = torch.randn(3, network.config.n_channels, *size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(3):  # so that batch norms know what they will see
            network.train()(x)
        expected = network.eval()(x)
        network = in_int8(network)
        found = network(x)
        assert (found - expected).std() < 0.2 * expected.std()
        torch.testing.assert_close(network(x[1:2])[0], found[1], rtol=0, atol=1e-4)  # whoever is beside it
    assert not any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules())


def test_gives_back_what_nobody_needs_any_more() -> None:
    network = in_int8(NetworkConfig(bilinear=False, base_channels=8).build().eval())
    fine, below = (torch.zeros(1, 8, side, side, dtype=torch.uint8) for side in (32, 16))
    with torch.inference_mode():
        assert network.up4(below, fine).shape == (1, 8, 32, 32)
    assert [x.untyped_storage().size() for x in (fine, below)] == [0, 0]


def test_a_trained_network_finds_the_same(trained: Path, serve: Serve) -> None:
    image, _ = sample.generate(np.random.default_rng(99), size=200)
    exact = Predictor.load(trained / "best_model.pth", device="cpu", precision="fp32").mask(image) > 0
    found = Predictor.load(trained / "best_model.pth", device="cpu", precision="int8").mask(image) > 0
    assert (exact & found).sum() / (exact | found).sum() > 0.99
    with serve(model=trained / "best_model.pth", precision="int8") as client:
        np.testing.assert_array_equal(picture(client.post("/segment", content=png(image)).content) > 0, found)
        assert client.get("/health").json()["precision"] == "int8"


def test_without_batch_norm_it_is_refused(make_checkpoint: Make, serve: Serve) -> None:
    path = make_checkpoint(variant="paper", bilinear=False)
    with pytest.raises(CheckpointError, match=r"paper has no batch norm.*fp32 or bf16"):
        Predictor.load(path, device="cpu", precision="int8")
    with serve(model=path, precision="int8") as client:
        health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert "no batch norm" in health.json()["refused"]


@pytest.mark.parametrize(("kind", "capability"), [("cuda", "AVX2"), ("cpu", "DEFAULT")])
def test_where_it_is_not_computed_it_is_refused(kind: str, capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(device, "device_name", lambda _: "A Processor")
    with pytest.raises(DeviceError, match=r"precision int8: expected device cpu, .* AVX2 .* found A Processor"):
        resolve_precision("int8", torch.device(kind))


def test_the_program_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert main(["--precision", "int8", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("unet-serve: error: precision int8: expected device cpu, an x86")
