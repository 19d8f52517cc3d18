"""The settings of `unet-train`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from trainer.data.labels import LabelsKind, Reading
from trainer.data.split import SplitKind
from trainer.recipes import RECIPES, Recipe, RecipeName
from unet.device import DeviceChoice
from unet.settings import ProgramSettings


class TrainSettings(ProgramSettings):
    """Trains a U-Net on a folder of annotated images and writes best_model.pth.
    Each flag is also an environment variable: TRAINER_EPOCHS=20."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_", cli_prog_name="unet-train")

    data: str = Field(
        "sample",
        description="folder of images and labels, in Training_Images/ and Training_Labels/ or another layout that is "
        "recognised; or a JSON of COCO; or 'sample': the embedded data set; or 'isbi2012': the challenge's 30 slices, "
        "downloaded",
        json_schema_extra={"metavar": "DIR|FILE"},
    )
    labels: LabelsKind = Field(
        "auto",
        description="what values in labels are: classes; instances: object ids, or pieces of a foreground, whose "
        "touching borders are learned; threshold: two classes with soft edges; auto: classes, or ids if they look it",
    )
    ignore_value: str | None = Field(
        None,
        description="value in labels for pixels without an opinion, which count in no loss and no score",
        json_schema_extra={"metavar": "N|#RRGGBB"},
    )
    class_names: str | None = Field(
        None,
        description="names of the classes, in the order of their values: sky,road,car",
        json_schema_extra={"metavar": "A,B"},
    )
    label_suffix: str | None = Field(
        None,
        description="what names of label files add to those of images: _manual1",
        json_schema_extra={"metavar": "SUFFIX"},
    )
    channel: int | None = Field(None, ge=1, description="learn from this channel of the images only; 1 is the first")
    check: bool = Field(
        False, description="train nothing: describe the data, and write check.png, a contact sheet with the labels"
    )
    out: Path = Field(Path("model"), description="folder for the results", json_schema_extra={"metavar": "DIR"})
    recipe: RecipeName = Field(
        "default",
        description="the settings, which --epochs, --batch-size, --lr, --base-channels, --image-size override",
    )
    epochs: int | None = Field(None, ge=1, le=2**31, description="passes over the training images")
    max_minutes: float | None = Field(None, gt=0, description="stop after N minutes if the epochs are not over by then")
    batch_size: int | None = Field(None, ge=1, le=2**16, description="crops per step")
    lr: float | None = Field(None, gt=0, le=1e30, description="highest learning rate")
    base_channels: int | None = Field(None, ge=1, le=2**10, description="channels of the network's first level")
    image_size: int | None = Field(
        None, ge=1, le=2**28, description="side of the crops in pixels: a multiple of 16; for the recipe 'paper' plus 4"
    )
    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of the images kept for validation, at least one")
    val_split: SplitKind = Field(
        "auto",
        description="which images to validate on: contiguous, the last by name (2 before 10); spread over sizes, "
        "colours and brightness; random; auto: contiguous for the slices of a stack, else spread, but the only image "
        "of a kind is learned from",
    )
    folds: int | None = Field(None, ge=2, description="cross-validation: divide the images into N parts")
    fold: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        1,
        description="cross-validation: the part to validate on, 1 to --folds; all: each in turn, in OUT/fold-N, with "
        "the minutes divided over the runs, and the mean of the scores",
        json_schema_extra={"metavar": "N|all"},
    )
    init_from: Path | None = Field(
        None, description="start with the weights of this model, whose channels and classes may differ"
    )
    device: DeviceChoice = Field(
        "auto", description="auto, cpu, cuda, cuda:1, mps or another of torch", json_schema_extra={"metavar": "DEVICE"}
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="same seed, data, epochs and machine: same weights on a CPU, nearly so on a GPU"
    )
    unlabelled: Path | None = Field(
        None,
        description="folder of images without labels: learned from by consistency, and (but not with --fold all) "
        "ranked by what to annotate next",
        json_schema_extra={"metavar": "DIR"},
    )
    curve: bool = Field(
        False,
        description="also train on 1/4 and 1/2 of the images, to see whether more would help; the minutes are divided "
        "over the runs, and the images to validate on are held out to the end",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="the runs of --fold all or --curve: local: one after another; ray: at once, with all of the "
        "minutes for each, on the Ray cluster at RAY_ADDRESS or on this machine",
    )
    force: bool = Field(False, description="start over, whatever an earlier run left in --out")
    verbose: bool = Field(False, description="print every setting of the recipe")

    def reading(self) -> Reading:
        """How the data set is read."""
        return Reading(
            labels=self.labels,
            ignore_value=self.ignore_value,
            class_names=tuple(name.strip() for name in self.class_names.split(",")) if self.class_names else (),
            label_suffix=self.label_suffix,
            channel=self.channel,
        )

    def resolved_recipe(self) -> Recipe:
        """The recipe with the flags that override it. Raises UserError."""
        names = ("epochs", "batch_size", "lr", "base_channels", "image_size")
        return RECIPES[self.recipe].override(**{name: getattr(self, name) for name in names})
