"""Augmentation: geometry, smoothness and limits of the random changes."""

import math
from dataclasses import replace

import pytest
import torch

from trainer.data import augment
from trainer.data.augment import adjust_grey, blur, draw, elastic_displacement, sample_image, to_image
from trainer.recipes import STRONG, Augmentation

NOTHING = Augmentation(flip=False)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampling_grid(n: int, size: int, how: Augmentation, seed: int = 0) -> torch.Tensor:
    return augment.sampling_grid(draw(n, size, how, rng(seed)), size, how)


def crop(image: torch.Tensor, grid: torch.Tensor, centre: torch.Tensor, mode: str) -> torch.Tensor:
    """The crop with a grid, (S, S, 2), around a centre, (x, y), in pixels."""
    (places,) = to_image(grid[None], centre[None], torch.tensor([[image.shape[2], image.shape[1]]]))
    return sample_image(image, places, mode)


def adjusted(images: torch.Tensor, how: Augmentation, seed: int = 0) -> torch.Tensor:
    return adjust_grey(images, draw(len(images), images.shape[-1], how, rng(seed)), how)


def test_no_augmentation_copies_pixels() -> None:
    image = torch.rand(2, 40, 50)
    (grid,) = sampling_grid(1, 16, NOTHING)
    corner = torch.tensor([7.0, 5.0])  # x, y
    interpolated = crop(image, grid, corner + 7.5, "bilinear")
    torch.testing.assert_close(interpolated, image[:, 5:21, 7:23], atol=1e-5, rtol=0)
    assert torch.equal(crop(image, grid, corner + 7.5, "nearest"), image[:, 5:21, 7:23])


def test_the_image_is_mirrored_beyond_its_border() -> None:
    image = torch.arange(4.0).reshape(1, 1, 4)
    (grid,) = sampling_grid(1, 8, NOTHING)
    row = crop(image, grid, torch.tensor([3.5, 0.0]), "nearest")[0, 0]
    assert row.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]


def test_rotation_scale_and_flips_keep_shapes() -> None:
    """All distances between grid points are multiplied by the same factor, which is within the limits of the scale."""
    how = Augmentation(rotation=180, scale=0.5, quarter_turns=True)
    grids = sampling_grid(64, 9, how)
    along_x = (grids[:, 4, 8] - grids[:, 4, 0]).norm(dim=-1) / 8
    along_y = (grids[:, 8, 4] - grids[:, 0, 4]).norm(dim=-1) / 8
    torch.testing.assert_close(along_x, along_y)
    assert 1 / 1.5 <= along_x.min() < 0.75
    assert 1.3 < along_x.max() <= 1.5
    torch.testing.assert_close(grids[:, 4, 4], torch.zeros(64, 2))
    orientation = torch.linalg.det(torch.stack([grids[:, 4, 5], grids[:, 5, 4]], dim=1))
    assert (orientation > 0).any()
    assert (orientation < 0).any()  # flipped


def test_rotations_reach_the_largest_angle_and_not_more() -> None:
    grids = sampling_grid(200, 3, Augmentation(flip=False, rotation=30))
    right = grids[:, 1, 2]
    angles = torch.rad2deg(torch.atan2(right[:, 1], right[:, 0]))
    assert angles.abs().max() <= 30.001
    assert angles.abs().max() > 25


def test_elastic_displacements_are_smooth_and_have_the_given_deviation() -> None:
    how = Augmentation(elastic=10, elastic_spacing=64)
    d = elastic_displacement(draw(50, 256, how, rng()), 256, how)
    assert d.shape == (50, 256, 256, 2)
    assert d[:, ::64, ::64].std().item() == pytest.approx(10, rel=0.15)
    steps = torch.cat([d.diff(dim=1).flatten(), d.diff(dim=2).flatten()]).abs()
    assert steps.max() < 2  # pixels


@pytest.mark.parametrize("size", [16, 48, 96, 256])
def test_elastic_deformation_never_folds_a_crop(size: int) -> None:
    """The cross product of steps to the right and down is positive everywhere, however small the crop."""
    how = replace(STRONG, flip=False)
    grids = sampling_grid(64, size, how)
    (ax, ay), (bx, by) = (grids[:, :-1, :-1].sub(each).unbind(-1) for each in (grids[:, :-1, 1:], grids[:, 1:, :-1]))
    assert (ax * by - ay * bx).min() > 0


def test_image_and_label_move_together() -> None:
    """A label that is the thresholded image is so after augmentation, up to interpolation at its border."""
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    image = torch.sin(x / 15)[None] + torch.cos(y / 18)
    label = (image > 0).float()
    for grid in sampling_grid(8, 128, STRONG):
        centre = torch.tensor([90.0, 110.0])
        moved, moved_label = crop(image, grid, centre, "bilinear"), crop(label, grid, centre, "nearest")
        assert set(moved_label.unique().tolist()) <= {0.0, 1.0}
        assert ((moved > 0).float() == moved_label).float().mean() > 0.98


def test_changes_of_grey_values_stay_within_their_limits() -> None:
    images = torch.randn(64, 1, 32, 32, generator=rng(1))
    shifted = adjusted(images, Augmentation(brightness=0.5)) - images
    assert shifted.std(dim=(2, 3)).max() < 1e-6
    assert 0.4 < shifted.abs().max() <= 0.5
    spread = adjusted(images, Augmentation(contrast=0.5)).std(dim=(2, 3)) / images.std(dim=(2, 3))
    assert 1 / 1.5 <= spread.min() < 0.75
    assert 1.3 < spread.max() <= 1.5001
    noise = (adjusted(images, Augmentation(noise=0.3)) - images).std(dim=(1, 2, 3))
    assert 20 < (noise == 0).sum() < 44  # about half of 64
    assert 0.2 < noise.max() < 0.32
    gamma = adjusted(images, Augmentation(gamma=0.5))
    torch.testing.assert_close(gamma.amin((2, 3)), images.amin((2, 3)))
    torch.testing.assert_close(gamma.amax((2, 3)), images.amax((2, 3)), atol=1e-4, rtol=0)


def test_each_image_is_blurred_by_its_own_gaussian() -> None:
    images = torch.zeros(2, 1, 21, 21)
    images[:, :, 10, 10] = 1
    sharp, blurred = blur(images, torch.tensor([0.0, 1.0]), radius=5)[:, 0]
    torch.testing.assert_close(sharp, images[0, 0])
    assert blurred.sum().item() == pytest.approx(1)
    assert (blurred[10, 11] / blurred[10, 10]).item() == pytest.approx(math.exp(-0.5), rel=1e-5)


def test_the_same_seed_gives_the_same_augmentation() -> None:
    images = torch.randn(4, 1, 32, 32)
    assert torch.equal(sampling_grid(4, 32, STRONG, 3), sampling_grid(4, 32, STRONG, 3))
    assert torch.equal(adjusted(images, STRONG, 3), adjusted(images, STRONG, 3))
    assert not torch.equal(sampling_grid(4, 32, STRONG, 3), sampling_grid(4, 32, STRONG, 4))
