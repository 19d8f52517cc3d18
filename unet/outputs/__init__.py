"""Kinds of answers: the predictor's results and the uploaded picture -> bytes and their media type. Imports no torch.

A new kind is an entry of the registry, with a file here if it encodes in its own way.
"""

from unet.outputs.kind import Answer, Kind, Legend, as_image
from unet.outputs.labels import find_objects, separate, write_labels

MASK = Kind(
    name="mask",
    description="8-bit, 0 and 255 for a binary model, the class values for several classes",
    wants="mask",
    encode=as_image,
)
PROBABILITY = Kind(
    name="probability",
    description="8-bit grey, 255 certain; of the foreground, or of each pixel's likeliest class",
    wants="probability",
    encode=as_image,
)
LABELS = Kind(
    name="labels",
    description="ids of objects from 1 on, those that touch separated; 16-bit, or a 32-bit TIFF above 65535",
    wants="objects",
    encode=write_labels,
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in (MASK, PROBABILITY, LABELS)}
"""By the name that requests and command lines use."""

__all__ = ["KINDS", "Answer", "Kind", "Legend", "find_objects", "separate"]
