"""The settings of `unet-segment`. Importing them loads no torch, NumPy or OpenCV: `--help` is there at once."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from unet.outputs import KINDS
from unet.settings import CommaSeparated, ProgramSettings

_OF_MODEL = {"device", "precision", "input_range", "max_pixels"}
"""Settings that a service has for itself."""


def _known(names: list[str]) -> list[str]:
    if not set(names) <= KINDS.keys():
        raise ValueError(f"expected {', '.join(KINDS)}")
    return list(dict.fromkeys(names))


def _base(url: str) -> str:
    """The URL of a service, also from that of its route."""
    if not re.match(r"https?://[^/\s?#]+[^\s?#]*$", url):
        raise ValueError("expected http://HOST:PORT, or https")
    return url.rstrip("/").removesuffix("/segment")


def _sendable(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise ValueError("expected printable ASCII characters")
    return key


class SegmentSettings(ProgramSettings):
    """Segments image files: cell.tif -> masks/cell_mask.tif. Folders are searched with their subfolders, which --out
    then has, too. What is done is skipped: the same command goes on where it was interrupted. With a model file in this
    process, or through a service (--url). Each flag is also an environment variable: SEGMENT_OUT=results."""

    model_config = SettingsConfigDict(env_prefix="SEGMENT_", cli_prog_name="unet-segment", protected_namespaces=())

    paths: CommaSeparated[str] = Field(
        min_length=1,
        description="images, folders, or patterns in quotes: 'data/**/*.tif'",
        json_schema_extra={"metavar": "PATH"},
    )
    model: Path = Field(Path("model/best_model.pth"), description="the file to segment with, in this process")
    url: Annotated[str, AfterValidator(_base)] | None = Field(
        None,
        description="the service to ask instead: http://localhost:8000",
        json_schema_extra={"metavar": "URL"},
    )
    out: Path = Field(Path("masks"), description="folder for the answers", json_schema_extra={"metavar": "DIR"})
    output: Annotated[CommaSeparated[str], AfterValidator(_known)] = Field(
        ["mask"],
        min_length=1,
        description=f"{', '.join(KINDS)}; also several: by several flags, or commas. The table is objects.csv, one for "
        "all files",
        json_schema_extra={"metavar": "KIND"},
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="foreground is above it; binary models only (default: the model's own)"
    )
    class_: str | None = Field(
        None,
        validation_alias=AliasChoices("class_", "SEGMENT_CLASS"),
        description="name of a class, for --output probability",
        json_schema_extra={"metavar": "NAME"},
    )
    tta: bool = Field(
        False,
        description="test-time augmentation: average over eight rotations and flips; better, and eight times slower",
    )
    overwrite: bool = Field(False, description="segment again what is done, and write over files that are there")
    watch: bool = Field(
        False, description="go on: segment what arrives, when it has stopped growing, until Ctrl-C or SIGTERM"
    )
    concurrency: int | None = Field(
        None, ge=1, le=256, description="files in work at a time (default: as the device needs; with --url 8)"
    )
    api_key: Annotated[SecretStr, AfterValidator(_sendable)] | None = Field(
        None,
        repr=False,
        description="key of the service; safer in SEGMENT_API_KEY",
        json_schema_extra={"metavar": "KEY"},
    )
    wait_s: float = Field(
        60,
        ge=0,
        allow_inf_nan=False,
        description="longest time without an answer, such as while the service starts or restarts",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="ray: on all nodes of the Ray cluster at RAY_ADDRESS, or on all cores or GPUs of this machine; "
        "PATH, --model and --out must be the same on all nodes (a shared file system)",
    )
    device: str = Field(
        "auto", description="auto, cpu, cuda, cuda:1, mps or another of torch", json_schema_extra={"metavar": "DEVICE"}
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device is fast at it, else fp32"
    )
    input_range: Literal["0-1", "0-255"] = Field(
        "0-1", description="how training images were scaled, for a bare state_dict"
    )
    max_pixels: int | None = Field(
        None, ge=1, description="most pixels in an image, all pages together (default: as memory allows)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = self.model_fields_set
        if self.url and "model" in given:
            raise ValueError("expected --model or --url (or SEGMENT_MODEL or SEGMENT_URL), found both")
        if self.url and (without_use := given & _OF_MODEL):
            flag = min(without_use).replace("_", "-")
            raise ValueError(f"--{flag}: expected with --model only, as a service has its own; found --url")
        if self.url and self.engine == "ray":
            raise ValueError("--engine ray: expected with --model only, found --url")
        if not self.url and "wait_s" in given:
            raise ValueError("--wait-s: expected with --url only")
        if self.class_ and "probability" not in self.output:
            raise ValueError("--class: expected with --output probability only")
        return self
