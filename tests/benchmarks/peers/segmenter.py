"""What every peer serves: upload in, mask out, with this project's own predictor and codecs, on one thread."""

import unet.process  # noqa: F401  isort: skip  (before torch)
import torch

from unet import Predictor
from unet.images import decode, encode_png

WORKERS = 2
"""Processes of each peer; this project's service has as many streams on two cores."""


class Segmenter:
    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.load(model)
        self.predictor.mask(decode(encode_png(torch.zeros(256, 256, dtype=torch.uint8).numpy()))[0])

    def __call__(self, upload: bytes) -> bytes:
        (image,) = decode(upload)
        return encode_png(self.predictor.mask(image), flat=True)
