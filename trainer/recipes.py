"""Recipes: everything that decides what a training run does, apart from its data and its seed."""

from dataclasses import dataclass, replace
from typing import Literal

from unet.network import Variant
from unet.pixels import InputRange

RecipeName = Literal["default", "quick", "tutorial"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: RecipeName
    variant: Variant = "tutorial"
    bilinear: bool = False
    base_channels: int = 64
    grey: bool = False
    """Turn colour images to grey; otherwise the images decide."""
    input_range: InputRange = "0-1"
    standardise: bool = True
    """Each image to zero mean and unit variance."""
    image_size: int = 256
    """Side of the square crops that the network learns from, in pixels."""
    batch_size: int = 8
    epochs: int = 200
    min_steps: int = 20
    """An epoch is one pass over the area of all images, but at least this many batches: few images, many crops."""
    rotate: bool = True
    """Turn crops by multiples of 90 degrees besides flipping them."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-2
    momentum: float = 0.0
    """RMSprop's; AdamW has its own averages."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: a short warm-up, then down to zero at the end of the epochs or of the time, whichever is nearer."""

    def override(
        self,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        base_channels: int | None = None,
        image_size: int | None = None,
    ) -> "Recipe":
        """The same recipe with what is not None."""
        given = {k: v for k, v in locals().items() if k != "self" and v is not None}
        return replace(self, **given)


RECIPES: dict[RecipeName, Recipe] = {
    "default": Recipe(name="default"),
    # minutes on two CPU cores
    "quick": Recipe(name="quick", base_channels=16, image_size=128, epochs=12),
    # as the tutorials have it: no normalisation, no schedule, flips only
    "tutorial": Recipe(
        name="tutorial",
        bilinear=True,
        grey=True,
        input_range="0-255",
        standardise=False,
        image_size=512,
        batch_size=4,
        epochs=50,
        min_steps=1,
        rotate=False,
        optimizer="rmsprop",
        lr=1e-5,
        weight_decay=1e-8,
        momentum=0.9,
        schedule="constant",
    ),
}
