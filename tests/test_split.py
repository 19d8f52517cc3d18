"""Splits into training and validation: by name, over kinds, and by the flags of a run."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from trainer.data import Sample
from trainer.data.split import PART, SplitKind, arrange, bounded, halves, is_stack, split, split_fold
from trainer.inputs import ENOUGH, Division, divide
from trainer.losses import IGNORED
from trainer.settings import TrainSettings
from unet.errors import UserError


def sample(name: str = "", classes: tuple[int, ...] = (0, 1), shade: int = 100, size: int = 64, red: int = 0) -> Sample:
    """A flat picture with a stripe of each class."""
    image = np.full((size, size, 3), shade, np.uint8) + np.array([red, 0, 0], np.uint8)
    stripes = np.array(classes, np.uint8)[np.arange(size) * len(classes) // size]
    return Sample(name, image, np.broadcast_to(stripes, (size, size)).copy())


def noise(seed: int) -> np.ndarray:
    """Blobs, which are elsewhere for each seed."""
    drawn = np.random.default_rng(seed).normal(size=(64, 64))
    return np.asarray(cv2.GaussianBlur(drawn, (0, 0), 4) * 1000)


def pictures(planes: list[np.ndarray]) -> list[Sample]:
    images = [np.clip(128 + plane, 0, 255).astype(np.uint8) for plane in planes]
    return [replace(sample(str(i)), image=image) for i, image in enumerate(images)]


STACK = pictures([np.cos(i / 4) * noise(0) + np.sin(i / 4) * noise(1) for i in range(8)])
"""Slices that change slowly."""
OTHERS = pictures([noise(i) for i in range(8)])


def parts(samples: list[Sample], **flags: object) -> Division:
    return divide(samples, TrainSettings(**flags))  # type: ignore[arg-type]


def names(samples: list[Sample]) -> list[str]:
    return [each.name for each in samples]


@pytest.mark.parametrize(
    ("n", "fraction", "n_val"),
    [(24, 0.2, 4), (30, 0.2, 6), (2, 0.2, 1), (2, 0.99, 1), (5, 0.01, 1), (10, 0.5, 5), (4, 1.0, 3)],
)
def test_both_sides_get_samples(n: int, fraction: float, n_val: int) -> None:
    train, val = split(range(n), fraction)
    assert len(val) == n_val
    assert train + val == list(range(n))


def test_the_end_of_the_order_is_validated_on() -> None:
    assert split([4, 0, 3, 1, 2], 0.4) == ([0, 3, 4], [1, 2])


def test_random_orders_follow_the_seed() -> None:
    orders = [arrange(STACK, "random", seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(8))


@pytest.mark.parametrize("kind", ["contiguous", "spread", "random"])
def test_every_sample_is_validated_on_in_exactly_one_fold(kind: SplitKind) -> None:
    samples = [sample(shade=20 * i) for i in range(10)]
    sides = [split_fold(arrange(samples, kind, 1), 3, fold) for fold in (1, 2, 3)]
    assert sorted(i for _, val in sides for i in val) == list(range(10))
    for train, val in sides:
        assert sorted(train + val) == list(range(10))


@pytest.mark.parametrize(("folds", "fold"), [(3, 4), (3, 0), (11, 1)])
def test_folds_that_do_not_exist_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(UserError, match=rf"--fold {fold} --folds {folds}: expected .* <= 10 .images."):
        split_fold(range(10), folds, fold)


# ---- stacks and kinds


def test_slices_that_resemble_their_neighbours_are_a_stack() -> None:
    assert is_stack(STACK)
    assert not is_stack(OTHERS)
    assert not is_stack(STACK[:2])
    assert not is_stack([STACK[i] for i in (0, 5, 1, 7, 3, 6, 2, 4)])
    assert not is_stack([sample() for _ in range(4)])  # flat pictures resemble nothing


def test_slices_with_nan_are_a_stack() -> None:
    floats = [replace(each, image=each.image.astype(np.float32)) for each in STACK]
    floats[3].image[5, 5] = np.nan
    assert is_stack(floats)


def test_the_last_slices_of_a_stack_are_validated_on() -> None:
    division = parts(STACK, val_fraction=0.4)
    assert division.kind == "contiguous"
    assert names(division.validation) == ["5", "6", "7"]
    assert names(division.training) == ["0", "1", "2", "3", "4"]


def test_every_kind_of_image_is_validated_on() -> None:
    """Eight dark pictures, eight bright ones, and eight in colour, one kind after the other by name."""
    kinds = {"dark": (20, 0), "bright": (200, 0), "tissue": (100, 50)}
    samples = [sample(f"{kind}{i}", shade=shade, red=red) for kind, (shade, red) in kinds.items() for i in range(8)]
    division = parts(samples)
    assert division.kind == "spread"
    assert len(division.validation) == 4
    for side in (division.training, division.validation):
        assert {name.rstrip("01234567") for name in names(side)} == set(kinds)


@pytest.mark.parametrize("odd", [{"size": 32}, {"red": 50}, {"shade": 200}])
def test_kinds_differ_in_size_colour_or_brightness(odd: dict[str, Any]) -> None:
    order = arrange([sample() for _ in range(4)] + [sample(**odd) for _ in range(4)], "spread", 0)
    assert [i // 4 for i in order] in ([0, 1] * 4, [1, 0] * 4)


def test_of_all_turns_the_one_with_most_classes_on_both_sides_is_taken() -> None:
    """Only images 1 and 4 have foreground: one of them must be learned from, the other one validated on."""
    samples = [sample(str(i), (0, 1) if i in (1, 4) else (0,)) for i in range(6)]
    assert names(parts(samples).validation) in (["1"], ["4"])
    assert names(parts(samples, val_split="contiguous").validation) == ["5"]  # as it was asked for


@pytest.mark.parametrize("odd", [{"red": 50}, {"shade": 200}])
@pytest.mark.parametrize("others", [2, 3, 7, 15])
def test_the_only_image_of_a_kind_is_learned_from(odd: dict[str, Any], others: int) -> None:
    samples = [sample(str(i), shade=20 + i) for i in range(others)] + [sample("odd", **odd)]
    assert "odd" in names(parts(samples).training)


# ---- a single image, and what a run may learn from


def test_a_single_image_is_cut() -> None:
    rng = np.random.default_rng(0)
    image, objects = rng.integers(100, 255, (20, 40)), rng.integers(0, 3, (20, 40))
    image[:, 30:] -= 100  # whatever its brightness, the last quarter is validated on
    wide = Sample("cells", image.astype(np.uint8), np.minimum(objects, 1).astype(np.uint8), objects.astype(np.int32))
    for flags in ({}, {"val_split": "random", "seed": 1}):
        division = parts([wide], **flags)
        (first,), (last,) = division.training, division.validation
        assert (first.name, last.name) == ("cells first three quarters", "cells last quarter")
        for part, columns in ((first, slice(30)), (last, slice(30, None))):
            np.testing.assert_array_equal(part.image, wide.image[:, columns])
            np.testing.assert_array_equal(part.label, wide.label[:, columns])
            np.testing.assert_array_equal(part.objects, objects[:, columns])
        assert division.held_out_until == 0.15
    high = Sample("rgb", np.zeros((8, 5, 3), np.uint8), np.zeros((8, 5), np.uint8))
    assert [part.image.shape for part in halves(high)] == [(6, 5, 3), (2, 5, 3)]


def test_few_images_to_validate_on_are_learned_from_in_the_end_unless_flags_say_how_many_there_are() -> None:
    many = [sample(shade=i) for i in range(5 * ENOUGH)]
    assert len(parts(many).validation) == ENOUGH
    assert parts(many).held_out_until == 1
    few = many[1:]
    assert parts(few).held_out_until == parts(few, val_split="random").held_out_until == 0.6
    assert parts(few, val_fraction=0.2).held_out_until == parts(few, folds=5).held_out_until == 1
    for n, share in ((8, 0.6), (4, 0.3), (2, 0.15)):  # one of two is missed more than two of eight
        assert parts(many[:n]).held_out_until == share


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ((0,), (0, 1), "all labels to train on hold a single class: .* --val-split random or another --val-fraction"),
        ((0, IGNORED), (0, 1), "all labels to train on hold a single class"),
        ((0, 1), (IGNORED,), "all pixels to validate on are ignored: .* another --val-fraction"),
    ],
)
def test_sides_without_classes_are_refused(first: tuple[int, ...], last: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parts([sample("0", first), sample("1", last)], val_split="contiguous")


def test_the_last_quarter_of_an_image_must_be_labelled() -> None:
    label = np.zeros((8, 40), np.uint8)
    label[:, 5:10], label[:, 30:] = 1, IGNORED
    with pytest.raises(UserError, match=r"all pixels to validate on are ignored: .* label both ends of the image"):
        parts([Sample("wide", label, label)], val_split="contiguous")


def test_images_and_parts_without_labels_are_not_validated_on() -> None:
    """A large image with a stroke that none of the four squares shows, one without labels, and a small one."""
    label = np.full((3 * PART, 3 * PART), IGNORED, np.uint8)
    nothing = Sample("nothing", label, label)
    label = label.copy()
    label[10, 1500:1540] = 1
    found = bounded([Sample("stroke", label, label), nothing, sample("small"), sample("empty", (IGNORED,))])
    assert [part.name.split()[0] for part in found] == ["stroke", "small"]
    assert (found[0].label == 1).sum() == 40
