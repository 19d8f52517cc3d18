"""Overlap-tile: what is put together from pieces is what the whole would have been."""

import numpy as np
import pytest
import torch

from unet import NetworkConfig, Predictor
from unet.network import Variant
from unet.pixels import Preprocessing
from unet.tiles import CONTEXT, Tile, cut


def test_what_fits_is_not_cut() -> None:
    assert cut(896, 896) == [Tile(0, 896, 0, 896)]


def test_tiles_by_hand() -> None:
    assert cut(897, 896) == [Tile(0, 896, 0, 800), Tile(704, 897, 800, 897)]
    assert cut(600, 256) == [
        Tile(0, 256, 0, 160),
        Tile(64, 320, 160, 224),
        Tile(128, 384, 224, 288),
        Tile(192, 448, 288, 352),
        Tile(256, 512, 352, 416),
        Tile(320, 576, 416, 480),
        Tile(384, 600, 480, 600),
    ]


@pytest.mark.parametrize(("size", "context"), [(208, 96), (212, 96), (256, 96), (36, 0), (16, 0)])
@pytest.mark.parametrize("length", [1, 16, 500, 612, 1000])
def test_every_pixel_is_kept_once_far_from_any_cut(length: int, size: int, context: int) -> None:
    tiles = cut(length, size, context)
    kept = [pixel for tile in tiles for pixel in range(tile.keep_start, tile.keep_stop)]
    assert kept == list(range(length))
    for tile in tiles:
        assert tile.stop - tile.start <= size
        assert tile.start % 16 == 0  # where the whole image is pooled, too
        assert tile.start == 0 or tile.keep_start - tile.start >= context
        assert tile.stop == length or tile.stop - tile.keep_stop >= context


def test_a_tile_must_be_larger_than_its_context() -> None:
    with pytest.raises(ValueError, match="at least 208 pixels, found 192"):
        cut(1000, 192)


@pytest.mark.parametrize("variant", ["tutorial", "pytorch-unet"])
@torch.inference_mode()
def test_what_lies_between_two_poolings_reaches_as_far_as_the_context(variant: Variant) -> None:
    """With weights above zero nothing cancels out, and what was not reached stays zero."""
    network = NetworkConfig(bilinear=False, base_channels=1, variant=variant).build().eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.constant_(parameter, 0 if name.endswith("bias") else 1)
    line = torch.zeros(1, 1, 16, 496)
    line[..., 240:256] = 1
    reached = network(line)[0, 0, 0].nonzero()
    assert 240 - CONTEXT <= reached.min() < 240 - (CONTEXT - 16)
    assert 255 + CONTEXT - 16 < reached.max() <= 255 + CONTEXT


@pytest.mark.parametrize("variant", ["tutorial", "pytorch-unet", "paper"])
@pytest.mark.parametrize("size_multiple", [1, 16])
@pytest.mark.parametrize("tta", [False, True])
def test_tiles_change_nothing(variant: str, size_multiple: int, tta: bool) -> None:
    """Transposed up-sampling: every pixel but for rounding, at odd sizes, in more than one class."""
    torch.manual_seed(0)
    config = NetworkConfig(bilinear=False, base_channels=2, n_classes=2, variant=variant)  # type: ignore[arg-type]
    network = config.build().eval()
    image = np.random.default_rng(0).integers(0, 256, (333, 500), dtype=np.uint8)
    preprocessing = Preprocessing(standardise=True, size_multiple=size_multiple)
    whole, tiled = (
        Predictor(network, preprocessing, class_values=(0, 255), tile=tile)(image, tta=tta) for tile in (1024, 256)
    )
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    assert np.ptp(whole) > 1e-3
