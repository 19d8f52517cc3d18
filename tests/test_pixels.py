"""Preprocessing of pixels, with values that can be checked by hand."""

import re
from typing import Any

import numpy as np
import pytest

from unet import Predictor
from unet.network import NetworkConfig
from unet.pixels import (
    STRIP,
    PixelError,
    Preprocessing,
    luminance,
    match_channels,
    mirror,
    statistics,
    to_pixels,
    without_data,
)  # fmt: skip


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
        (np.int8, -127, -1.0),
        (np.int16, 16384, 0.5),
        (np.uint32, 2**31, 0.5),
        (np.int64, 2**62, 0.5),
    ],
)
def test_values_are_scaled_by_dtype(dtype: type, value: float, scaled: float) -> None:
    x = network_input(Preprocessing(), np.full((2, 3), value, dtype))
    assert x.shape == (1, 2, 3)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, scaled, rtol=1e-4)


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
        (np.zeros((2, 4, 4, 5), np.uint8), r"\(2, 4, 4, 5\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.zeros((4, 4), object), "object"),
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
    rgba = np.array([[[9, 8, 7, 0]]], np.uint8)  # as Pillow and others read it: alpha is neither used nor multiplied
    assert match_channels(rgba, 3).tolist() == [[[9, 8, 7]]]
    assert match_channels(rgba, 1).item() == match_channels(rgba[..., :3], 1).item()
    assert match_channels(rgba, 4).tolist() == rgba.tolist()


@pytest.mark.parametrize(("found", "trained"), [(3, 2), (2, 1), (2, 3), (5, 3), (4, 2), (1, 4)])
def test_another_number_of_channels_is_refused_in_words(found: int, trained: int) -> None:
    said = f"the model was trained on {trained} channels?, this image has {found}$"
    with pytest.raises(PixelError, match=said):
        Preprocessing()(np.zeros((4, 4, found), np.uint16), trained)


def test_four_channels_that_are_not_rgba_are_refused() -> None:
    with pytest.raises(PixelError, match="trained on 3 channels, this image has 4"):
        Preprocessing()(np.zeros((4, 4, 4), np.uint16), 3)


def test_one_channel_is_taken_by_its_number_from_1() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    second = Preprocessing(channel=2)
    assert second(image, 1).pixels[..., 0].tolist() == image[..., 1].tolist()
    for alone in (image[..., 1], image[..., 1:2]):  # images that have only one are taken as they are
        assert second(alone, 1).pixels[..., 0].tolist() == image[..., 1].tolist()
    frame = np.full((9, 9, 2), np.nan)
    frame[..., 1] = 0.5
    assert second(frame, 1).missing is None  # of the channel
    with pytest.raises(PixelError, match="trained on channel 4 of its images, this image has 3 channels"):
        Preprocessing(channel=4)(image, 1)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.array([[0, 4095]], np.uint16), "expected uint16 values up to 65535, .*, found up to 4095: "),
        (np.array([[0, 4095]], ">u2"), "expected uint16"),
        (np.array([[0, 16383]], np.uint16), "found up to 16383"),  # 14 bits
        (np.array([[-1000, 3000]], np.int16), "values up to 32767"),
        (np.array([[0.0, 250.5]]), "expected float64 values up to 1, .*, found up to 250.5: .*--recipe default$"),
        (np.array([[np.nan, 250.5]], np.float32), "found up to 250.5"),
        (np.pad(np.arange(300, 400, dtype=np.uint16).reshape(10, 10), 9, constant_values=65535), "found up to 399"),
        (np.array([[40, 20]], np.uint8), None),  # dark, but 8 bits
        (np.array([[False]]), None),
        (np.array([[0, 65535]], np.uint16), None),
        (np.array([[0, 0.9]], np.float16), None),
        (np.zeros((9, 9), np.uint16), None),
        (np.full((9, 9), np.nan), None),
    ],
)
def test_values_that_do_not_fit_a_model_without_standardising(image: np.ndarray, found: str | None) -> None:
    said = Preprocessing().misfit(image)
    assert said is None if found is None else re.match(f".*{found}", said or "")
    assert (said or "").isascii()
    assert Preprocessing(standardise=True).misfit(image) is None
    if image.dtype != bool:
        several = np.dstack([image, np.full_like(image, np.iinfo("u1").max if image.dtype == np.uint8 else 1)])
        assert Preprocessing(channel=1).misfit(several) == said


@pytest.mark.parametrize("n_channels", [1, 3, 4, 5, 300])
def test_statistics_of_any_number_of_channels(n_channels: int, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (20, 30, n_channels), dtype=np.uint8)
    missing = rng.random((20, 30)) < 0.3
    for mask, kept in ((None, image.reshape(-1, n_channels)), (missing, image[~missing])):
        mean, deviation = statistics(image, mask)
        np.testing.assert_allclose(mean, kept.mean(axis=0))
        np.testing.assert_allclose(deviation, kept.std(axis=0))


def noise(dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Values away from the ends of the dtype's range; floats of 0..1."""
    return (rng.integers(20, 100, (40, 50)) / (100 if dtype[0] == "f" else 1)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[("u1", 0), ("u1", 255), ("u2", 0), ("u2", 65535), ("i2", -32768), ("i2", 32767)],
        *[("f4", np.nan), ("f4", np.finfo("f4").min), ("f8", np.finfo("f8").min)],
    ],
)
def test_a_frame_without_data_changes_nothing_within(dtype: str, value: float, rng: np.random.Generator) -> None:
    image = noise(dtype, rng)
    framed = np.pad(image, ((5, 6), (0, 9)), constant_values=value)
    inside = np.s_[5:-6, :-9]
    expected, found = (Preprocessing(standardise=True)(each, 1) for each in (image, framed))
    np.testing.assert_allclose(found.tensor()[:, *inside], expected.tensor(), atol=1e-4)
    assert found.missing is not None
    np.testing.assert_array_equal(
        found.missing, np.pad(np.zeros(image.shape, bool), ((5, 6), (0, 9)), constant_values=1)
    )
    assert abs(float(found.tensor()[0, 0, 0])) < 0.05  # the mean


def test_what_is_not_a_frame(rng: np.random.Generator) -> None:
    image = noise("u1", rng)
    fluorescence = np.zeros((60, 60), np.uint8)
    yy, xx = np.mgrid[:60, :60]
    fluorescence[(yy - 30) ** 2 + (xx - 30) ** 2 < 400] = 100
    fluorescence[30, 30] = 101
    for other in (
        image,
        fluorescence,
        np.pad(image, 3),  # narrow: lines at the edge are usual
        np.pad(np.full((40, 50), 9, np.uint8), 9),  # nothing to see inside
        np.zeros((40, 50), np.uint8),
        np.pad(image, 9, constant_values=7),  # no extreme
        np.pad(image.astype(np.int16), 9),
        np.pad(image / 255, 9),
        np.pad(image > 50, 9),
    ):
        assert without_data(other) is None


def test_nan_in_the_middle_is_missing_in_every_channel() -> None:
    image = np.full((4, 4, 2), 0.5, np.float32)
    image[1, 2, 0] = np.nan
    prepared = Preprocessing()(image, 2)
    assert np.argwhere(prepared.missing).tolist() == [[1, 2]]  # type: ignore[arg-type]
    assert prepared.pixels[1, 2].tolist() == [0, 0]
    assert np.isnan(image[1, 2, 0])  # the caller's array stays


def test_an_image_without_any_data() -> None:
    prepared = Preprocessing(standardise=True)(np.full((20, 20), np.nan), 1)
    assert prepared.tensor().abs().max() == 0


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("tta", [False, True])
def test_pixels_without_data_are_background(n_classes: int, tta: bool) -> None:
    values = (10, 20, 30) if n_classes == 3 else (0, 255)
    network = NetworkConfig(n_classes=n_classes, base_channels=2).build()
    network.outc.conv.bias.data[-1] = 99  # everything is foreground, or of the last class
    predictor = Predictor(network, Preprocessing(), class_values=values)
    image = np.full((30, 40), 0.5, np.float32)
    image[:10] = np.nan
    mask, probabilities = predictor.mask(image, tta=tta), predictor(image, tta=tta)
    assert set(mask[:10].ravel()) == {values[0]}
    assert set(mask[10:].ravel()) == {values[-1]}
    assert (probabilities[..., :10, :] == ([[[1]], [[0]], [[0]]] if n_classes == 3 else 0)).all()
    certainty = predictor.predict(image, "probability", tta=tta)
    assert set(certainty[:10].ravel()) == {255 if n_classes == 3 else 0}


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


@pytest.mark.parametrize(
    "field",
    [{"input_range": "0-2"}, {"size_multiple": 0}, {"size_multiple": 2**14}, {"channel": 0}, {"channel": "red"}],
)
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
