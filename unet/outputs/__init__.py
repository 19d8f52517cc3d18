"""Kinds of answers: the predictor's results and the uploaded picture -> bytes and their media type. Imports no torch.

A new kind is a file here and a line in the registry.
"""

from unet.outputs.kind import Answer, Kind
from unet.outputs.mask import MASK
from unet.outputs.probability import PROBABILITY

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        MASK,
        PROBABILITY,
    )
}
"""By the name that requests and command lines use."""

__all__ = ["KINDS", "Answer", "Kind"]
