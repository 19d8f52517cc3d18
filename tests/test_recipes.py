"""Recipes: what they say, and the networks that they build."""

from trainer.data import Augmentation
from trainer.recipes import RECIPES, STRONG


def test_the_tutorial_recipe_is_the_tutorials() -> None:
    recipe = RECIPES["tutorial"]
    assert (recipe.image_size, recipe.batch_size, recipe.epochs, recipe.grey) == (512, 4, 50, True)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.momentum) == ("rmsprop", 1e-5, 1e-8, 0.9)
    assert (recipe.base_channels, recipe.variant, recipe.bilinear) == (64, "tutorial", True)
    assert (recipe.schedule, recipe.standardise, recipe.input_range) == ("constant", False, "0-255")
    assert (recipe.loss, recipe.border_weights, recipe.ema, recipe.clip_norm) == ("ce", False, None, None)
    assert recipe.augmentation == Augmentation(flip=True)  # and nothing else
    assert not recipe.mixed_precision


def test_the_default_recipe_trains_long_augments_strongly_and_minds_centre_lines() -> None:
    recipe = RECIPES["default"]
    assert (recipe.image_size, recipe.batch_size, recipe.epochs, recipe.ema) == (256, 4, 400, 0.99)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.schedule) == ("adamw", 2e-3, 1e-2, "cosine")
    assert recipe.loss == "ce+dice+cldice"
    assert recipe.augmentation == STRONG


def test_recipes_build_networks_with_their_drop_out() -> None:
    found = {name: recipe.override(base_channels=1).build(3, 1).dropout.p for name, recipe in RECIPES.items()}
    assert found == {"default": 0.5, "quick": 0.0, "tutorial": 0.0, "paper": 0.5}
    assert RECIPES["tutorial"].override(base_channels=1).build(3, 1).config.n_channels == 1  # grey
