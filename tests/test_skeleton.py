"""Soft skeletons that can be drawn by hand."""

import torch

from trainer.losses import skeleton


def test_the_centre_line_of_a_bar() -> None:
    bar = torch.zeros(1, 1, 9, 24)
    bar[..., 2:7, 2:22] = 1  # five rows: two erosions leave the middle one, two pixels shorter at each end
    expected = torch.zeros(1, 1, 9, 24)
    expected[..., 4, 4:20] = 1
    assert torch.equal(skeleton(bar), expected)
    assert torch.equal(skeleton(bar / 2), expected / 2)


def test_a_second_opening_adds_to_what_is_missing() -> None:
    """A peak of 1 on a square of 0.5: the first opening removes 0.5 of the peak, the next one the rest of it."""
    peak = torch.zeros(1, 1, 7, 7)
    peak[..., 2:5, 2:5] = 0.5
    peak[..., 3, 3] = 1
    expected = torch.zeros(1, 1, 7, 7)
    expected[..., 3, 3] = 0.75
    assert torch.equal(skeleton(peak), expected)
