"""Kernels for a GPU, for what torch's own need two to three times the time of the memory that is moved. NVRTC, which
comes with torch, compiles them in half a second, without a compiler on the machine.

Tensors are bfloat16, channels last, with a multiple of `LANES` channels: a thread takes so many at once.
"""

import logging
import sys
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

LANES = 8
_THREADS = 256

_SOURCE = r"""
struct __align__(16) Lanes { unsigned int pair[4]; };  // 8 bfloat16, two to a register

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

__device__ unsigned int rounded(float value) {  // to the nearest, ties to even: the upper half of what comes back
  unsigned int bits = __float_as_uint(value);
  return bits + 0x7fff + (bits >> 16 & 1);
}

extern "C" __global__ void add_bias(Lanes* x, const Lanes* bias, int n, int lanes) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Lanes a = x[i], b = bias[i % lanes];
  for (int k = 0; k < 4; k++) {
    float low = __uint_as_float(a.pair[k] << 16) + __uint_as_float(b.pair[k] << 16);
    float high = __uint_as_float(a.pair[k] & 0xffff0000) + __uint_as_float(b.pair[k] & 0xffff0000);
    a.pair[k] = rounded(low) >> 16 | rounded(high) & 0xffff0000;
  }
  x[i] = a;
}
"""


class Kernels:
    """Raises whatever goes wrong where they cannot be compiled."""

    def __init__(self) -> None:
        from torch.utils import cpp_extension  # takes a while, and is not there without setuptools

        toolkit = cpp_extension.CUDA_HOME
        try:
            # torch wants one for its headers, of which these kernels include none
            cpp_extension.CUDA_HOME = toolkit or sys.prefix
            self._max_pool = torch.cuda._compile_kernel(_SOURCE, "max_pool")
            self._add_bias = torch.cuda._compile_kernel(_SOURCE, "add_bias")
        finally:
            cpp_extension.CUDA_HOME = toolkit

    def max_pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W), nothing negative -> (B, C, H // 2, W // 2), as `nn.MaxPool2d(2)`."""
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        shape = (n, channels, height // 2, width // 2)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        count = y.numel() // LANES
        self._launch(self._max_pool, count, x, y, count, channels // LANES, width // 2, height // 2, width, height)
        return y

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, C, H, W), channels last, and (C,) -> the first, to which the second has been added."""
        count = x.numel() // LANES
        self._launch(self._add_bias, count, x, bias, count, x.shape[1] // LANES)
        return x

    @staticmethod
    def _launch(kernel: "torch.cuda._utils._CudaKernel", n: int, *arguments: Tensor | int) -> None:
        kernel(grid=(-(-n // _THREADS), 1, 1), block=(_THREADS, 1, 1), args=list(arguments))


@cache
def compiled() -> Kernels | None:
    """For the current GPU; None where that does not work: slower, not worse."""
    try:
        return Kernels()
    except Exception as error:  # torch promises nothing here yet
        log.warning("slower than with kernels of our own: %s", str(error).partition("\n")[0])
        return None
