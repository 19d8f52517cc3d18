"""Centre lines that can be drawn by hand, and a GPU's against the CPU's."""

import pytest
import torch

from trainer.skeleton import skeleton
from unet import kernels


def test_the_centre_line_of_a_bar() -> None:
    bar = torch.zeros(1, 1, 9, 24)
    bar[..., 2:7, 2:22] = 1  # five rows: two erosions leave the one in the middle, two pixels shorter at each end
    expected = torch.zeros(1, 1, 9, 24)
    expected[..., 4, 4:20] = 1
    assert torch.equal(skeleton(bar), expected)
    assert torch.equal(skeleton(bar / 2), expected / 2)


def test_what_is_found_twice_counts_for_what_was_missing() -> None:
    """A peak of 1 on a square of 0.5: an opening takes 0.5 off the peak, the next one the other half of it."""
    peak = torch.zeros(1, 1, 7, 7)
    peak[..., 2:5, 2:5] = 0.5
    peak[..., 3, 3] = 1
    expected = torch.zeros(1, 1, 7, 7)
    expected[..., 3, 3] = 0.75
    assert torch.equal(skeleton(peak), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (32, 32), (100, 64), (65, 33)])
def test_all_at_once_on_a_gpu(size: tuple[int, int]) -> None:
    """Tiles, the last of which are cut off, look as far as five erosions do."""
    torch.manual_seed(0)
    blots = torch.nn.functional.avg_pool2d(torch.randn(2, 3, *size), 9, stride=1, padding=4)
    for x in ((blots > 0).float(), (9 * blots).sigmoid()):
        torch.testing.assert_close(skeleton(x.to("cuda")).cpu(), skeleton(x), rtol=1e-5, atol=1e-6)
    assert kernels.compiled.cache_info().currsize  # it was not the CPU's way
