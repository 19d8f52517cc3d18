"""Pixels: numbers that can be checked by hand."""

from typing import Any

import numpy as np
import pytest

from unet.pixels import STRIP, PixelError, Prepared, Preprocessing, luminance, match_channels, mirror, to_pixels


def prepared(preprocessing: Preprocessing, image: np.ndarray) -> np.ndarray:
    """(1, H, W) of what the network sees."""
    found = preprocessing(image, 1)
    assert isinstance(found, Prepared)
    return found.tensor().numpy()


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
    x = prepared(Preprocessing(), np.full((2, 3), value, dtype))
    assert x.shape == (1, 2, 3)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, scaled, rtol=1e-6)


def test_scaling_never_looks_at_the_content() -> None:
    dark = prepared(Preprocessing(), np.array([[0, 1]], np.uint8))
    bright = prepared(Preprocessing(), np.array([[0, 1, 255]], np.uint8))
    assert dark[0, 0, 1] == bright[0, 0, 1]


def test_bytes_stay_bytes_until_the_device_has_them() -> None:
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
def test_what_is_no_image_is_refused_with_what_was_found(image: Any, found: str) -> None:
    with pytest.raises(PixelError, match=found):
        to_pixels(image)


def test_channels() -> None:
    rgb = np.array([[[1.0, 0.5, 0.25]]], np.float32)
    assert match_channels(rgb, 1, 1)[0].item() == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    assert match_channels(rgb[..., :1], 1, 3)[0].tolist() == [[[1, 1, 1]]]
    rgba = np.concatenate([rgb, [[[0.0]]]], axis=2).astype(np.float32)
    assert match_channels(rgba, 1, 3)[0].tolist() == rgb.tolist()
    assert match_channels(rgba, 1, 1)[0].item() == match_channels(rgb, 1, 1)[0].item()
    with pytest.raises(PixelError, match="5 channels, found 3"):
        match_channels(rgb, 1, 5)


def test_preprocessing() -> None:
    image = np.array([[0, 255], [0, 255]], np.uint8)
    assert prepared(Preprocessing(), image).tolist() == [[[0, 1], [0, 1]]]
    assert prepared(Preprocessing(input_range="0-255"), image).tolist() == [[[0, 255], [0, 255]]]
    assert prepared(Preprocessing(standardise=True), image).tolist() == [[[-1, 1], [-1, 1]]]
    assert prepared(Preprocessing(standardise=True), np.full((2, 2), 9, np.uint8)).tolist() == [[[0, 0], [0, 0]]]


def test_standardising_is_blind_to_exposure_and_depth(rng: np.random.Generator) -> None:
    image = rng.integers(0, 100, (20, 20)).astype(np.uint16)
    standardise = Preprocessing(standardise=True)
    np.testing.assert_allclose(
        prepared(standardise, image), prepared(standardise, (2 * image + 50).astype(np.uint8)), atol=1e-4
    )


@pytest.mark.parametrize(
    ("multiple", "size", "padded"), [(16, (1, 17), (16, 32)), (1, (1, 17), (16, 17)), (16, (512, 565), (512, 576))]
)
def test_padded_size(multiple: int, size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert Preprocessing(size_multiple=multiple).padded_size(*size) == padded


def test_mirror() -> None:
    x = np.array([[[1], [2], [3]]], np.float32)
    assert mirror(x, 1, 5)[:, :, 0].tolist() == [[1, 2, 3, 2, 1]]
    assert mirror(x, 1, 3, margin=1)[:, :, 0].tolist() == [[2, 1, 2, 3, 2]] * 3
    assert mirror(x, 1, 3) is x
    assert mirror(x[:, :1], 2, 2)[:, :, 0].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("field", [{"input_range": "0-2"}, {"size_multiple": 0}, {"size_multiple": 2**14}])
def test_a_senseless_setting_is_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Preprocessing(**field)  # type: ignore[arg-type]


def test_a_colour_image_taller_than_a_strip_becomes_grey_row_by_row() -> None:
    rgb = np.random.default_rng(7).integers(0, 256, (2 * STRIP + 5, 9, 3), dtype=np.uint8)
    np.testing.assert_allclose(luminance(rgb), rgb @ np.float32([0.299, 0.587, 0.114]), rtol=1e-6)


def test_what_is_prepared_stays_as_it_is(rng: np.random.Generator) -> None:
    found = Preprocessing(standardise=True)(rng.random((20, 30), np.float32), 1)
    first = found.tensor().numpy().copy()
    np.testing.assert_array_equal(found.tensor(), first)
