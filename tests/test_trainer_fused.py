"""The kernels that train on GPUs against what torch computes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.fused import NormReLU, TrainingKernels, fused
from trainer.losses import soft_dice_loss
from unet import kernels
from unet.network import UNet

pytestmark = pytest.mark.gpu


def own() -> TrainingKernels:
    compiled = kernels.compiled(TrainingKernels)
    assert compiled
    return compiled


def values(*shape: int) -> Tensor:
    drawn = torch.randn(shape, device="cuda").to(torch.bfloat16, memory_format=torch.channels_last)
    return drawn.requires_grad_()


@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (3, 64, 32, 48), (1, 24, 5, 7), (4, 512, 2, 2), (1, 16, 300, 200)])
@pytest.mark.parametrize("joined", [False, True])
def test_batch_norm_and_relu(shape: tuple[int, ...], joined: bool) -> None:
    """Also where the gradient comes as some channels of a larger one."""
    channels = shape[1]
    norm = nn.BatchNorm2d(channels).cuda()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    reference = nn.BatchNorm2d(channels).cuda()
    reference.load_state_dict(norm.state_dict())
    x = values(*shape)
    offset = 3 * torch.randn(channels, device="cuda")[:, None, None]  # no mean is 0
    mine, theirs = ((x.detach() + offset).bfloat16().requires_grad_() for _ in range(2))
    dy = torch.randn(2 * channels if joined else channels, device="cuda")[:, None, None] * torch.randn_like(x[:, :1])
    dy = (dy + torch.zeros(shape[0], 1, *shape[2:], device="cuda")).to(
        torch.bfloat16, memory_format=torch.channels_last
    )[:, -channels:]

    y = NormReLU(norm, own())(mine)
    y.backward(dy)
    expected = reference(theirs.float()).relu()
    expected.backward(dy.float())

    torch.testing.assert_close(y, expected.bfloat16(), rtol=0.02, atol=0.02)
    scale = theirs.grad.float().std()
    close = (mine.grad.float() - theirs.grad.float()).abs() < 0.02 * scale + 0.02 * theirs.grad.float().abs()
    assert close.float().mean() > 0.999  # but for values so near 0 that they are on the other side of ReLU
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    for found, wanted in ((norm.weight.grad, reference.weight.grad), (norm.bias.grad, reference.bias.grad)):
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * float(wanted.std()))


@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (3, 64, 32, 48)])
def test_the_gradient_of_max_pool(shape: tuple[int, ...]) -> None:
    x = values(*shape).detach().relu()
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    y = own().max_pool(mine.detach())
    dy = torch.randn_like(y)
    nn.functional.max_pool2d(theirs, 2).backward(dy)
    found = own().max_pool_gradient(dy, mine.detach())
    above = x > 0  # where all four are 0, ReLU lets no gradient through
    torch.testing.assert_close(found * above, theirs.grad * above, rtol=0, atol=0)


def test_a_network_learns_the_same() -> None:
    """Its gradients are as near to those of float32 as torch's in bfloat16."""
    network = UNet(1, 1, bilinear=False, base_channels=8, conv_bias=False).cuda().to(memory_format=torch.channels_last)
    plain, exact = copy.deepcopy(network), copy.deepcopy(network)
    twin = fused(network)
    assert sum(isinstance(module, NormReLU) for module in twin.modules()) == 18
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
        assert found > torchs - 0.03, name
    for (name, mine), theirs in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02, msg=name)
