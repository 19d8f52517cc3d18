"""Recipes: all settings of a training run apart from its data and its seed."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trainer.losses import LossName
from unet.errors import UserError
from unet.network import STRIDE, NetworkConfig, UNet, Variant
from unet.pixels import InputRange

RecipeName = Literal["default", "quick", "tutorial", "paper"]
ARCHITECTURE = ("variant", "bilinear", "base_channels", "conv_bias")
"""Settings of a recipe that are those of its network, by the same names."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Strength of each augmentation; 0 is none. The defaults are flips only."""

    flip: bool = True
    quarter_turns: bool = False
    upright: bool = False  # flips from left to right only
    rotation: float = 0.0  # largest angle, degrees to either side
    scale: float = 0.0  # largest relative change of size: 0.25 is 1 / 1.25 to 1.25 times
    elastic: float = 0.0  # standard deviation of displacements on a coarse grid, pixels; 10 in the paper
    elastic_spacing: int = 64  # distance of the points of the coarse grid, pixels; bicubic between them
    brightness: float = 0.0  # largest shift of the network's input; standard deviations, if that is standardised
    contrast: float = 0.0  # largest relative change of contrast
    gamma: float = 0.0  # largest relative change of the exponent
    blur: float = 0.0  # largest standard deviation of a Gaussian blur, pixels; half of the crops are blurred
    noise: float = 0.0  # largest standard deviation of noise, in units of the input; half of the crops get some


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: RecipeName
    variant: Variant = "tutorial"
    bilinear: bool = False
    base_channels: int = 64
    conv_bias: bool = False  # bias of the 3x3 convolutions, which batch norm would subtract again
    grey: bool = False  # turn colour images to grey; otherwise the network has as many channels as the images
    input_range: InputRange = "0-1"
    standardise: bool = True  # scale each image to zero mean and unit variance

    image_size: int = 256  # side of the square crops, pixels; the paper's network sees 92 more on each side
    batch_size: int = 4
    epochs: int = 200
    min_steps: int = 20  # fewest batches in an epoch, which is otherwise one pass over the area of all images
    augmentation: Augmentation = field(default_factory=Augmentation)
    balance: float = 0.0  # share of the crops that are centred on a pixel of a rare class

    dropout: float = 0.0  # dropout probability at the end of the contracting path, as in the paper
    loss: LossName = "ce+dice"
    border_weights: bool = False  # weight the cross-entropy by the paper's map (see `losses.border_weights`)
    optimizer: Literal["adamw", "muon", "rmsprop", "sgd"] = "adamw"  # muon: see `muon.suited`
    lr: float = 2e-3
    weight_decay: float = 1e-2
    momentum: float = 0.0  # for SGD and RMSprop
    schedule: Literal["cosine", "constant"] = "cosine"  # see `schedule.Schedule`
    clip_norm: float | None = 1.0  # maximum norm of the gradient
    ema: float | None = 0.99  # decay per step of the moving average of the weights, which is validated and saved
    mixed_precision: bool = True  # compute in bfloat16 where the device is fast at it

    def __post_init__(self) -> None:
        rest = 4 if self.variant == "paper" else 0
        if self.image_size < STRIDE or self.image_size % STRIDE != rest:
            wanted = "a multiple of 16, plus 4 (such as 388)" if rest else "a multiple of 16"
            raise UserError(
                f"--image-size {self.image_size}: expected {wanted} for the {self.variant} network of this recipe"
            )

    def override(self, **settings: Any) -> "Recipe":
        """The same recipe with the given settings that are not None. Raises UserError for an impossible crop size."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})

    def suited(
        self, n_classes: int, ignored: float, n_images: int, *, instances: bool = False, upright: bool = False
    ) -> "Recipe":
        """The recipe `default` for a data set; others stay as they are. `n_classes`: output channels; `ignored`: share
        of the pixels, 0..1; `instances`: objects are learned; `upright`: images have an up."""
        if self.name != "default":
            return self
        suited = self
        # centre lines are those of whole labels of one class; with more they took a third of the time for nothing
        if self.loss == "ce+dice+cldice" and (n_classes > 1 or ignored > 0.1):
            suited = replace(suited, loss="ce+dice")
        # a few images do not show how bright objects can be: AP at IoU 0.5 from two images of nuclei 0.65 -> 0.69;
        # vessels and tissue gained nothing, and membranes lost. The longer the run, the further masks of other images
        # reach into the glow around objects: AP 0.71 after 2 minutes, 0.68 after 6, 0.61 after 30. Membranes gain
        if instances and n_images <= FEW:
            how = replace(suited.augmentation, contrast=1.5)
            suited = replace(suited, epochs=min(suited.epochs, SOON[self.optimizer]), augmentation=how)
        if upright:
            suited = replace(
                suited, augmentation=replace(suited.augmentation, upright=True, quarter_turns=False, rotation=10)
            )
        return suited

    def build(self, n_channels: int, n_classes: int) -> UNet:
        """A new network for images of `n_channels` channels, and labels of 1 (binary) or more classes."""
        shared = {name: getattr(self, name) for name in ARCHITECTURE}
        network = NetworkConfig(n_channels=1 if self.grey else n_channels, n_classes=n_classes, **shared).build()
        network.dropout.p = self.dropout
        return network

    def __str__(self) -> str:
        """The main settings, in one line."""
        return (
            f"{self.name}: base {self.base_channels}, {self.epochs} epochs, {self.batch_size} crops of "
            f"{self.image_size} px per step, {self.optimizer} at {self.lr:g}, {self.schedule}, loss {self.loss}"
        )


FEW = 4
"""Images of objects up to which they are augmented more strongly and have fewer epochs."""
SOON = {"muon": 40, "adamw": 100}
"""Epochs of a few images of objects, by the optimiser: AdamW needs more for the same score."""

STRONG = Augmentation(
    quarter_turns=True, rotation=45, scale=0.2, elastic=8, brightness=0.2, contrast=0.25, gamma=0.25, blur=1, noise=0.2
)

PLAIN: dict[str, Any] = {
    "conv_bias": True, "standardise": False, "loss": "ce", "schedule": "constant", "clip_norm": None, "ema": None
}  # fmt: skip
"""Settings that the tutorials and the paper have in common."""

RECIPES: dict[RecipeName, Recipe] = {
    # small crops: in the time of one step with 256 pixels there are four, which matters while there are few of them
    "default": Recipe(
        name="default", image_size=128, epochs=400, augmentation=STRONG, balance=1 / 3, dropout=0.5,
        loss="ce+dice+cldice", optimizer="muon",
    ),
    # minutes of training on two CPU cores
    "quick": Recipe(
        name="quick", base_channels=16, image_size=128, batch_size=8, epochs=12,
        augmentation=Augmentation(quarter_turns=True),
    ),
    # like the tutorials: no normalisation, no schedule, flips only
    "tutorial": Recipe(
        name="tutorial", bilinear=True, grey=True, input_range="0-255", image_size=512, epochs=50, min_steps=1,
        optimizer="rmsprop", lr=1e-5, weight_decay=1e-8, momentum=0.9, mixed_precision=False, **PLAIN,
    ),
    # section 3 of the paper: unpadded network with dropout, tiles of 572 -> 388 one at a time, high momentum
    "paper": Recipe(
        name="paper", variant="paper", image_size=388, batch_size=1, dropout=0.5, border_weights=True,
        augmentation=Augmentation(quarter_turns=True, rotation=45, elastic=10, elastic_spacing=190, brightness=0.1),
        optimizer="sgd", lr=1e-3, weight_decay=0.0, momentum=0.99, **PLAIN,
    ),
}  # fmt: skip
