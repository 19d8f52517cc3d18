"""A kind of answer: what it asks of the predictor, and how that becomes a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self

from unet.imaging import Array, Picture, write_png, write_tiff


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
class Kind:
    """An entry of the registry."""

    name: str
    description: str
    """Shown in OpenAPI and `--help`."""
    wants: Literal["mask", "probability", "probabilities", "objects"]
    """Result of the predictor for a page, `Predictor.start(page, wants)`: for a large image it keeps only the uint8
    plane of "mask" or "probability"."""
    encode: Callable[[Sequence[Array], Picture, Legend], Answer]
    """Results, one for each page, the picture they are of, and what they mean -> the answer. The service keeps no pages
    of the picture: a kind that draws on them has to ask for them."""


def as_image(results: Sequence[Array], picture: Picture, _: Legend) -> Answer:
    """One (H, W) or (H, W, 3) result -> PNG, several -> a TIFF of as many pages with the picture's resolution."""
    if len(results) == 1:
        return Answer(write_png(results[0]), "image/png")
    return Answer(write_tiff(results, like=picture), "image/tiff")
