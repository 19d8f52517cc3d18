"""The U-Net of Ronneberger, Fischer and Brox, 2015 (https://arxiv.org/abs/1505.04597), and its two common descendants.

Three variants share the modules and the parameter names (`inc.* down1.* ... up4.* outc.*`), so existing files load:

    tutorial       padded convolutions, batch norm, 64-128-256-512-512 down, 256-128-64-64 up (default).
    pytorch-unet   as tutorial, but a wider middle in each up step (bilinear), or 1024 channels at the
                   bottom and halving up-convolutions (transposed).
    paper          figure 1 of the paper: unpadded convolutions, so the output is smaller than the input by a constant
                   border (572 -> 388); no batch norm; drop-out at the end of the contracting path.

Shapes: B batch, C channels, H and W height and width in pixels.
"""

import copy
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Variant = Literal["tutorial", "pytorch-unet", "paper"]

STRIDE = 16
"""Side in pixels of the square that one pixel at the bottom stands for, after four poolings."""

PAPER_MARGIN = 92
"""Pixels that the unpadded network loses on each side: (572 - 388) / 2."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Settings needed to build a `UNet`. Raises ValueError naming the field that makes no sense."""

    n_channels: int = 1  # channels of the image: 1 grey, 3 RGB, or others
    n_classes: int = 1  # channels of the output: 1 for a binary mask (one logit), K for K exclusive classes
    bilinear: bool = True  # up-sampling: bilinear (align_corners), or by transposed convolution
    base_channels: int = 64  # channels of the first level; every other width is a multiple of it
    variant: Variant = "tutorial"
    conv_bias: bool = True  # bias of the 3x3 convolutions (redundant before batch norm; newer files leave it out)

    def __post_init__(self) -> None:
        for name in ("n_channels", "n_classes", "base_channels"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, found {getattr(self, name)!r}")
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, found {self.variant!r}")
        if self.variant == "paper" and (self.bilinear or not self.conv_bias):
            raise ValueError("variant paper: has up-convolutions and biases: bilinear=False, conv_bias=True")

    def build(self) -> "UNet":
        """A new network with fresh weights."""
        return UNet(**asdict(self))


class DoubleConv(nn.Module):
    """Double convolution: (3x3 convolution, batch norm, ReLU) twice. Inputs are concatenated along the channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid_channels: int | None = None,
        *,
        bias: bool = True,
        padded: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        mid_channels = mid_channels or out_channels
        for n_in, n_out in ((in_channels, mid_channels), (mid_channels, out_channels)):
            layers.append(nn.Conv2d(n_in, n_out, kernel_size=3, padding=int(padded), bias=bias))
            if norm:
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.ReLU(inplace=True))
        self.double_conv = nn.Sequential(*layers)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.double_conv(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class Down(nn.Module):
    """Max pooling that halves height and width, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int, **conv: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels, **conv))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)  # type: ignore[no-any-return]


class Up(nn.Module):
    """Up-sampling that doubles height and width, concatenation with the skip connection, then a double convolution.

    `in_channels` counts both halves of the concatenated tensor. `halving`: the coarser level has `in_channels`, which
    the up-convolution halves; otherwise it has half of them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bilinear: bool = True,
        *,
        mid_channels: int | None = None,
        halving: bool = False,
        **conv: bool,
    ) -> None:
        super().__init__()
        half = in_channels // 2
        self.up: nn.Module
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(in_channels if halving else half, half, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels, mid_channels, **conv)
        self.padded = conv.get("padded", True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`x`: (B, C, H, W) from the coarser level; `skip`: (B, C, 2H, 2W) from the finer one, or an odd size above."""
        x = self.up(x)  # (B, C, 2H, 2W)
        if self.padded:  # an odd size lost its last row or column in the pooling: pad it back
            x = fit(x, skip)
        else:  # the paper's "copy and crop"
            skip = fit(skip, x)
        return self.conv(skip, x)  # type: ignore[no-any-return]


class OutConv(nn.Module):
    """1x1 convolution: features to logits."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Image (B, n_channels, H, W) -> logits (B, n_classes, H, W); for the paper's variant (H - 184, W - 184).

    H, W >= 16; for the paper's variant sides of 16 k + 12, at least 188.
    """

    def __init__(
        self,
        n_channels: int = 1,
        n_classes: int = 1,
        bilinear: bool = True,
        *,
        base_channels: int = 64,
        variant: Variant = "tutorial",
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.config = NetworkConfig(
            n_channels=n_channels,
            n_classes=n_classes,
            bilinear=bilinear,
            base_channels=base_channels,
            variant=variant,
            conv_bias=conv_bias,
        )
        paper = variant == "paper"
        conv = {"bias": conv_bias, "padded": not paper, "norm": not paper}
        c = base_channels
        halving = variant != "tutorial" and not bilinear
        bottom = 16 * c if halving else 8 * c

        self.inc = DoubleConv(n_channels, c, **conv)
        self.down1 = Down(c, 2 * c, **conv)
        self.down2 = Down(2 * c, 4 * c, **conv)
        self.down3 = Down(4 * c, 8 * c, **conv)
        self.down4 = Down(8 * c, bottom, **conv)
        self.dropout = nn.Dropout(0.0)  # the trainer sets the rate

        def up(in_channels: int, out_channels: int) -> Up:
            mid = in_channels // 2 if variant == "pytorch-unet" and bilinear else None
            return Up(in_channels, out_channels, bilinear, mid_channels=mid, halving=halving, **conv)

        self.up1 = up(16 * c, 8 * c if halving else 4 * c)
        self.up2 = up(8 * c, 4 * c if halving else 2 * c)
        self.up3 = up(4 * c, 2 * c if halving else c)
        self.up4 = up(2 * c, c)
        self.outc = OutConv(c, n_classes)
        if paper:
            self.apply(_init_gaussian)

    @property
    def margin(self) -> int:
        """Pixels that the output lacks on each side of the input."""
        return PAPER_MARGIN if self.config.variant == "paper" else 0

    def folded(self) -> "UNet":
        """A copy for inference, with batch norm folded into the convolutions."""
        network = copy.deepcopy(self).eval()
        for module in network.modules():
            if isinstance(module, DoubleConv):
                module.double_conv = _folded(module.double_conv)
        return network.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)  # (B, c, H, W)
        x2 = self.down1(x1)  # (B, 2c, H/2, W/2)
        x3 = self.down2(x2)  # (B, 4c, H/4, W/4)
        x4 = self.down3(x3)  # (B, 8c, H/8, W/8)
        x5 = self.down4(x4)  # (B, 8c or 16c, H/16, W/16)
        x = self.up1(self.dropout(x5), x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        x = self.up4(x, x1)  # (B, c, H, W)
        return self.outc(x)  # type: ignore[no-any-return]


def fit(x: Tensor, like: Tensor) -> Tensor:
    """Zero-pads or crops `x` about its centre to the height and width of `like`."""
    dh, dw = like.shape[-2] - x.shape[-2], like.shape[-1] - x.shape[-1]
    if dh == dw == 0:  # F.pad would copy
        return x
    return F.pad(x, [dw // 2, dw - dw // 2, dh // 2, dh - dh // 2])


def _folded(layers: nn.Sequential) -> nn.Sequential:
    """Convolution, batch norm, ReLU, ... -> convolution, ReLU, ..."""
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = kept.pop()
            assert isinstance(convolution, nn.Conv2d)
            kept.append(fuse_conv_bn_eval(convolution, layer))
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


def _init_gaussian(module: nn.Module) -> None:
    """Gaussian weights of standard deviation sqrt(2 / N) for N incoming nodes of a neuron (the paper, section 3)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        # each output of a stride-2, 2x2 transposed convolution sees one input pixel
        incoming = module.in_channels * (kernel if isinstance(module, nn.Conv2d) else 1)
        nn.init.normal_(module.weight, std=sqrt(2 / incoming))
        assert module.bias is not None
        nn.init.zeros_(module.bias)
