"""Kernels that a network learns with on a GPU, in bfloat16: what stands between two convolutions in as few passes over
memory as there can be, since memory is what it waits for. torch's own take two to three times as many.

See `unet.kernels`; their source is in `trainer.cuda`.
"""

import torch
from torch import Tensor

from trainer.cuda import EDGE_BLOCKS, SOURCE
from unet.kernels import LANES, THREADS, Kernels, compile_source, launch

BLOCKS = 1024
ROWS = 4
"""At most so many blocks of threads share the pixels, and a thread takes so many at least where there are few."""


class TrainingKernels(Kernels):
    """Of batch norm and ReLU: (B, C, H, W), and batch norm's (C,) in float32, of which the running ones are updated.

    What goes forth comes with `norm`, which what goes back has to know. `rows` are the pixels of a batch.
    """

    NAMES = (
        "moments",
        "add_moments",
        "statistics",
        "norm_relu",
        "norm_relu_pool",
        "gradient_moments",
        "gradient_moments_pool",
        "gradient_statistics",
        "gradient",
        "gradient_add",
        "gradient_pool",
        "edge_sums",
    )

    def __init__(self) -> None:
        super().__init__()
        self._kernels = dict(zip(self.NAMES, compile_source(SOURCE, *self.NAMES), strict=True))

    def moments(self, x: Tensor) -> Tensor:
        """Sums for `norm`."""
        sums, rows, lanes = self._sums(x, x.numel() // x.shape[1])
        self._launch("moments", len(sums), x, sums, rows, lanes)
        return sums

    def add_moments(self, x: Tensor, coarse: Tensor, places: Tensor) -> Tensor:
        """Sums for `norm`, of x += the (B, 4 C, H / 2 + 1, W / 2 + 1) of a convolution with `unet.composed.kernels` and
        (3, 3, C), a bias by place."""
        sums, cells, lanes = self._sums(x, coarse.numel() // x.shape[1])
        self._launch("add_moments", len(sums), x, coarse, places, sums, cells, lanes, *x.shape[2:])
        return sums

    def norm(self, x: Tensor, sums: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        channels = x.shape[1]
        norm = weight.new_empty(4, channels)
        rows = x.numel() // channels
        self._launch("statistics", channels, sums, len(sums), rows, weight, bias, mean, var, norm)
        return norm

    def norm_relu(self, x: Tensor, norm: Tensor) -> Tensor:
        y = torch.empty_like(x)
        rows, lanes = x.numel() // x.shape[1], x.shape[1] // LANES
        self._launch("norm_relu", _blocks(rows, lanes), x, norm, y, rows, lanes)
        return y

    def norm_relu_pool(self, x: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """And the largest of each four, (B, C, H / 2, W / 2)."""
        n, channels, height, width = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
        y = torch.empty_like(x)
        pooled = x.new_empty(n, height, width, channels).permute(0, 3, 1, 2)
        rows, lanes = n * height * width, channels // LANES
        self._launch("norm_relu_pool", _blocks(rows, lanes), x, norm, y, pooled, rows, lanes, height, width)
        return y, pooled

    def gradient(self, dy: Tensor, x: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, weight and bias."""
        dy, dx = _channels_last(dy), torch.empty_like(x)
        sums, rows, lanes = self._sums(x, x.numel() // x.shape[1])
        self._launch("gradient_moments", len(sums), dy, x, norm, sums, rows, lanes)
        weight, bias, back = self._gradient_statistics(x, sums, norm)
        self._launch("gradient", len(sums), dy, x, norm, back, dx, rows, lanes)
        return dx, weight, bias

    def gradient_add(self, dy: Tensor, x: Tensor, norm: Tensor) -> tuple[Tensor, ...]:
        """Of x, `coarse` and `places` of `add_moments`, weight and bias."""
        dy, dx = _channels_last(dy), torch.empty_like(x)
        n, channels, height, width = x.shape
        sums, rows, lanes = self._sums(x, x.numel() // channels)
        self._launch("gradient_moments", len(sums), dy, x, norm, sums, rows, lanes)
        weight, bias, back = self._gradient_statistics(x, sums, norm)
        coarse = x.new_empty(n, height // 2 + 1, width // 2 + 1, 4 * channels).permute(0, 3, 1, 2)
        cells = coarse.numel() // channels
        self._launch("gradient_add", len(sums), dy, x, norm, back, dx, coarse, cells, lanes, height, width)
        edges = norm.new_empty(8, EDGE_BLOCKS, 2, channels)
        self._launch("edge_sums", 8 * EDGE_BLOCKS, dx, edges, n, lanes, height, width)
        edges = edges[:, :, 0].sum(1)
        # Batch norm takes away whatever is the same everywhere, so that all of an image has a gradient of 0.
        places = torch.cat([edges[:4], -edges.sum(0, keepdim=True), edges[4:]])
        return dx, coarse, places.view(3, 3, channels), weight, bias

    def gradient_pool(self, dy: Tensor, pooled: Tensor, x: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, weight and bias, `pooled` being the gradient of what `norm_relu_pool` has pooled."""
        dy = dy if _has_rows(dy) else _channels_last(dy)
        pooled, dx = _channels_last(pooled), torch.empty_like(x)
        sums, rows, lanes = self._sums(x, pooled.numel() // x.shape[1])
        seen = dy, dy.stride(3) // LANES, pooled, x, norm
        size = rows, lanes, *pooled.shape[2:]
        self._launch("gradient_moments_pool", len(sums), *seen, sums, *size)
        weight, bias, back = self._gradient_statistics(x, sums, norm)
        self._launch("gradient_pool", len(sums), *seen, back, dx, *size)
        return dx, weight, bias

    def _gradient_statistics(self, x: Tensor, sums: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        weight, bias = norm.new_empty(2, channels)
        back = norm.new_empty(2, channels)
        rows = x.numel() // channels
        self._launch("gradient_statistics", channels, sums, len(sums), rows, norm, weight, bias, back)
        return weight, bias, back

    def _sums(self, x: Tensor, rows: int) -> tuple[Tensor, int, int]:
        """Room for two sums a channel by each block, the rows, and lanes."""
        channels = x.shape[1]
        lanes = channels // LANES
        return x.new_empty(_blocks(rows, lanes), 2, channels, dtype=torch.float32), rows, lanes

    def _launch(self, name: str, blocks: int, *arguments: Tensor | int) -> None:
        launch(self._kernels[name], blocks, *arguments)


def _blocks(rows: int, lanes: int) -> int:
    return max(1, min(BLOCKS, rows // (ROWS * (THREADS // lanes))))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _has_rows(x: Tensor) -> bool:
    """Whether (B, C, H, W) is channels last, maybe some of the channels of a larger tensor, which joining makes of a
    gradient."""
    _, _, height, width = x.shape
    row = x.stride(3)
    aligned = row % LANES == 0 and x.storage_offset() % LANES == 0
    return aligned and x.stride() == (height * width * row, 1, width * row, row)
