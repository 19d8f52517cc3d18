"""Tiles of large images: the stitched result equals that of the whole image."""

import numpy as np
import pytest
import torch

from unet import NetworkConfig, Predictor
from unet.network import Variant
from unet.pixels import Preprocessing
from unet.tiles import CONTEXT, Span, cut


def test_a_side_that_fits_is_not_cut() -> None:
    assert cut(896, 896) == [Span(0, 896, 0, 896)]


def test_spans_by_hand() -> None:
    assert cut(897, 896) == [Span(0, 896, 0, 800), Span(704, 897, 800, 897)]
    assert cut(600, 256) == [
        Span(0, 256, 0, 160),
        Span(64, 320, 160, 224),
        Span(128, 384, 224, 288),
        Span(192, 448, 288, 352),
        Span(256, 512, 352, 416),
        Span(320, 576, 416, 480),
        Span(384, 600, 480, 600),
    ]


@pytest.mark.parametrize(("size", "context"), [(208, 96), (212, 96), (256, 96), (36, 0), (16, 0)])
@pytest.mark.parametrize("length", [1, 16, 500, 612, 1000])
def test_every_pixel_is_kept_once_and_with_its_context(length: int, size: int, context: int) -> None:
    spans = cut(length, size, context)
    kept = [pixel for span in spans for pixel in range(span.keep_start, span.keep_stop)]
    assert kept == list(range(length))
    for span in spans:
        assert span.stop - span.start <= size
        assert span.start % 16 == 0  # on the grid of poolings of the whole image
        assert span.start == 0 or span.keep_start - span.start >= context
        assert span.stop == length or span.stop - span.keep_stop >= context


def test_a_tile_must_be_larger_than_its_context() -> None:
    with pytest.raises(ValueError, match="at least 208 pixels, found 192"):
        cut(1000, 192)


@pytest.mark.parametrize("variant", ["tutorial", "pytorch-unet"])
@torch.inference_mode()
def test_the_receptive_field_is_the_context(variant: Variant) -> None:
    """All weights are positive, so nothing cancels out: pixels out of reach of the input stay zero."""
    network = NetworkConfig(bilinear=False, base_channels=1, variant=variant).build().eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.constant_(parameter, 0 if name.endswith("bias") else 1)
    line = torch.zeros(1, 1, 16, 496)
    line[..., 240:256] = 1
    reached = network(line)[0, 0, 0].nonzero()
    assert 240 - CONTEXT <= reached.min() < 240 - (CONTEXT - 16)
    assert 255 + CONTEXT - 16 < reached.max() <= 255 + CONTEXT


@pytest.mark.parametrize(
    ("variant", "size_multiple", "tta"),
    [
        ("tutorial", 1, False),
        ("tutorial", 16, True),
        ("pytorch-unet", 16, False),
        ("pytorch-unet", 1, True),
        ("paper", 16, False),
        ("paper", 16, True),
    ],
)
def test_tiles_do_not_change_probabilities(variant: str, size_multiple: int, tta: bool) -> None:
    """Equal to rounding, at odd sizes and for several classes, with transposed up-sampling."""
    torch.manual_seed(0)
    config = NetworkConfig(bilinear=False, base_channels=2, n_classes=2, variant=variant)  # type: ignore[arg-type]
    network = config.build().eval()
    image = np.random.default_rng(0).integers(0, 256, (270, 301), dtype=np.uint8)
    preprocessing = Preprocessing(standardise=True, size_multiple=size_multiple)
    predictor = Predictor(network, preprocessing)
    whole = predictor(image, tta=tta)
    predictor.tile = 256
    tiled = predictor(image, tta=tta)
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    assert np.ptp(whole) > 1e-3
