"""How images differ from the training images, in words."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from unet import Predictor
from unet import checkpoint as checkpoints
from unet.likeness import FEATURES, SMALLEST, Likeness, measure

Image = np.ndarray
Make = Callable[..., Path]


def cells(seed: int, *, width: float = 4, size: int = 256) -> Image:
    """Grey picture, 8 bits: blobs of about this width on a dark ground, and some noise."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), width)
    image = 70 + 90 * np.clip(blobs / blobs.std(), 0, 2) + rng.normal(0, 4, blobs.shape)
    return image.clip(0, 255).astype(np.uint8)


def stained(seed: int) -> Image:
    """The same in purple."""
    image = cells(seed).astype(float)
    return np.dstack([255 - image * 0.4, 255 - image * 0.8, 255 - image * 0.3]).astype(np.uint8)


def known(*images: Image, standardised: bool = True) -> Likeness:
    likeness = Likeness.of(images, standardised)
    assert likeness
    return likeness


TRAINED = known(*map(cells, range(4)))
IMAGE = cells(9)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        IMAGE[:128, 100:228],
        np.rot90(IMAGE),
        cells(9, size=1500),
        (IMAGE * 0.8).astype(np.uint8),
        IMAGE.astype(np.uint16) * 257,
        IMAGE.astype(np.int16) * 16,
        IMAGE / np.float64(255),
        np.dstack([IMAGE] * 3),
        np.dstack([IMAGE] * 4),
        np.pad(IMAGE, 40),
        np.where(np.arange(256) < 90, np.nan, IMAGE.astype(np.float32)),
        cv2.imdecode(cv2.imencode(".jpg", IMAGE, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_UNCHANGED),
    ],
    ids=[
        "same",
        "part",
        "turned",
        "large",
        "dark",
        "16-bit",
        "12-bit",
        "float",
        "RGB",
        "RGBA",
        "framed",
        "NaN",
        "JPEG",
    ],
)
def test_images_that_are_alike(image: Image) -> None:
    assert TRAINED.differences(image) == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (cv2.GaussianBlur(IMAGE, (0, 0), 2), "blurrier"),
        (np.clip(IMAGE + np.random.default_rng(0).normal(0, 30, IMAGE.shape), 0, 255).astype(np.uint8), "sharper"),
        (cells(9, width=1.2), "finer structures"),
        (cells(9, width=12), "coarser structures"),
        (255 - IMAGE, "darker spots and lines"),
        (IMAGE // 8 + 180, "less contrast"),
        (stained(9), "3 channels instead of 1"),
        (np.full((99, 99), 7, np.uint8), "hardly anything to be seen"),
    ],
    ids=["blurred", "noise", "finer", "coarser", "inverted", "flat", "stained", "blank"],
)
def test_images_that_are_not(image: Image, said: str) -> None:
    differences = TRAINED.differences(image)
    assert any(each.startswith(said) for each in differences), differences
    assert len(differences) <= 2
    assert "".join(differences).isascii()


def test_a_mixed_set_is_compared_with_its_most_similar_image() -> None:
    likeness = known(*map(cells, range(3)), *map(stained, range(3)))
    assert likeness.differences(IMAGE) == []
    assert likeness.differences(stained(9)) == []
    assert likeness.differences(stained(9)[:, :, [1, 0, 2]])[0].startswith("other colours")


def test_other_channels_than_all_training_images() -> None:
    assert known(*map(stained, range(3))).differences(IMAGE) == ["1 channel instead of 3"]
    rng = np.random.default_rng(0)
    five = rng.integers(0, 256, (64, 64, 5), dtype=np.uint16)
    assert known(IMAGE, stained(0)).differences(five) == ["5 channels instead of 1 or 3"]


def test_brightness_counts_for_a_model_that_takes_it_as_it_is() -> None:
    images = [cells(seed) for seed in range(4)]
    dark = (IMAGE * 0.25).astype(np.uint8)
    assert "darker" in known(*images, standardised=False).differences(dark)
    assert "darker" not in TRAINED.differences(dark)


def test_one_training_image_is_enough_and_tiny_ones_are_not_judged() -> None:
    likeness = known(cells(0))
    assert likeness.differences(IMAGE) == []
    assert likeness.differences(stained(9)) == ["3 channels instead of 1"]
    tiny = np.zeros((SMALLEST - 1, 99), np.uint8)
    assert measure(tiny) is None
    assert Likeness.of([tiny, np.full((64, 64), np.nan)], standardised=True) is None
    assert TRAINED.differences(tiny) == []


@pytest.mark.parametrize("value", [1e38, 1e300, -np.inf])
def test_extreme_values_do_no_harm(value: float) -> None:
    image = IMAGE.astype(np.float64)
    image[:99] = value
    TRAINED.differences(image)


def test_many_training_images_are_sampled() -> None:
    likeness = known(*[cells(seed, size=SMALLEST) for seed in range(600)])
    assert len(likeness.rows) == 600


def test_the_checkpoint_keeps_it(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    loaded = checkpoints.load(path)
    assert loaded.likeness is None
    assert Predictor.from_checkpoint(loaded, "cpu").warning([stained(0)]) == ""
    content = torch.load(path, weights_only=True) | {"likeness": TRAINED.to_plain()}
    torch.save(content, path)
    predictor = Predictor.load(path, "cpu")
    assert predictor.warning([IMAGE]) == ""
    assert predictor.warning([stained(0)]) == "unlike the training images: 3 channels instead of 1"
    checkpoints.save(checkpoints.load(path), path)
    assert torch.load(path, weights_only=True)["likeness"] == content["likeness"]


def test_statistics_of_another_version_are_not_used() -> None:
    entry = TRAINED.to_plain()
    assert Likeness.from_plain({**entry, "features": [*FEATURES][1:]}) is None
    assert Likeness.from_plain({"channels": (1,)}) is None
    assert Likeness.from_plain(None) is None
    with pytest.raises(ValueError, match="reshape"):
        Likeness.from_plain({**entry, "scale": [1.0]})


def test_32_pages_of_a_long_stack_are_looked_at(make_checkpoint: Make) -> None:
    predictor = Predictor.load(make_checkpoint(), "cpu")
    predictor.likeness = TRAINED
    pages = [IMAGE] * 64
    pages[10] = pages[11] = pages[40] = stained(0)
    expected = "page 11: unlike the training images: 3 channels instead of 1 (of the 32 pages looked at, 2 differ)"
    assert predictor.warning(pages) == expected
