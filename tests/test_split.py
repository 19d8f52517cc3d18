"""Splits into training and validation."""

import pytest

from trainer.data import split, split_fold
from trainer.data.split import SplitKind
from unet.errors import UserError


@pytest.mark.parametrize(
    ("n", "fraction", "n_val"),
    [(24, 0.2, 4), (30, 0.2, 6), (2, 0.2, 1), (2, 0.99, 1), (5, 0.01, 1), (10, 0.5, 5), (4, 1.0, 3)],
)
def test_both_sides_get_samples(n: int, fraction: float, n_val: int) -> None:
    train, val = split(n, fraction, "contiguous", seed=0)
    assert len(val) == n_val
    assert train + val == list(range(n))
    train, val = split(n, fraction, "random", seed=1)
    assert len(val) == n_val
    assert sorted(train + val) == list(range(n))


def test_random_splits_follow_the_seed() -> None:
    assert split(30, 0.2, "random", 1) == split(30, 0.2, "random", 1) != split(30, 0.2, "random", 2)


def test_a_single_sample_is_on_both_sides() -> None:
    assert split(1, 0.2, "contiguous", 0) == ([0], [0])


@pytest.mark.parametrize("kind", ["contiguous", "random"])
def test_every_sample_is_validated_on_in_exactly_one_fold(kind: SplitKind) -> None:
    sides = [split_fold(10, 3, fold, kind, seed=1) for fold in (1, 2, 3)]
    assert sorted(i for _, val in sides for i in val) == list(range(10))
    for train, val in sides:
        assert sorted(train + val) == list(range(10))


@pytest.mark.parametrize(("folds", "fold"), [(3, 4), (3, 0), (11, 1)])
def test_folds_that_do_not_exist_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(UserError, match=rf"--fold {fold} --folds {folds}: expected .* <= 10, the number of images"):
        split_fold(10, folds, fold, "contiguous", seed=1)
