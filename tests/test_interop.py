"""Bare state_dicts of the U-Nets in circulation are served as they are, with the masks that their own network makes.

The two networks here are written for this test, after the shapes and names that such files have.
"""

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


class Twice(nn.Module):
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


class Pooled(nn.Module):
    def __init__(self, first: int, last: int, bias: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Twice(first, last, last, bias))


class Raised(nn.Module):
    def __init__(self, up: nn.Module, conv: Twice) -> None:
        super().__init__()
        self.up, self.conv = up, conv


class Foreign(nn.Module):
    """The tutorial's network (`modern=False`), or present-day Pytorch-UNet's."""

    def __init__(self, channels: int, classes: int, bilinear: bool, modern: bool, c: int = 4) -> None:
        super().__init__()
        bias = not modern
        wide = modern and not bilinear  # 16 c at the bottom, halved by each up-convolution
        self.inc = Twice(channels, c, c, bias)
        for i, (first, last) in enumerate(
            [(c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c), (8 * c, (16 if wide else 8) * c)]
        ):
            setattr(self, f"down{i + 1}", Pooled(first, last, bias))
        for i, joined in enumerate([16 * c, 8 * c, 4 * c, 2 * c]):
            last = joined // 2 if wide else max(joined // 4, c)
            up: nn.Module = nn.ConvTranspose2d(joined if wide else joined // 2, joined // 2, 2, stride=2)
            if bilinear:
                up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            middle = joined // 2 if modern and bilinear else last
            setattr(self, f"up{i + 1}", Raised(up, Twice(joined, last, middle, bias)))
        self.outc = nn.Module()
        self.outc.conv = nn.Conv2d(c, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.inc.double_conv(x)]
        for name in ("down1", "down2", "down3", "down4"):
            pool, twice = getattr(self, name).maxpool_conv
            levels.append(twice.double_conv(pool(levels[-1])))
        x = levels.pop()
        for name in ("up1", "up2", "up3", "up4"):
            step, skip = getattr(self, name), levels.pop()
            x = step.up(x)
            dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            x = step.conv.double_conv(torch.cat([skip, x], 1))
        return self.outc.conv(x)  # type: ignore[operator, no-any-return]


def foreign(channels: int, classes: int, bilinear: bool, modern: bool) -> Foreign:
    torch.manual_seed(3)
    network = Foreign(channels, classes, bilinear, modern)
    with torch.no_grad():  # as after some training: statistics that are not 0 and 1
        for _ in range(3):
            network.train()(torch.rand(2, channels, 48, 48))
        logits = network.eval()(torch.rand(1, channels, 48, 48))
        network.outc.conv.bias -= logits.flatten(2).median(dim=2).values[0]  # every class gets its share of the mask
    return network


def own_probabilities(network: Foreign, image: np.ndarray, scale: float) -> np.ndarray:
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
def test_equal_to_the_networks_own_forward_pass(
    tmp_path: Path,
    rng: np.random.Generator,
    modern: bool,
    bilinear: bool,
    channels: int,
    classes: int,
    size: tuple[int, int],
) -> None:
    network = foreign(channels, classes, bilinear, modern)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    image = rng.integers(0, 256, size if channels == 1 else (*size, 3), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "bare.pth", device="cpu", precision="fp32")
    expected = own_probabilities(network, image, scale=1)
    np.testing.assert_allclose(predictor(image), expected, atol=1e-5)
    mask = np.where(expected > 0.5, 255, 0) if classes == 1 else expected.argmax(0)
    assert (predictor.mask(image) != mask).mean() < 0.001  # a probability of exactly a half may fall on either side


def wrapped(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "change",
    [
        wrapped("module."),
        wrapped("_orig_mod."),
        wrapped("module._orig_mod."),
        wrapped("_orig_mod.module."),
        lambda weights: {**weights, "mask_values": [0, 255]},
        lambda weights: {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
        },
    ],
    ids=["DataParallel", "compiled", "both", "both otherwise", "mask_values", "half precision"],
)
def test_wrappings(
    tmp_path: Path, rng: np.random.Generator, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    network = foreign(1, 1, bilinear=True, modern=True)
    torch.save(change(network.state_dict()), tmp_path / "bare.pth")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "bare.pth", device="cpu", precision="fp32")
    np.testing.assert_allclose(predictor(image), own_probabilities(network, image, 1), atol=0.01)


def test_mask_values_are_the_values_of_the_mask(tmp_path: Path, rng: np.random.Generator) -> None:
    network = foreign(1, 2, bilinear=True, modern=True)
    torch.save({**network.state_dict(), "mask_values": [0, 200]}, tmp_path / "bare.pth")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "bare.pth", device="cpu", precision="fp32")
    expected = np.array([0, 200])[own_probabilities(network, image, 1).argmax(0)]
    assert (predictor.mask(image) != expected).mean() < 0.001
    assert len(np.unique(expected)) == 2


@pytest.mark.parametrize(
    ("mask_values", "class_values"),
    [
        ([0.0, 255.0], (0, 255)),
        ([False, True], (0, 1)),
        ([0, 300], (0, 1)),
        ([7, 7], (0, 1)),
        ([[0, 0], [9, 9]], (0, 1)),
    ],
)
def test_mask_values_count_if_a_mask_can_have_them(
    tmp_path: Path, mask_values: list[Any], class_values: tuple[int, int]
) -> None:
    network = foreign(1, 2, bilinear=True, modern=True)
    torch.save({**network.state_dict(), "mask_values": mask_values}, tmp_path / "bare.pth")
    assert Predictor.load(tmp_path / "bare.pth", device="cpu").class_values == class_values


def test_files_of_the_tutorial_see_0_to_255_when_the_setting_says_so(
    tmp_path: Path, rng: np.random.Generator, serve: Serve
) -> None:
    network = foreign(1, 1, bilinear=True, modern=False)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    expected = np.rint(own_probabilities(network, image, scale=255) * 255)
    assert np.abs(expected - np.rint(own_probabilities(network, image, scale=1) * 255)).max() > 5  # it matters
    with serve(model=tmp_path / "bare.pth", input_range="0-255", precision="fp32") as client:
        answer = client.post("/segment?output=probability", content=png(image))
        assert answer.status_code == 200
        assert np.abs(picture(answer.content) - expected).max() <= 1
        health = client.get("/health").json()
    assert health["model"]["epoch"] is None
    assert health["model"]["classes"] == [0, 255]
