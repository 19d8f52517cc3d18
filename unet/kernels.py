"""Kernels for a GPU, for what torch's own need two to three times the time of the memory that is moved. NVRTC, which
comes with torch, compiles them in half a second, without a compiler on the machine.

Tensors are bfloat16, channels last, with a multiple of `LANES` channels: a thread takes so many at once.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

LANES = 8
THREADS = 256

LANES_SOURCE = r"""
struct __align__(16) Lanes { unsigned int pair[4]; };  // 8 bfloat16, two to a register

__device__ unsigned int rounded(float value) {  // to the nearest, ties to even: the upper half of what comes back
  unsigned int bits = __float_as_uint(value);
  return bits + 0x7fff + (bits >> 16 & 1);
}

__device__ void unpack(const Lanes& from, float* to) {
  for (int k = 0; k < 4; k++) {
    to[2 * k] = __uint_as_float(from.pair[k] << 16);
    to[2 * k + 1] = __uint_as_float(from.pair[k] & 0xffff0000);
  }
}

__device__ Lanes pack(const float* from) {
  Lanes to;
  for (int k = 0; k < 4; k++) to.pair[k] = rounded(from[2 * k]) >> 16 | rounded(from[2 * k + 1]) & 0xffff0000;
  return to;
}
"""

_SOURCE = (
    LANES_SOURCE
    + r"""
// As integers, numbers that are not negative (they come from ReLU) have the same order; -0 is the least of them.
__device__ Lanes larger(Lanes a, const Lanes& b) {
  for (int i = 0; i < 4; i++) a.pair[i] = __vmaxs2(a.pair[i], b.pair[i]);
  return a;
}

extern "C" __global__ void max_pool(const Lanes* x, Lanes* y, int n, int lanes, int w, int h, int x_w, int x_h) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int lane = i % lanes, column = i / lanes % w, row = i / lanes / w % h, image = i / lanes / w / h;
  const Lanes* corner = x + (((long long)image * x_h + 2 * row) * x_w + 2 * column) * lanes + lane;
  const Lanes* below = corner + (long long)x_w * lanes;
  y[i] = larger(larger(corner[0], corner[lanes]), larger(below[0], below[lanes]));
}

extern "C" __global__ void add_bias(Lanes* x, const Lanes* bias, int n, int lanes) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float a[8], b[8];
  unpack(x[i], a);
  unpack(bias[i % lanes], b);
  for (int k = 0; k < 8; k++) a[k] += b[k];
  x[i] = pack(a);
}

// `places` has `rows` x `columns` of `lanes`: the first, inside, and from the last one or two.
extern "C" __global__ void add_coarse_relu(Lanes* x, const Lanes* coarse, const float* places, int n, int lanes, int w,
                                           int h, int rows, int columns) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int lane = i % lanes, column = i / lanes % w, row = i / lanes / w % h, image = i / lanes / w / h;
  long long from = ((long long)image * (h / 2 + 1) + (row + 1) / 2) * (w / 2 + 1) + (column + 1) / 2;
  int row_place = row ? max(1, row - h + rows) : 0, column_place = column ? max(1, column - w + columns) : 0;
  const float* place = places + ((row_place * columns + column_place) * lanes + lane) * 8;
  float a[8], b[8];
  unpack(x[i], a);
  unpack(coarse[(4 * from + 2 * (row % 2) + column % 2) * lanes + lane], b);
  for (int k = 0; k < 8; k++) {
    float sum = a[k] + b[k] + place[k];
    a[k] = sum > 0 || sum != sum ? sum : 0;
  }
  x[i] = pack(a);
}
"""
)

Kernel = Callable[..., None]


def compile_source(source: str, *names: str) -> list[Kernel]:
    """Some kernels of a CUDA source, for the current GPU: `launch` them. Raises whatever goes wrong."""
    from torch.utils import cpp_extension  # takes a while, and is not there without setuptools

    toolkit = cpp_extension.CUDA_HOME
    try:
        # torch wants one for its headers, of which these kernels include none
        cpp_extension.CUDA_HOME = toolkit or sys.prefix
        return [torch.cuda._compile_kernel(source, name) for name in names]
    finally:
        cpp_extension.CUDA_HOME = toolkit


def launch(kernel: Kernel, blocks: int, *arguments: Tensor | int) -> None:
    """In blocks of `THREADS`. Not as the first of all that a thread does on a GPU: torch makes it ready for that."""
    kernel(grid=(blocks, 1, 1), block=(THREADS, 1, 1), args=list(arguments))


class Kernels:
    """Raises whatever goes wrong where they cannot be compiled."""

    def __init__(self) -> None:
        kernels = compile_source(_SOURCE, "max_pool", "add_bias", "add_coarse_relu")
        self._max_pool, self._add_bias, self._add_coarse_relu = kernels

    def max_pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W), nothing negative -> (B, C, H // 2, W // 2), as `nn.MaxPool2d(2)`."""
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        shape = (n, channels, height // 2, width // 2)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        count, lanes = y.numel() // LANES, channels // LANES
        launch(self._max_pool, -(-count // THREADS), x, y, count, lanes, width // 2, height // 2, width, height)
        return y

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, C, H, W), channels last, and (C,) -> the first, to which the second has been added."""
        count = x.numel() // LANES
        launch(self._add_bias, -(-count // THREADS), x, bias, count, x.shape[1] // LANES)
        return x

    def add_coarse_relu(self, x: Tensor, coarse: Tensor, places: Tensor) -> Tensor:
        """(B, C, H, W), ReLU of its sum with the (B, 4 C, H // 2 + 1, W // 2 + 1) of a convolution with
        `unet.composed.kernels` and with (3 or 4, 3 or 4, C), a bias by place; all channels last, written over the
        first."""
        count, (_, channels, height, width) = x.numel() // LANES, x.shape
        size = count, channels // LANES, width, height
        launch(self._add_coarse_relu, -(-count // THREADS), x, coarse, places, *size, *places.shape[:2])
        return x


K = TypeVar("K")


@cache
def compiled(kind: type[K]) -> K | None:
    """For the current GPU; None where that does not work: slower, not worse."""
    try:
        return kind()
    except Exception as error:  # torch promises nothing here yet
        log.warning("slower than with kernels of our own: %s", str(error).partition("\n")[0])
        return None
