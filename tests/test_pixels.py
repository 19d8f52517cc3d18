"""Preprocessing of pixels, with values that can be checked by hand."""

from typing import Any

import numpy as np
import pytest

from unet.pixels import STRIP, PixelError, Preprocessing, luminance, match_channels, mirror, to_pixels


def network_input(preprocessing: Preprocessing, image: np.ndarray) -> np.ndarray:
    """(1, H, W) float32, as the network gets it."""
    return preprocessing(image, 1).tensor().numpy()


@pytest.mark.parametrize(
    ("dtype", "value", "scaled"),
    [
        (np.uint8, 51, 0.2),
        (np.uint16, 13107, 0.2),
        (">u2", 13107, 0.2),
        (np.float32, 0.2, 0.2),
        (np.float64, 1.5, 1.5),
        (bool, True, 1.0),
    ],
)
def test_values_are_scaled_by_dtype(dtype: type, value: float, scaled: float) -> None:
    x = network_input(Preprocessing(), np.full((2, 3), value, dtype))
    assert x.shape == (1, 2, 3)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, scaled, rtol=1e-6)


def test_scaling_does_not_depend_on_the_content() -> None:
    dark = network_input(Preprocessing(), np.array([[0, 1]], np.uint8))
    bright = network_input(Preprocessing(), np.array([[0, 1, 255]], np.uint8))
    assert dark[0, 0, 1] == bright[0, 0, 1]


def test_8_bit_pixels_stay_uint8_for_the_device() -> None:
    assert Preprocessing(standardise=True)(np.zeros((4, 4), np.uint8), 1).pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4,), np.uint8), r"\(4,\)"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf, np.float32), "infinity"),
        (np.full((4, 4), 1e300), "infinity"),
        (None, "NoneType"),
        ([[0, 255]], "list"),
    ],
)
def test_an_array_that_is_not_an_image_is_refused(image: Any, found: str) -> None:
    with pytest.raises(PixelError, match=found):
        to_pixels(image)


def test_channels_are_converted_to_those_of_the_network() -> None:
    rgb = np.array([[[1.0, 0.5, 0.25]]], np.float32)
    assert match_channels(rgb, 1).item() == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    assert match_channels(rgb[..., :1], 3).tolist() == [[[1, 1, 1]]]
    rgba = np.concatenate([rgb, [[[0.0]]]], axis=2).astype(np.float32)
    assert match_channels(rgba, 3).tolist() == rgb.tolist()
    assert match_channels(rgba, 1).item() == match_channels(rgb, 1).item()
    with pytest.raises(PixelError, match="expected an image of 5 channels, as the model was trained on; found 3"):
        match_channels(rgb, 5)


def test_each_preprocessing_by_hand() -> None:
    image = np.array([[0, 255], [0, 255]], np.uint8)
    assert network_input(Preprocessing(), image).tolist() == [[[0, 1], [0, 1]]]
    assert network_input(Preprocessing(input_range="0-255"), image).tolist() == [[[0, 255], [0, 255]]]
    assert network_input(Preprocessing(standardise=True), image).tolist() == [[[-1, 1], [-1, 1]]]
    assert network_input(Preprocessing(standardise=True), np.full((2, 2), 9, np.uint8)).tolist() == [[[0, 0], [0, 0]]]


def test_standardised_images_do_not_depend_on_exposure_or_bit_depth(rng: np.random.Generator) -> None:
    image = rng.integers(0, 100, (20, 20)).astype(np.uint16)
    standardise = Preprocessing(standardise=True)
    np.testing.assert_allclose(
        network_input(standardise, image), network_input(standardise, (2 * image + 50).astype(np.uint8)), atol=1e-4
    )


@pytest.mark.parametrize(
    ("multiple", "size", "padded"), [(16, (1, 17), (16, 32)), (1, (1, 17), (16, 17)), (16, (512, 565), (512, 576))]
)
def test_sides_are_padded_to_the_multiple_and_to_at_least_16(
    multiple: int, size: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert Preprocessing(size_multiple=multiple).padded_size(*size) == padded


def test_mirror_reflects_without_repeating_the_edge() -> None:
    x = np.array([[[1], [2], [3]]], np.float32)
    assert mirror(x, 1, 5)[:, :, 0].tolist() == [[1, 2, 3, 2, 1]]
    assert mirror(x, 1, 3, margin=1)[:, :, 0].tolist() == [[2, 1, 2, 3, 2]] * 3
    assert mirror(x, 1, 3) is x
    assert mirror(x[:, :1], 2, 2)[:, :, 0].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("field", [{"input_range": "0-2"}, {"size_multiple": 0}, {"size_multiple": 2**14}])
def test_an_invalid_setting_is_refused_by_field_name(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Preprocessing(**field)  # type: ignore[arg-type]


def test_luminance_in_strips_equals_luminance_of_the_whole_image() -> None:
    rgb = np.random.default_rng(7).integers(0, 256, (2 * STRIP + 5, 9, 3), dtype=np.uint8)
    np.testing.assert_allclose(luminance(rgb), rgb @ np.float32([0.299, 0.587, 0.114]), rtol=1e-6)


def test_normalising_leaves_the_prepared_pixels_unchanged(rng: np.random.Generator) -> None:
    prepared = Preprocessing(standardise=True)(rng.random((20, 30), np.float32), 1)
    first = prepared.tensor().numpy().copy()
    np.testing.assert_array_equal(prepared.tensor(), first)
