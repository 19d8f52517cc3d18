"""Image in, probabilities and masks out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.data import sample
from unet import NetworkConfig, Predictor
from unet.device import DeviceChoice, DeviceError
from unet.pixels import PixelError, Preprocessing
from unet.predictor import Prediction

Make = Callable[..., Path]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 5), (16, 16), (33, 70), (64, 48)])
@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("variant", ["tutorial", "paper"])
def test_any_size_comes_back_at_its_size(
    make_checkpoint: Make, size: tuple[int, int], n_classes: int, variant: str
) -> None:
    predictor = Predictor.load(make_checkpoint(n_classes=n_classes, variant=variant, bilinear=False), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    probabilities = predictor(image)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (size if n_classes == 1 else (n_classes, *size))
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    if n_classes > 1:
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    mask = predictor.mask(image)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert set(np.unique(mask).tolist()) <= ({0, 255} if n_classes == 1 else {10, 11, 12})


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_grey_and_colour_fit_every_network(make_checkpoint: Make, shape: tuple[int, ...], n_channels: int) -> None:
    predictor = Predictor.load(make_checkpoint(n_channels=n_channels), device="cpu")
    assert predictor(np.ones(shape, np.uint8)).shape == (20, 30)


def test_the_threshold(make_checkpoint: Make, rng: np.random.Generator) -> None:
    predictor = Predictor.load(make_checkpoint(), device="cpu", precision="fp32")
    image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    probabilities = predictor(image)
    one_of_them = float(probabilities[7, 9])  # above it: not at it
    for threshold in (0.0, float(np.median(probabilities)), one_of_them, 1.0):
        expected = np.where(probabilities > threshold, 255, 0)
        np.testing.assert_array_equal(predictor.mask(image, threshold), expected)
    np.testing.assert_array_equal(predictor.mask(image), np.where(probabilities > 0.5, 255, 0))
    deep = Predictor(predictor.network, Preprocessing(), class_values=(0, 65535))  # trained on 16-bit labels
    np.testing.assert_array_equal(deep.mask(image), predictor.mask(image))
    strange = Predictor(predictor.network, Preprocessing(), class_values=(-(10**38), 1))  # "no data" of a float TIFF
    np.testing.assert_array_equal(strange.mask(image), predictor.mask(image))
    several = Predictor.load(make_checkpoint(n_classes=3), device="cpu")
    with pytest.raises(PixelError, match="3 classes"):
        several.mask(image, 0.5)
    for senseless in (-0.1, 2, float("nan"), float("inf")):
        with pytest.raises(PixelError, match=f"threshold: expected 0..1, found {senseless}"):
            predictor.mask(image, senseless)


def test_the_paper_variant_sees_the_mirrored_surroundings() -> None:
    """What comes out of the padded-by-hand image is what the predictor makes of the image itself."""
    torch.manual_seed(0)
    network = NetworkConfig(bilinear=False, base_channels=4, variant="paper").build().eval()
    image = np.random.default_rng(0).random((100, 68), dtype=np.float32)  # 16 k + 4: nothing to add but the margin
    by_hand = torch.from_numpy(np.pad(image, 92, mode="reflect"))[None, None]
    expected = network(by_hand)[0, 0].sigmoid().detach().numpy()
    np.testing.assert_allclose(Predictor(network, Preprocessing())(image), expected, atol=1e-5)


def test_it_finds_what_it_was_trained_for(trained: Path) -> None:
    predictor = Predictor.load(trained / "best_model.pth", device="cpu")
    image, label = sample.generate(np.random.default_rng(99), size=200)  # never seen in training
    mask = predictor.mask(image)
    inside = 2 * ((mask == 255) & (label == 255)).sum() / ((mask == 255).sum() + (label == 255).sum())
    membrane = 2 * ((mask == 0) & (label == 0)).sum() / ((mask == 0).sum() + (label == 0).sum())
    assert inside > 0.95
    assert membrane > 0.9


@pytest.mark.parametrize("n_classes", [1, 3])
def test_test_time_augmentation_is_the_mean_of_eight_views(make_checkpoint: Make, n_classes: int) -> None:
    predictor = Predictor.load(make_checkpoint(n_classes=n_classes), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 25), dtype=np.uint8)
    views = []
    for turns in range(4):
        turned = np.rot90(image, turns)
        views.append(np.rot90(predictor(turned), -turns, (-2, -1)))
        views.append(np.rot90(np.flip(predictor(np.flip(turned, -1)), -1), -turns, (-2, -1)))
    averaged = predictor(image, tta=True)
    np.testing.assert_allclose(averaged, np.mean(views, axis=0), atol=1e-6)
    np.testing.assert_allclose(predictor(image[::-1], tta=True), np.flip(averaged, -2), atol=1e-6)
    assert np.abs(averaged - predictor(image)).max() > 1e-4


def test_what_is_begun_again_in_smaller_pieces_gives_the_same(make_checkpoint: Make, rng: np.random.Generator) -> None:
    """As when there is no memory for its second piece."""
    predictor = Predictor.load(make_checkpoint(bilinear=False), device="cpu", precision="fp32")
    image = rng.integers(0, 256, (300, 240), dtype=np.uint8)
    expected = predictor(image, tta=True)
    prediction = predictor.start(image, tta=True)
    predictor.compute([prediction.next()])
    predictor.tile = 256
    prediction.restart()
    np.testing.assert_allclose(predictor.run(prediction), expected, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_test_time_augmentation_of_what_a_client_may_ask_for(
    make_checkpoint: Make, n_classes: int, device: DeviceChoice
) -> None:
    """On a GPU the mean over the views is on the other side of the bus."""
    values = (0, 255) if n_classes == 1 else (7, 0, 255)
    predictor = Predictor.load(make_checkpoint(n_classes=n_classes), device, "fp32")
    predictor = Predictor(predictor.network, predictor.preprocessing, class_values=values)
    image = np.random.default_rng(0).integers(0, 256, (40, 25), dtype=np.uint8)
    probabilities = predictor(image, tta=True)
    mask = predictor.mask(image, tta=True)
    np.testing.assert_array_equal(mask, np.array(values)[predictor.to_classes(probabilities)])
    likeliest = probabilities if n_classes == 1 else probabilities.max(axis=0)
    found = predictor.run(predictor.start(image, "probability", tta=True))
    np.testing.assert_allclose(found, likeliest * 255, atol=0.51)


def test_sixteen_bits_and_floats_mean_the_same_as_eight(trained: Path) -> None:
    predictor = Predictor.load(trained / "best_model.pth", device="cpu")
    image, _ = sample.generate(np.random.default_rng(99), size=64)
    expected = predictor(image)
    np.testing.assert_allclose(predictor(image.astype(np.uint16) * 257), expected, atol=1e-3)
    np.testing.assert_allclose(predictor(image / 255), expected, atol=1e-3)


def test_bf16_is_close_to_fp32(trained: Path) -> None:
    image, _ = sample.generate(np.random.default_rng(99), size=128)
    fp32, bf16 = (
        Predictor.load(trained / "best_model.pth", device="cpu", precision=precision).mask(image)
        for precision in ("fp32", "bf16")
    )
    assert (fp32 != bf16).mean() < 0.01


def test_no_gpu_is_said_so(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        Predictor.load(make_checkpoint(), device="cuda")
    assert Predictor.load(make_checkpoint(), device="auto").device.type == "cpu"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"device": "cuda:0"}, "device: expected auto, cpu or cuda, found 'cuda:0'"),
        ({"precision": "fp16"}, "precision: expected auto, fp32, bf16 or int8, found 'fp16'"),
    ],
)
def test_what_is_no_device_or_precision_is_said_so(make_checkpoint: Make, choice: dict[str, Any], said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        Predictor.load(make_checkpoint(), **choice)


@pytest.mark.gpu
def test_the_gpu_finds_the_same(trained: Path) -> None:
    image, _ = sample.generate(np.random.default_rng(99), size=200)
    cpu = Predictor.load(trained / "best_model.pth", device="cpu").mask(image)
    gpu = Predictor.load(trained / "best_model.pth", device="cuda")
    assert gpu.precision == "bf16"
    assert (gpu.mask(image) != cpu).mean() < 0.01


@pytest.mark.parametrize("n_classes", [1, 3])
def test_what_is_computed_together_does_not_mix(
    make_checkpoint: Make, rng: np.random.Generator, n_classes: int
) -> None:
    """Images of one size, of which each asks for something else."""
    predictor = Predictor.load(make_checkpoint(n_classes=n_classes), device="cpu")
    images = [rng.integers(0, 256, (40, 33), dtype=np.uint8) for _ in range(4)]
    middle = float(np.median(predictor(images[3]))) if n_classes == 1 else None

    def started() -> list[Prediction]:
        return [
            predictor.start(images[0], "mask"),
            predictor.start(images[1], "probability"),
            predictor.start(images[2], "probabilities"),
            predictor.start(images[3], "mask", threshold=middle),
        ]

    together = started()
    predictor.compute([each.next() for each in together])
    for found, alone in zip(together, started(), strict=True):
        np.testing.assert_allclose(found.result, predictor.run(alone), atol=1e-6)
    assert n_classes > 1 or 0.4 < (together[3].result == 255).mean() < 0.6
