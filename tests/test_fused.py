"""The network of the service computes what the trained one does, in fewer steps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet import fused as fusion
from unet import kernels, winograd
from unet.fused import _CuDNN, _OneDNN, _works, fused
from unet.network import NetworkConfig, UNet

ONEDNN = torch.backends.mkldnn.is_available()
BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
CONFIGS: list[tuple[dict[str, object], tuple[int, int]]] = [
    ({}, (40, 33)),  # odd sizes: a row and a column are lost in the pooling, and padded back
    ({"bilinear": False, "n_channels": 3, "n_classes": 4}, (64, 48)),
    ({"variant": "pytorch-unet", "conv_bias": False}, (47, 32)),
    ({"variant": "pytorch-unet", "bilinear": False}, (33, 47)),
    ({"variant": "paper", "bilinear": False}, (188, 204)),
]


def trained(config: dict[str, object]) -> UNet:
    torch.manual_seed(0)
    network = NetworkConfig(**{"base_channels": 4, **config}).build()  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # so that what comes from below matters
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            module.running_mean = torch.rand(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return network.eval()


def network_and_images(config: dict[str, object], size: tuple[int, int]) -> tuple[UNet, torch.Tensor]:
    network = trained(config)
    return network, torch.rand(2, network.config.n_channels, *size).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("config", [{}, {"variant": "pytorch-unet", "conv_bias": False}, {"bilinear": False}])
def test_folded_computes_the_same_without_batch_norm(config: dict[str, object]) -> None:
    network = trained(config)
    x = torch.rand(2, 1, 40, 33)
    folded = network.folded()
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())  # a copy was folded


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "size"), CONFIGS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("base_channels", [4, 16])
def test_fused_computes_the_same_on_a_gpu(
    config: dict[str, object], size: tuple[int, int], dtype: torch.dtype, close: float, base_channels: int
) -> None:
    network, x = network_and_images({**config, "base_channels": base_channels}, size)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = network(x)
        found = fused(network.folded().to("cuda", memory_format=torch.channels_last), dtype)  # type: ignore[call-overload]
        difference = found(x.to("cuda", dtype)).float().cpu() - expected
    assert difference.norm() < close * expected.norm()
    assert not any(isinstance(module, nn.ReLU) for module in found.modules())


class Imitated:
    """`Kernels`, by torch's own operators."""

    def max_pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        return x.add_(bias[:, None, None])

    def add_coarse_relu(self, x: Tensor, coarse: Tensor, places: Tensor) -> Tensor:
        parities = coarse.unflatten(1, (4, -1)).flip(1)  # the odd row or column of a coarse pixel is its first
        finer = F.pixel_shuffle(parities.transpose(1, 2).flatten(1, 2), 2)
        (height, width), (n_rows, n_columns) = x.shape[2:], places.shape[:2]
        rows, columns = (  # which place each has: the first, inside, or from the last one or two
            torch.tensor([0, *[1] * (side - n + 1), *range(2, n)]) for side, n in ((height, n_rows), (width, n_columns))
        )
        x.add_(finer[:, :, 1 : 1 + height, 1 : 1 + width]).add_(places[rows[:, None], columns].permute(2, 0, 1))
        return x.relu_()


@pytest.mark.parametrize(("config", "size"), CONFIGS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("base_channels", [4, 8])
def test_what_a_gpu_is_asked_for_is_the_same(
    config: dict[str, object],
    size: tuple[int, int],
    dtype: torch.dtype,
    close: float,
    base_channels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without one: its operators are imitated, all that is around them is not."""
    monkeypatch.setattr(fusion, "_kind", lambda *_: _CuDNN)
    monkeypatch.setattr(kernels, "compiled", lambda _: Imitated())
    monkeypatch.setattr(
        torch,
        "cudnn_convolution_relu",
        lambda x, weight, bias, stride, padding, *_: F.conv2d(x, weight, bias, stride, padding).relu_(),
    )
    monkeypatch.setattr(
        torch,
        "cudnn_convolution_add_relu",
        lambda x, weight, to, alpha, bias, stride, padding, *_: (
            F.conv2d(x, weight, bias, stride, padding).add_(to, alpha=alpha).relu_()
        ),
    )
    network, x = network_and_images({**config, "base_channels": base_channels}, size)
    with torch.inference_mode():
        expected = network(x)
        found = fused(network.folded().to(memory_format=torch.channels_last), dtype)(x.to(dtype))  # type: ignore[call-overload]
    assert (found - expected).norm() < close * expected.norm()


@pytest.mark.skipif(not ONEDNN, reason="torch was built without oneDNN")
def test_the_trial_that_a_gpu_has_to_pass_is_one_that_can_be_passed() -> None:
    assert _works(_OneDNN, torch.device("cpu"), torch.float32)


@pytest.mark.gpu
def test_what_comes_from_below_is_never_enlarged_on_a_gpu() -> None:
    network = trained({"bilinear": False, "base_channels": 8}).folded()
    found = fused(network.to("cuda", memory_format=torch.channels_last), torch.bfloat16)  # type: ignore[call-overload]
    ups = (found.up1, found.up2, found.up3, found.up4)
    assert [type(up).__name__ for up in ups] == 4 * ["_ComposedUpOnGPU"]


@pytest.mark.skipif(not ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize(("config", "size"), CONFIGS)
@pytest.mark.parametrize("winograds", [False, True])
def test_fused_computes_the_same(
    config: dict[str, object], size: tuple[int, int], winograds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "pays", lambda _: winograds)
    network, x = network_and_images(config, size)
    with torch.inference_mode():
        expected = network(x)
        found = fused(network.folded().to(memory_format=torch.channels_last), torch.float32)  # type: ignore[call-overload]
        difference = found(x) - expected
    assert difference.abs().max() < 1e-4 * expected.abs().max()
    left = {type(module) for module in found.modules()}
    assert left.isdisjoint({nn.ReLU, nn.MaxPool2d, nn.BatchNorm2d})


@pytest.mark.skipif(not BF16, reason="no instructions for bfloat16 here")
@pytest.mark.parametrize(("config", "size"), CONFIGS)
def test_in_bfloat16_as_far_as_it_goes(config: dict[str, object], size: tuple[int, int]) -> None:
    network, x = network_and_images(config, size)
    with torch.inference_mode():
        exact = network(x)
        folded = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        unfused = (copy.deepcopy(folded).bfloat16()(x.bfloat16()).float() - exact).abs().mean()
        error = (fused(folded, torch.bfloat16)(x.bfloat16()).float() - exact).abs().mean()
    assert 0 < error < 1.2 * unfused


@pytest.mark.skipif(not ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("bilinear", [True, False])
def test_gives_back_what_nobody_needs_any_more(bilinear: bool) -> None:
    network = fused(trained({"bilinear": bilinear}).folded(), torch.float32)
    fine, below = torch.rand(1, 4, 32, 32), torch.rand(1, 4, 16, 16)
    with torch.inference_mode():
        assert network.up4(below, fine).shape == (1, 4, 32, 32)
    assert [x.untyped_storage().size() for x in (fine, below)] == [0, 0]


@pytest.mark.skipif(not ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("base_channels", [1, 3])  # of one channel, any order of memory is channels last
def test_what_comes_from_below_is_never_enlarged(base_channels: int) -> None:
    network, x = network_and_images({"bilinear": False, "base_channels": base_channels}, (33, 48))
    with torch.inference_mode():
        expected = network(x)
        found = fused(network.folded(), torch.float32)
        assert not any(isinstance(module, nn.ConvTranspose2d) for module in found.modules())
        assert (found(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_onednn_does_not_compute_is_left_alone() -> None:
    network = trained({}).folded()
    assert fused(network, torch.float64) is network
    assert any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    assert network(torch.rand(1, 1, 32, 32).double()).shape == (1, 1, 32, 32)
