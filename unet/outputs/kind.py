"""A kind of answer: what it asks of the predictor, and how that becomes a file."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from unet.imaging import Array, Picture


class Answer(NamedTuple):
    """A file and its media type."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """What results mean, as the model states it. Fields as in `unet.checkpoint.Checkpoint`."""

    threshold: float
    class_values: tuple[int, ...]
    class_names: tuple[str, ...]
    class_colours: tuple[tuple[int, ...], ...]
    objects: bool
    min_area: int

    @classmethod
    def of(cls, model: Any, threshold: float | None = None) -> Self:
        """From a `Predictor` or a `Checkpoint`, with another threshold if one is given."""
        told = {field.name: getattr(model, field.name) for field in fields(cls)}
        return cls(**told | ({} if threshold is None else {"threshold": threshold}))


@dataclass(frozen=True, slots=True)
class Results:
    """What an answer is made from."""

    pages: "Sequence[Array]"
    """Results of the predictor, one for each page of the picture: `Predictor.predict(page, kind.wants)`."""
    picture: "Picture"
    """Its pages may be left out (empty) unless the kind `draws` on them."""
    legend: Legend
    name: str = ""
    """Name of the picture's file."""
    warning: str = ""
    """Why the picture may not fit the model."""
    max_objects: int | None = None
    """Most objects, of all pages together, that are listed: outlines and tables take half a millisecond for each."""

    @property
    def numbers(self) -> range:
        """Numbers of the pages in their file, from 1."""
        first, _ = self.picture.part or (1, None)
        return range(first, first + len(self.pages))

    @property
    def n_in_file(self) -> int:
        """Number of pages in the file, of which one alone may be here."""
        _, n = self.picture.part or (1, len(self.pages))
        return n


@dataclass(frozen=True, slots=True)
class Kind:
    """An entry of the registry."""

    name: str
    description: str
    """Shown in OpenAPI and `--help`."""
    wants: Literal["mask", "probability", "objects"]
    """Result of the predictor for a page. For a large image "mask" and "probability" keep one uint8 plane only."""
    module: str
    """File of this package whose `encode(Results) -> Answer` makes it, imported when it is first used."""
    draws: bool = False
    """Whether it needs the pixels of the picture, too."""
    media_types: tuple[str, ...] = ("image/png", "image/tiff")
    """What an answer may be."""

    def encode(self, results: Results) -> Answer:
        """The answer for a picture."""
        answer: Answer = import_module(f"unet.outputs.{self.module}").encode(results)
        return answer
