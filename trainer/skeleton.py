"""Centre lines, as clDice has them (Shit et al. 2021, https://arxiv.org/abs/2003.07311), without gradients."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unet import kernels
from unet.kernels import THREADS, compile_source, launch

STEPS = 5
"""Erosions, of a pixel on each side: lines up to twice as wide have a centre line."""
TILE = 32


@torch.no_grad()
def skeleton(x: Tensor) -> Tensor:
    """(B, K, H, W) in 0..1 -> the same, of its centre lines: what openings take away from one erosion to the next."""
    kernel: _Kernel | None = kernels.compiled(_Kernel) if x.is_cuda and x.dtype == torch.float32 else None
    if kernel:
        return kernel.of(x.contiguous())
    lines = torch.zeros_like(x)
    for _ in range(STEPS):
        eroded = torch.minimum(_of_three(x, 2, torch.minimum, 1), _of_three(x, 3, torch.minimum, 1))
        opened = _of_three(_of_three(eroded, 2, torch.maximum, 0), 3, torch.maximum, 0)
        found = F.relu(x - opened)
        lines = lines + F.relu(found - lines * found)
        x = eroded
    return lines


def _of_three(x: Tensor, dim: int, extreme: Callable[[Tensor, Tensor], Tensor], beyond: float) -> Tensor:
    """Each pixel and its two neighbours along a dimension; `beyond` the border."""
    padded = F.pad(x, [0, 0, 1, 1] if dim == 2 else [1, 1, 0, 0], value=beyond)
    return extreme(extreme(padded.narrow(dim, 0, x.shape[dim]), padded.narrow(dim, 2, x.shape[dim])), x)


_SOURCE = (
    f"const int THREADS = {THREADS}, TILE = {TILE}, STEPS = {STEPS};"
    + r"""
const int REACH = STEPS + 1, SIDE = TILE + 2 * REACH;  // an erosion looks a pixel further, the last opening two

// A block a tile. What is beyond the image is no number, which is neither larger nor smaller than any.
extern "C" __global__ void skeleton(const float* __restrict__ x, float* __restrict__ lines, int h, int w) {
  __shared__ float held[2][SIDE * SIDE];
  float *seen = held[0], *eroded = held[1], found[TILE * TILE / THREADS] = {};
  int columns = (w + TILE - 1) / TILE, rows = (h + TILE - 1) / TILE;
  int left = blockIdx.x % columns * TILE - REACH, top = blockIdx.x / columns % rows * TILE - REACH;
  long long image = (long long)(blockIdx.x / columns / rows) * h * w;
  for (int i = threadIdx.x; i < SIDE * SIDE; i += THREADS) {
    int row = top + i / SIDE, column = left + i % SIDE;
    bool inside = row >= 0 && row < h && column >= 0 && column < w;
    seen[i] = inside ? x[image + (long long)row * w + column] : __uint_as_float(0x7fffffff);
  }
  for (int step = 0; step < STEPS; step++) {
    __syncthreads();
    for (int i = threadIdx.x; i < SIDE * SIDE; i += THREADS) {
      int row = i / SIDE, column = i % SIDE;
      float least = seen[i];
      if (least == least && row > step && row < SIDE - 1 - step && column > step && column < SIDE - 1 - step)
        least = fminf(fminf(fminf(seen[i - SIDE], seen[i + SIDE]), fminf(seen[i - 1], seen[i + 1])), least);
      eroded[i] = least;
    }
    __syncthreads();
    for (int j = 0; j < TILE * TILE / THREADS; j++) {
      int mine = j * THREADS + threadIdx.x, i = (REACH + mine / TILE) * SIDE + REACH + mine % TILE;
      float most = eroded[i];
      for (int line = i - SIDE; line <= i + SIDE; line += SIDE)
        most = fmaxf(fmaxf(most, eroded[line]), fmaxf(eroded[line - 1], eroded[line + 1]));
      float lost = fmaxf(seen[i] - most, 0.0f);
      found[j] += fmaxf(lost - found[j] * lost, 0.0f);
    }
    __syncthreads();
    float* next = eroded;
    eroded = seen;
    seen = next;
  }
  for (int j = 0; j < TILE * TILE / THREADS; j++) {
    int mine = j * THREADS + threadIdx.x, row = top + REACH + mine / TILE, column = left + REACH + mine % TILE;
    if (row < h && column < w) lines[image + (long long)row * w + column] = found[j];
  }
}
"""
)


class _Kernel:
    """All erosions in one pass over memory, where the above takes a hundred."""

    def __init__(self) -> None:
        (self._skeleton,) = compile_source(_SOURCE, "skeleton")

    def of(self, x: Tensor) -> Tensor:
        lines = torch.empty_like(x)
        n, k, height, width = x.shape
        tiles = n * k * -(-height // TILE) * -(-width // TILE)
        launch(self._skeleton, tiles, x, lines, height, width)
        return lines
