"""Files of other U-Nets: bare state_dicts give the probabilities of their own network.

The two networks here are written for this test, with the shapes and names of published files.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Serve, picture, png
from torch import Tensor, nn

from unet import Predictor
from unet.checkpoint import CheckpointError


class DoubleConv(nn.Module):
    def __init__(self, first: int, last: int, middle: int, bias: bool) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(first, middle, 3, padding=1, bias=bias),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, last, 3, padding=1, bias=bias),
            nn.BatchNorm2d(last),
            nn.ReLU(),
        )


class Down(nn.Module):
    def __init__(self, first: int, last: int, bias: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(first, last, last, bias))


class Up(nn.Module):
    def __init__(self, up: nn.Module, conv: DoubleConv) -> None:
        super().__init__()
        self.up, self.conv = up, conv


class OtherUNet(nn.Module):
    """U-Net of the tutorials (`modern=False`), or of today's Pytorch-UNet."""

    def __init__(self, channels: int, classes: int, bilinear: bool, modern: bool, c: int = 4) -> None:
        super().__init__()
        bias = not modern
        wide = modern and not bilinear  # 16 c at the bottom, halved by each up-convolution
        self.inc = DoubleConv(channels, c, c, bias)
        for i, (first, last) in enumerate(
            [(c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c), (8 * c, (16 if wide else 8) * c)]
        ):
            setattr(self, f"down{i + 1}", Down(first, last, bias))
        for i, joined in enumerate([16 * c, 8 * c, 4 * c, 2 * c]):
            last = joined // 2 if wide else max(joined // 4, c)
            up: nn.Module = nn.ConvTranspose2d(joined if wide else joined // 2, joined // 2, 2, stride=2)
            if bilinear:
                up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            middle = joined // 2 if modern and bilinear else last
            setattr(self, f"up{i + 1}", Up(up, DoubleConv(joined, last, middle, bias)))
        self.outc = nn.Module()
        self.outc.conv = nn.Conv2d(c, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.inc.double_conv(x)]
        for name in ("down1", "down2", "down3", "down4"):
            pool, conv = getattr(self, name).maxpool_conv
            levels.append(conv.double_conv(pool(levels[-1])))
        x = levels.pop()
        for name in ("up1", "up2", "up3", "up4"):
            step, skip = getattr(self, name), levels.pop()
            x = step.up(x)
            dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            x = step.conv.double_conv(torch.cat([skip, x], 1))
        return self.outc.conv(x)  # type: ignore[operator, no-any-return]


def random_network(channels: int, classes: int, bilinear: bool, modern: bool) -> OtherUNet:
    torch.manual_seed(3)
    network = OtherUNet(channels, classes, bilinear, modern)
    with torch.no_grad():  # some steps of batch norm, so that its statistics are not 0 and 1
        for _ in range(3):
            network.train()(torch.rand(2, channels, 48, 48))
        logits = network.eval()(torch.rand(1, channels, 48, 48))
        network.outc.conv.bias -= logits.flatten(2).median(dim=2).values[0]  # so that no class covers the whole mask
    return network


def expected_probabilities(network: OtherUNet, image: np.ndarray, scale: float) -> np.ndarray:
    x = torch.from_numpy(image.astype(np.float32) / 255 * scale)
    x = x[None, None] if x.ndim == 2 else x.permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = network(x)[0]
    return (logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(0)).numpy()


@pytest.mark.parametrize("size", [(64, 64), (53, 71), (16, 16)])
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("modern", [False, True], ids=["tutorial", "pytorch-unet"])
def test_probabilities_equal_those_of_the_networks_own_forward_pass(
    tmp_path: Path,
    rng: np.random.Generator,
    modern: bool,
    bilinear: bool,
    channels: int,
    classes: int,
    size: tuple[int, int],
) -> None:
    network = random_network(channels, classes, bilinear, modern)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    image = rng.integers(0, 256, size if channels == 1 else (*size, 3), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "bare.pth", device="cpu", precision="fp32")
    expected = expected_probabilities(network, image, scale=1)
    np.testing.assert_allclose(predictor(image), expected, atol=1e-5)
    mask = np.where((expected if classes == 1 else expected[1]) > 0.5, 255, 0)
    assert (predictor.mask(image) != mask).mean() < 0.001  # rounding at probabilities near 0.5


def prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def lightning(weights: dict[str, Any]) -> dict[str, Any]:
    """A `.ckpt`: the module's own tensors are beside the network's."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed("model.")(weights), "loss_fn.weight": torch.ones(2)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9), "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": np.float64(0.1)}]}],
        "hyper_parameters": {"lr": 0.1, "seed": np.int64(7)},
    }


@pytest.mark.parametrize(
    "change",
    [
        lightning,
        prefixed("model.net."),
        lambda weights: {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
        lambda weights: {"net": {"weights": prefixed("module.")(weights)}, "rng": np.arange(9, dtype=np.uint32)},
        lambda weights: {"n_averaged": torch.tensor(3), **prefixed("module.")(weights)},
        lambda weights: {name: tensor for name, tensor in weights.items() if "num_batches" not in name},
        lambda weights: {**weights, "epoch": 3},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        lambda weights: {**weights, "mask_values": [0, 255]},
        lambda weights: {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
        },
        lambda weights: {name: tensor.half() for name, tensor in weights.items()},
    ],
    ids=[
        *("Lightning", "nested modules", "training state", "nested dicts", "AveragedModel", "uncounted batches"),
        *("epoch", "DataParallel", "compiled", "both", "both, swapped", "mask_values", "half precision"),
        "half counters",
    ],
)
def test_prefixes_mask_values_and_half_precision_are_accepted(
    tmp_path: Path, rng: np.random.Generator, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    network = random_network(1, 1, bilinear=True, modern=True)
    torch.save(change(network.state_dict()), tmp_path / "bare.pth")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "bare.pth", device="cpu", precision="fp32")
    np.testing.assert_allclose(predictor(image), expected_probabilities(network, image, 1), atol=0.01)


def test_masks_have_the_values_of_mask_values(tmp_path: Path, rng: np.random.Generator) -> None:
    network = random_network(1, 2, bilinear=True, modern=True)
    torch.save({**network.state_dict(), "mask_values": [0, 200]}, tmp_path / "bare.pth")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "bare.pth", device="cpu", precision="fp32")
    expected = np.array([0, 200])[expected_probabilities(network, image, 1).argmax(0)]
    assert (predictor.mask(image) != expected).mean() < 0.001
    assert len(np.unique(expected)) == 2


@pytest.mark.parametrize(
    ("mask_values", "class_values"),
    [
        ([0.0, 255.0], (0, 255)),
        ([0, 1], (0, 255)),
        ([False, True], (0, 255)),
        ([np.int64(0), np.int64(200)], (0, 200)),
        ([np.uint8(0), np.float32(200)], (0, 200)),
        (np.array([0, 200]), (0, 200)),
        (torch.tensor([0, 200]), (0, 200)),
        ([0, 300], (0, 255)),
        ([7, 7], (0, 255)),
        ([[0, 0], [9, 9]], (0, 255)),
        (None, (0, 255)),
    ],
)
def test_class_values_of_two_classes(tmp_path: Path, mask_values: list[Any], class_values: tuple[int, int]) -> None:
    network = random_network(1, 2, bilinear=True, modern=True)
    torch.save({**network.state_dict(), "mask_values": mask_values}, tmp_path / "bare.pth")
    assert Predictor.load(tmp_path / "bare.pth", device="cpu").class_values == class_values


def test_colours_of_classes(tmp_path: Path) -> None:
    """Pytorch-UNet's `mask_values` of RGB masks, with NumPy's integers or a fourth channel, too."""
    black, red, green = [0, 0, 0], [np.uint8(255), 0, 0], [0, 255, 0, 255]
    for values, class_values in (([black, red], (0, 255)), ([black, red, green], (0, 1, 2))):
        network = random_network(1, len(values), bilinear=True, modern=True)
        torch.save({**network.state_dict(), "mask_values": values}, tmp_path / "bare.pth")
        predictor = Predictor.load(tmp_path / "bare.pth", device="cpu")
        assert predictor.class_values == class_values
        assert predictor.class_colours == ((0, 0, 0), (255, 0, 0), (0, 255, 0))[: len(values)]


def test_the_service_scales_pixels_to_the_input_range_setting(
    tmp_path: Path, rng: np.random.Generator, serve: Serve
) -> None:
    network = random_network(1, 1, bilinear=True, modern=False)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    expected = np.rint(expected_probabilities(network, image, scale=255) * 255)
    assert (
        np.abs(expected - np.rint(expected_probabilities(network, image, scale=1) * 255)).max() > 5
    )  # the setting makes a difference
    with serve(model=tmp_path / "bare.pth", input_range="0-255", precision="fp32") as client:
        answer = client.post("/segment?output=probability", content=png(image))
        assert answer.status_code == 200
        assert np.abs(picture(answer.content) - expected).max() <= 1
        health = client.get("/health").json()
    assert health["model"]["epoch"] is None
    assert [each["value"] for each in health["model"]["classes"]] == [0, 255]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: {}, "neither a checkpoint .* found nothing"),
        (lambda _: {"epoch": 3}, "with or without a prefix, found 'epoch'"),
        (lambda _: {"model": {"encoder.conv.weight": torch.ones(2)}}, "found 'encoder.conv.weight'"),
        (
            lambda weights: {"model": weights, "ema": dict(weights)},
            r"expected one network, found content\['model'\] \(inc\) and content\['ema'\] \(inc\)",
        ),
        (
            lambda weights: prefixed("teacher.")(weights) | prefixed("student.")(weights),
            r"expected one network, found content \(teacher.inc\) and content \(student.inc\)",
        ),
        (
            lambda weights: {**prefixed("unet.")(weights), "head.weight": torch.ones(1)},
            r"found 'head.weight', .* torch.save\(net.unet.state_dict\(\), ...\)",
        ),
        (lambda weights: {k: v for k, v in weights.items() if k != "outc.conv.weight"}, "expected 'outc.conv.weight'"),
        (lambda weights: {**weights, "outc.conv.weight": torch.zeros(7)}, r"expected 4 dimensions, found \(7,\)"),
        (lambda weights: {**weights, "outc.conv.weight": torch.zeros(300, 4, 1, 1)}, "at most 256.* found 300"),
        (lambda _: nn.Conv2d(1, 1, 1).state_dict(), "found 'weight', 'bias'"),
        (lambda weights: {name: weight.to(torch.complex64) for name, weight in weights.items()}, "found .* complex"),
    ],
)
def test_weights_that_fit_no_network_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    torch.save(change(random_network(1, 1, bilinear=True, modern=True).state_dict()), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=reason):
        Predictor.load(tmp_path / "bare.pth", device="cpu")


def test_files_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    library = pytest.importorskip("safetensors.torch")
    network = random_network(1, 2, bilinear=True, modern=True)
    library.save_file(prefixed("model.")(network.state_dict()), tmp_path / "net.safetensors")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "net.safetensors", device="cpu", precision="fp32")
    np.testing.assert_allclose(predictor(image), expected_probabilities(network, image, 1), atol=1e-5)
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        Predictor.load(tmp_path / "half.safetensors", device="cpu")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if it were not installed
    with pytest.raises(CheckpointError, match=r"pip install safetensors, or write them with torch.save"):
        Predictor.load(tmp_path / "net.safetensors", device="cpu")


def test_8_bit_float_weights_become_float32(tmp_path: Path) -> None:
    weights = random_network(1, 1, bilinear=True, modern=True).state_dict()
    stored = {
        name: each.to(torch.float8_e4m3fn) if each.is_floating_point() else each for name, each in weights.items()
    }
    torch.save(stored, tmp_path / "bare.pth")
    network = Predictor.load(tmp_path / "bare.pth", device="cpu").network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
