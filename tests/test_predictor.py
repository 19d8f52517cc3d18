"""Prediction: probabilities and masks of images, test-time augmentation, and batches of pieces."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from trainer.data import sample
from unet import NetworkConfig, Predictor
from unet import checkpoint as checkpoints
from unet.pixels import PixelError, Preprocessing
from unet.prediction import Prediction

Make = Callable[..., Path]


def finish(predictor: Predictor, prediction: Prediction) -> np.ndarray:
    """The result, computed one piece at a time."""
    while not prediction.finished:
        predictor.compute([prediction.next()])
    return prediction.result


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 5), (16, 16), (33, 70), (64, 48)])
@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("variant", ["tutorial", "paper"])
def test_results_have_the_size_of_the_image(
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
def test_every_network_takes_grey_and_colour(make_checkpoint: Make, shape: tuple[int, ...], n_channels: int) -> None:
    predictor = Predictor.load(make_checkpoint(n_channels=n_channels), device="cpu")
    assert predictor(np.ones(shape, np.uint8)).shape == (20, 30)


def test_a_model_of_borders_is_binary_for_all_but_objects(make_checkpoint: Make, rng: np.random.Generator) -> None:
    """Borders belong to objects."""
    network = Predictor.load(make_checkpoint(n_classes=3), device="cpu").network
    image = rng.integers(0, 256, (40, 33), dtype=np.uint8)
    background, inside, border = Predictor(network, Preprocessing(), class_values=(0, 1, 2))(image)
    predictor = Predictor(network, Preprocessing(), objects=True)
    for tta in (False, True):
        found = predictor.predict(image, "objects", tta=tta)
        assert (found.shape, found.dtype) == ((2, 40, 33), np.float32)
        np.testing.assert_array_equal(predictor(image, tta=tta), found[0])
        np.testing.assert_array_equal(finish(predictor, predictor.start(image, "objects", tta=tta)), found)
        np.testing.assert_array_equal(predictor.mask(image, 0.6, tta=tta), np.where(found[0] > 0.6, 255, 0))
        grey = predictor.predict(image, "probability", tta=tta)
        np.testing.assert_allclose(grey, found[0] * 255, atol=0.51)
    found = predictor.predict(image, "objects")
    np.testing.assert_allclose(found[0], inside + border, atol=1e-6)
    np.testing.assert_allclose(found[1], inside, atol=1e-6)
    np.testing.assert_array_equal(predictor.to_classes(found[0]), background < 0.5)


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("scale", [0.5, 0.3, 2])
def test_probabilities_of_a_resized_image_are_resized_back(
    make_checkpoint: Make, rng: np.random.Generator, n_classes: int, scale: float
) -> None:
    network = Predictor.load(make_checkpoint(n_classes=n_classes), device="cpu").network
    values = (0, 255) if n_classes == 1 else (1, 2, 3)
    plain = Predictor(network, Preprocessing(standardise=True), class_values=values)
    scaled = Predictor(network, Preprocessing(standardise=True, scale=scale), class_values=values)
    image = rng.integers(0, 256, (50, 37), dtype=np.uint8)
    size = max(1, round(37 * scale)), max(1, round(50 * scale))
    shrink, grow = (cv2.INTER_AREA, cv2.INTER_LINEAR)[:: 1 if scale < 1 else -1]
    small = plain(cv2.resize(image, size, interpolation=shrink)).reshape(n_classes, *size[::-1])
    expected = np.stack([cv2.resize(plane, (37, 50), interpolation=grow) for plane in small])
    np.testing.assert_allclose(scaled(image).reshape(n_classes, 50, 37), expected, atol=1e-6)
    for wanted in ("mask", "probability", "probabilities", "objects"):
        for tta in (False, True):
            answer = scaled.predict(image, wanted, tta=tta)
            assert answer.shape[-2:] == (50, 37)
            np.testing.assert_array_equal(finish(scaled, scaled.start(image, wanted, tta=tta)), answer)
    mask = np.array(values)[scaled.to_classes(scaled(image))]
    np.testing.assert_array_equal(scaled.mask(image), mask)


def test_pixels_without_data_stay_background_when_resized(make_checkpoint: Make, rng: np.random.Generator) -> None:
    network = Predictor.load(make_checkpoint(n_classes=3), device="cpu").network
    image = rng.random((40, 40), dtype=np.float32)
    image[:, 30:] = np.nan
    predictor = Predictor(network, Preprocessing(standardise=True, scale=0.5), objects=True)
    found = predictor.predict(image, "objects")
    assert (found[:, :, 30:] == 0).all()
    assert (found[:, :, :30] > 0).all()


def test_the_mask_is_the_thresholded_probability(make_checkpoint: Make, rng: np.random.Generator) -> None:
    predictor = Predictor.load(make_checkpoint(), device="cpu", precision="fp32")
    image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    probabilities = predictor(image)
    equal = float(probabilities[7, 9])  # foreground is above the threshold, not equal to it
    for threshold in (0.0, float(np.median(probabilities)), equal, 1.0):
        expected = np.where(probabilities > threshold, 255, 0)
        np.testing.assert_array_equal(predictor.mask(image, threshold), expected)
    np.testing.assert_array_equal(predictor.mask(image), np.where(probabilities > 0.5, 255, 0))


def test_binary_masks_are_0_and_255_whatever_the_label_values(make_checkpoint: Make, rng: np.random.Generator) -> None:
    predictor = Predictor.load(make_checkpoint(), device="cpu", precision="fp32")
    image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    for class_values in ((0, 65535), (-(10**38), 1)):  # 16-bit labels; "no data" in a float TIFF
        other = Predictor(predictor.network, Preprocessing(), class_values=class_values)
        np.testing.assert_array_equal(other.mask(image), predictor.mask(image))


@pytest.mark.parametrize("threshold", [-0.1, 2, float("nan"), float("inf")])
def test_a_threshold_outside_0_to_1_is_refused(make_checkpoint: Make, threshold: float) -> None:
    predictor = Predictor.load(make_checkpoint(), device="cpu")
    with pytest.raises(PixelError, match=f"threshold: expected 0..1, found {threshold}"):
        predictor.mask(np.zeros((16, 16), np.uint8), threshold)


def test_a_threshold_for_several_classes_is_refused(make_checkpoint: Make) -> None:
    predictor = Predictor.load(make_checkpoint(n_classes=3), device="cpu")
    with pytest.raises(PixelError, match="threshold: expected none, as this model tells 3 classes apart"):
        predictor.mask(np.zeros((16, 16), np.uint8), 0.5)


def test_the_paper_variant_gets_a_mirrored_margin() -> None:
    """The network's output for an image padded by hand is the predictor's for the image itself."""
    torch.manual_seed(0)
    network = NetworkConfig(bilinear=False, base_channels=4, variant="paper").build().eval()
    image = np.random.default_rng(0).random((100, 68), dtype=np.float32)  # sides of 16 k + 4: only the margin is added
    padded = torch.from_numpy(np.pad(image, 92, mode="reflect"))[None, None]
    expected = network(padded)[0, 0].sigmoid().detach().numpy()
    np.testing.assert_allclose(Predictor(network, Preprocessing())(image), expected, atol=1e-5)


def test_a_trained_model_segments_a_new_image(trained: Path) -> None:
    predictor = Predictor.load(trained / "best_model.pth", device="cpu")
    image, label = sample.generate(np.random.default_rng(99), size=200)
    mask = predictor.mask(image)
    inside = 2 * ((mask == 255) & (label == 255)).sum() / ((mask == 255).sum() + (label == 255).sum())
    membrane = 2 * ((mask == 0) & (label == 0)).sum() / ((mask == 0).sum() + (label == 0).sum())
    assert inside > 0.95
    assert membrane > 0.9


@pytest.mark.parametrize("n_classes", [1, 3])
def test_time_augmentation_is_the_mean_over_eight_views(make_checkpoint: Make, n_classes: int) -> None:
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


def test_the_probability_of_a_class(make_checkpoint: Make) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 25), dtype=np.uint8)
    several = Predictor.load(make_checkpoint(n_classes=4), device="cpu")
    for k, name in enumerate(several.class_names):
        found = several.predict(image, "probability", class_name=name)
        np.testing.assert_array_equal(found, (several(image)[k] * 255).round())
    binary = Predictor.load(make_checkpoint(), device="cpu")
    for name, expected in (("foreground", binary(image)), ("background", 1 - binary(image))):
        found = binary.predict(image, "probability", class_name=name)
        np.testing.assert_array_equal(found, (expected * np.float32(255)).round())
    with pytest.raises(PixelError, match="class: expected background or foreground, found 'cell'"):
        binary.predict(image, "probability", class_name="cell")
    with pytest.raises(PixelError, match="class: expected with the output probability only"):
        binary.predict(image, "mask", class_name="foreground")


def test_images_with_an_up_are_mirrored_only(make_checkpoint: Make) -> None:
    checkpoint = checkpoints.load(make_checkpoint())
    upright = replace(checkpoint, preprocessing=replace(checkpoint.preprocessing, upright=True))
    predictor = Predictor.from_checkpoint(upright, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 25), dtype=np.uint8)
    both = [predictor(image), predictor(image[:, ::-1])[:, ::-1]]
    np.testing.assert_allclose(predictor(image, tta=True), np.mean(both, axis=0), atol=1e-6)


def test_a_prediction_restarted_with_smaller_tiles_has_the_same_result(
    make_checkpoint: Make, rng: np.random.Generator
) -> None:
    """As the service does when memory runs out."""
    predictor = Predictor.load(make_checkpoint(bilinear=False), device="cpu", precision="fp32")
    image = rng.integers(0, 256, (300, 240), dtype=np.uint8)
    expected = predictor(image, tta=True)
    prediction = predictor.start(image, tta=True)
    predictor.compute([prediction.next()])
    predictor.tile = 256
    prediction.restart()
    np.testing.assert_allclose(finish(predictor, prediction), expected, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_masks_and_probability_images_follow_from_augmented_probabilities(
    make_checkpoint: Make, n_classes: int, device: str
) -> None:
    values = (0, 255) if n_classes == 1 else (7, 0, 255)
    predictor = Predictor.load(make_checkpoint(n_classes=n_classes), device, "fp32")
    predictor = Predictor(predictor.network, predictor.preprocessing, class_values=values)
    image = np.random.default_rng(0).integers(0, 256, (40, 25), dtype=np.uint8)
    probabilities = predictor(image, tta=True)
    mask = predictor.mask(image, tta=True)
    np.testing.assert_array_equal(mask, np.array(values)[predictor.to_classes(probabilities)])
    likeliest = probabilities if n_classes == 1 else probabilities.max(axis=0)
    grey = predictor.predict(image, "probability", tta=True)
    np.testing.assert_allclose(grey, likeliest * 255, atol=0.51)


def test_16_bit_and_float_images_give_the_probabilities_of_8_bit_ones(trained: Path) -> None:
    predictor = Predictor.load(trained / "best_model.pth", device="cpu")
    image, _ = sample.generate(np.random.default_rng(99), size=64)
    expected = predictor(image)
    np.testing.assert_allclose(predictor(image.astype(np.uint16) * 257), expected, atol=1e-3)
    np.testing.assert_allclose(predictor(image / 255), expected, atol=1e-3)


def test_bf16_masks_are_close_to_fp32(trained: Path) -> None:
    image, _ = sample.generate(np.random.default_rng(99), size=128)
    fp32, bf16 = (
        Predictor.load(trained / "best_model.pth", device="cpu", precision=precision).mask(image)
        for precision in ("fp32", "bf16")
    )
    assert (fp32 != bf16).mean() < 0.01


@pytest.mark.gpu
def test_gpu_masks_are_close_to_cpu_masks(trained: Path) -> None:
    image, _ = sample.generate(np.random.default_rng(99), size=200)
    cpu = Predictor.load(trained / "best_model.pth", device="cpu").mask(image)
    gpu = Predictor.load(trained / "best_model.pth", device="cuda")
    assert gpu.precision == "bf16"
    assert (gpu.mask(image) != cpu).mean() < 0.01


@pytest.mark.parametrize("n_classes", [1, 3])
def test_pieces_of_different_predictions_computed_together_do_not_mix(
    make_checkpoint: Make, rng: np.random.Generator, n_classes: int
) -> None:
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
    for batched, alone in zip(together, started(), strict=True):
        np.testing.assert_allclose(batched.result, finish(predictor, alone), atol=1e-6)
    assert n_classes > 1 or 0.4 < (together[3].result == 255).mean() < 0.6
