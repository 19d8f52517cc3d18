"""The kernels that train on GPUs against what torch computes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.fused import ComposedUp, NormReLU, NormReLUPool, Pooled, fused
from trainer.kernels import TrainingKernels
from trainer.losses import soft_dice_loss
from unet import kernels
from unet.network import UNet

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)
    torch.ones(1, device="cuda", requires_grad=True).exp().backward()  # torch's is the first kernel of its thread


def own() -> TrainingKernels:
    compiled = kernels.compiled(TrainingKernels)
    assert compiled
    return compiled


def values(*shape: int) -> Tensor:
    drawn = torch.randn(shape, device="cuda").to(torch.bfloat16, memory_format=torch.channels_last)
    return drawn.requires_grad_()


SHAPES = [(2, 8, 6, 4), (3, 64, 32, 48), (1, 24, 10, 2), (4, 512, 2, 2), (1, 16, 300, 200)]


def two_norms(channels: int) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    norm = nn.BatchNorm2d(channels).cuda()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, copy.deepcopy(norm)


def gradient(shape: tuple[int, ...], joined: bool = False) -> Tensor:
    """Whose channels differ; as some of those of a larger tensor if `joined`."""
    n, channels, height, width = shape
    by_channel = torch.randn(2 * channels if joined else channels, device="cuda")[:, None, None]
    drawn = by_channel * torch.randn(n, 1, height, width, device="cuda")
    return drawn.to(torch.bfloat16, memory_format=torch.channels_last)[:, -channels:]


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of which no channel's mean is 0: in bfloat16, and the same in float32."""
    x = (values(*shape).detach() + 3 * torch.randn(shape[1], device="cuda")[:, None, None]).bfloat16()
    return x.requires_grad_(), x.float().detach().requires_grad_()


def assert_close(mine: Tensor, theirs: Tensor) -> None:
    """But for values so near 0 that they are on the other side of ReLU, or as large as another before rounding."""
    assert mine.shape == theirs.shape
    difference, scale = (mine.float() - theirs.float()).abs(), theirs.float().std()
    assert (difference < 0.02 * scale + 0.02 * theirs.float().abs()).float().mean() > 0.99


def assert_same_norm(norm: nn.BatchNorm2d, reference: nn.BatchNorm2d) -> None:
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], tensor, rtol=1e-3, atol=5e-3)
    assert_close(norm.weight.grad, reference.weight.grad)
    assert_close(norm.bias.grad, reference.bias.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_and_relu(shape: tuple[int, ...]) -> None:
    norm, reference = two_norms(shape[1])
    mine, theirs = inputs(shape)
    dy = gradient(shape)
    y = NormReLU(norm, own())(mine)
    y.backward(dy)
    expected = reference(theirs).relu()
    expected.backward(dy.float())
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0.02, atol=0.02)
    assert_close(mine.grad, theirs.grad)
    assert_same_norm(norm, reference)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("joined", [False, True])
def test_with_pooling(shape: tuple[int, ...], joined: bool) -> None:
    """What is pooled has a gradient, and so has what is not, which may come as some channels of a larger one."""
    norm, reference = two_norms(shape[1])
    mine, theirs = inputs(shape)
    dy, pooled_dy = gradient(shape, joined), gradient((*shape[:2], shape[2] // 2, shape[3] // 2))
    pooling = NormReLUPool(norm, own())
    y = pooling(mine)
    pooled = Pooled(pooling)(y)
    torch.testing.assert_close(pooled, nn.functional.max_pool2d(y, 2), rtol=0, atol=0)
    torch.autograd.backward([y, pooled], [dy, pooled_dy])
    expected = reference(theirs).relu()
    torch.autograd.backward([expected, nn.functional.max_pool2d(expected, 2)], [dy.float(), pooled_dy.float()])
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0.02, atol=0.02)
    assert_close(mine.grad, theirs.grad)
    assert_same_norm(norm, reference)


@pytest.mark.parametrize("shape", [(2, 8, 4, 2), (2, 8, 6, 4), (3, 64, 32, 48), (4, 512, 2, 2), (1, 16, 300, 200)])
def test_after_an_up_convolution(shape: tuple[int, ...]) -> None:
    """A sum of a finer grid, a coarse one's parities, and a bias by place."""
    n, channels, height, width = shape
    norm, reference = two_norms(channels)
    mine, theirs = inputs(shape)
    coarse = values(n, 4 * channels, height // 2 + 1, width // 2 + 1)
    places = torch.randn(3, 3, channels, device="cuda", requires_grad=True)
    dy = gradient(shape)
    y = NormReLU(norm, own()).after_sum(mine.clone(), coarse, places)
    y.backward(dy)

    their_coarse, their_places = (each.detach().float().requires_grad_() for each in (coarse, places))
    parities = their_coarse.unflatten(1, (2, 2, channels))
    both = [
        torch.stack([parities[:, r, c, :, r : r + height // 2, c : c + width // 2] for c in (0, 1)], -1).flatten(-2)
        for r in (0, 1)
    ]
    added = torch.stack(both, -2).flatten(-3, -2)
    rows, columns = (torch.ones(side, device="cuda").long() for side in (height, width))
    for place in (rows, columns):
        place[0], place[-1] = 0, 2
    total = theirs + added + their_places[rows][:, columns].permute(2, 0, 1)
    expected = reference(total + (total.bfloat16().float() - total).detach()).relu()
    expected.backward(dy.float())
    assert_close(y, expected)
    assert_close(mine.grad, theirs.grad)
    assert_close(coarse.grad, their_coarse.grad)
    by_row = torch.zeros(n, channels, 3, width, device="cuda").index_add(2, rows, mine.grad.float())
    sums = torch.zeros(n, channels, 3, 3, device="cuda").index_add(3, columns, by_row).sum(0).permute(1, 2, 0)
    sums[1, 1] = 0  # batch norm's gradients have no sum, but for rounding
    sums[1, 1] = -sums.sum((0, 1))
    torch.testing.assert_close(places.grad, sums, rtol=1e-3, atol=1e-3 * float(sums.std()))
    assert_same_norm(norm, reference)


@pytest.mark.parametrize("bilinear", [False, True])
def test_a_network_learns_the_same(bilinear: bool) -> None:
    """Its gradients are as near to those of float32 as torch's in bfloat16."""
    network = UNet(1, 1, bilinear, base_channels=8, conv_bias=False).cuda().to(memory_format=torch.channels_last)
    plain, exact = copy.deepcopy(network), copy.deepcopy(network)
    twin = fused(network)
    assert sum(isinstance(module, NormReLU) for module in twin.modules()) == 18
    assert sum(isinstance(module, ComposedUp) for module in twin.modules()) == (0 if bilinear else 4)
    assert not any(isinstance(module, nn.MaxPool2d) for module in twin.modules())
    image = torch.randn(2, 1, 64, 48, device="cuda")
    label = (image[:, 0] > 0).long()
    for module in (twin, plain, exact):
        with torch.autocast("cuda", torch.bfloat16, enabled=module is not exact):
            logits = module(image)
        soft_dice_loss(logits.float(), label).backward()
    parameters = [dict(each.named_parameters()) for each in (network, plain, exact)]
    for name, mine, theirs, wanted in zip(parameters[0], *(each.values() for each in parameters), strict=True):
        found, torchs = (
            nn.functional.cosine_similarity(each.grad.flatten(), wanted.grad.flatten(), dim=0)
            for each in (mine, theirs)
        )
        assert found > torchs - 0.1, name
    for (name, mine), theirs in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02, msg=name)
