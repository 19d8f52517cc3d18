"""Recipes: their settings, and the networks that they build."""

import pytest

from trainer.recipes import RECIPES, STRONG, Augmentation
from unet.errors import UserError


def test_the_tutorial_recipe_is_that_of_the_tutorials() -> None:
    recipe = RECIPES["tutorial"]
    assert (recipe.image_size, recipe.batch_size, recipe.epochs, recipe.grey) == (512, 4, 50, True)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.momentum) == ("rmsprop", 1e-5, 1e-8, 0.9)
    assert (recipe.base_channels, recipe.variant, recipe.bilinear) == (64, "tutorial", True)
    assert (recipe.schedule, recipe.standardise, recipe.input_range) == ("constant", False, "0-255")
    assert (recipe.loss, recipe.border_weights, recipe.ema, recipe.clip_norm) == ("ce", False, None, None)
    assert recipe.augmentation == Augmentation(flip=True)  # and nothing else
    assert not recipe.mixed_precision


def test_the_default_recipe_trains_long_with_strong_augmentation_and_centre_lines() -> None:
    recipe = RECIPES["default"]
    assert (recipe.image_size, recipe.batch_size, recipe.epochs, recipe.ema) == (128, 4, 400, 0.99)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.schedule) == ("muon", 2e-3, 1e-2, "cosine")
    assert recipe.loss == "ce+dice+cldice"
    assert recipe.balance == pytest.approx(1 / 3)
    assert recipe.augmentation == STRONG


def test_recipes_build_networks_with_their_dropout() -> None:
    found = {name: recipe.override(base_channels=1).build(3, 1).dropout.p for name, recipe in RECIPES.items()}
    assert found == {"default": 0.5, "quick": 0.0, "tutorial": 0.0, "paper": 0.5}
    assert RECIPES["tutorial"].override(base_channels=1).build(3, 1).config.n_channels == 1  # grey


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_summed_up_in_one_line(name: str) -> None:
    recipe = RECIPES[name]  # type: ignore[index]
    assert "\n" not in str(recipe)
    assert str(recipe).startswith(f"{name}: base {recipe.base_channels}, {recipe.epochs} epochs, ")


def test_an_impossible_crop_size_names_the_flag() -> None:
    with pytest.raises(UserError, match="--image-size 40: expected a multiple of 16 for the tutorial network"):
        RECIPES["default"].override(image_size=40)


def test_the_default_recipe_suits_its_data() -> None:
    default = RECIPES["default"]
    assert default.suited(1, 0.0, 20) == default
    assert default.suited(3, 0.0, 20).loss == default.suited(1, 0.5, 20).loss == "ce+dice"
    few = default.suited(3, 0.0, 4, instances=True)
    assert few.augmentation.contrast == 1.5
    slower = default.override(optimizer="adamw").suited(3, 0.0, 4, instances=True)
    assert few.epochs < slower.epochs < default.suited(3, 0.0, 8, instances=True).epochs == default.epochs
    assert default.override(epochs=7).suited(3, 0.0, 4, instances=True).epochs == 7
    assert default.suited(1, 0.0, 4) == default
    for name in ("quick", "tutorial", "paper"):
        assert RECIPES[name].suited(3, 0.5, 2) == RECIPES[name]
