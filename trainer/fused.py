"""A network as it is trained on a GPU in bfloat16: batch norm and ReLU together, in three passes over memory forth and
five back, and pooling without indices. torch's own take two to three times as many, and memory is what they wait for.
"""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unet import kernels
from unet.kernels import LANES, LANES_SOURCE, THREADS, Kernels, compile_source, launch
from unet.network import DoubleConv, Down

EPSILON = 1e-5
MOMENTUM = 0.1
"""Of batch norm, both torch's default."""
BLOCKS = 1024
ROWS = 4
"""At most so many blocks of threads share the pixels, and a thread takes so many at least where there are few."""

_SOURCE = (
    LANES_SOURCE
    + f"""
const int THREADS = {THREADS};
const double EPSILON = {EPSILON}, MOMENTUM = {MOMENTUM};
"""
    + r"""
// Neighbouring threads take neighbouring lanes of a row, which is a pixel's channels; the blocks take turns.
struct Part {
  int lane;
  long long first, step;

  __device__ Part(int lanes) {
    int at_once = THREADS / lanes, row = threadIdx.x / lanes;
    lane = threadIdx.x % lanes;
    step = (long long)gridDim.x * at_once;
    first = row < at_once ? (long long)blockIdx.x * at_once + row : 0x7fffffffffffffff;
  }
};

// Two numbers a channel of every thread -> (blocks, 2, channels)
__device__ void add_up(const float* a, const float* b, int lanes, float* sums) {
  __shared__ float held[16][THREADS];
  for (int k = 0; k < 8; k++) {
    held[k][threadIdx.x] = a[k];
    held[8 + k][threadIdx.x] = b[k];
  }
  __syncthreads();
  int channels = 8 * lanes;
  for (int i = threadIdx.x; i < 2 * channels; i += THREADS) {
    int channel = i % channels;
    float sum = 0;
    for (int row = 0; row < THREADS / lanes; row++)
      sum += held[i / channels * 8 + channel % 8][row * lanes + channel / 8];
    sums[(long long)blockIdx.x * 2 * channels + i] = sum;
  }
}

__device__ double total(const float* sums, int blocks, int stride) {
  __shared__ double held[THREADS];
  double sum = 0;
  for (int block = threadIdx.x; block < blocks; block += THREADS) sum += sums[(long long)block * stride];
  held[threadIdx.x] = sum;
  __syncthreads();
  for (int half = THREADS / 2; half; half /= 2) {
    if (threadIdx.x < half) held[threadIdx.x] += held[threadIdx.x + half];
    __syncthreads();
  }
  sum = held[0];
  __syncthreads();
  return sum;
}

extern "C" __global__ void moments(const Lanes* __restrict__ x, float* sums, int rows, int lanes) {
  Part part(lanes);
  float a[8] = {}, b[8] = {}, v[8];
#pragma unroll 4
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) {
      a[k] += v[k];
      b[k] += v[k] * v[k];
    }
  }
  add_up(a, b, lanes, sums);
}

// A block a channel. `norm`: (4, channels), the scale and shift that normalise, the mean, 1 / the standard deviation.
extern "C" __global__ void statistics(const float* sums, int blocks, int rows, const float* weight, const float* bias,
                                      float* running_mean, float* running_var, float* norm) {
  int channel = blockIdx.x, channels = gridDim.x;
  double mean = total(sums + channel, blocks, 2 * channels) / rows;
  double square = total(sums + channels + channel, blocks, 2 * channels) / rows;
  if (threadIdx.x) return;
  double variance = fmax(square - mean * mean, 0.0), inverse = 1 / sqrt(variance + EPSILON);
  double unbiased = rows > 1 ? variance * rows / (rows - 1) : variance;
  running_mean[channel] += MOMENTUM * (mean - running_mean[channel]);
  running_var[channel] += MOMENTUM * (unbiased - running_var[channel]);
  norm[channel] = weight[channel] * inverse;
  norm[channels + channel] = bias[channel] - mean * weight[channel] * inverse;
  norm[2 * channels + channel] = mean;
  norm[3 * channels + channel] = inverse;
}

extern "C" __global__ void norm_relu(const Lanes* __restrict__ x, const float* __restrict__ norm, Lanes* __restrict__ y,
                                     int rows, int lanes) {
  Part part(lanes);
  float scale[8], shift[8], v[8];
  for (int k = 0; k < 8; k++) {
    scale[k] = norm[8 * part.lane + k];
    shift[k] = norm[8 * lanes + 8 * part.lane + k];
  }
#pragma unroll 4
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) {
      float normed = fmaf(scale[k], v[k], shift[k]);
      v[k] = normed > 0 || normed != normed ? normed : 0;
    }
    y[row * lanes + part.lane] = pack(v);
  }
}

// Sums of the gradient below ReLU, and of its product with the normalised x. A row of dy has a stride of its own.
extern "C" __global__ void gradient_moments(const Lanes* __restrict__ dy, int dy_lanes, const Lanes* __restrict__ x,
                                            const float* __restrict__ norm, float* sums, int rows, int lanes) {
  Part part(lanes);
  float scale[8], shift[8], mean[8], inverse[8], a[8] = {}, b[8] = {}, g[8], v[8];
  for (int k = 0; k < 8; k++) {
    int channel = 8 * part.lane + k, channels = 8 * lanes;
    scale[k] = norm[channel];
    shift[k] = norm[channels + channel];
    mean[k] = norm[2 * channels + channel];
    inverse[k] = norm[3 * channels + channel];
  }
#pragma unroll 4
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(dy[row * dy_lanes + part.lane], g);
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) {
      float below = fmaf(scale[k], v[k], shift[k]) > 0 ? g[k] : 0;
      a[k] += below;
      b[k] += below * ((v[k] - mean[k]) * inverse[k]);
    }
  }
  add_up(a, b, lanes, sums);
}

// A block a channel. dx = scale g + `back`[0] x + `back`[1], g being the gradient below ReLU.
extern "C" __global__ void gradient_statistics(const float* sums, int blocks, int rows, const float* norm,
                                               float* weight, float* bias, float* back) {
  int channel = blockIdx.x, channels = gridDim.x;
  double sum = total(sums + channel, blocks, 2 * channels);
  double product = total(sums + channels + channel, blocks, 2 * channels);
  if (threadIdx.x) return;
  double scale = norm[channel], mean = norm[2 * channels + channel], inverse = norm[3 * channels + channel];
  double slope = -scale * inverse * product / rows;
  weight[channel] = product;
  bias[channel] = sum;
  back[channel] = slope;
  back[channels + channel] = -scale * sum / rows - slope * mean;
}

extern "C" __global__ void gradient(const Lanes* __restrict__ dy, int dy_lanes, const Lanes* __restrict__ x,
                                    const float* __restrict__ norm, const float* __restrict__ back,
                                    Lanes* __restrict__ dx, int rows, int lanes) {
  Part part(lanes);
  float scale[8], shift[8], slope[8], offset[8], g[8], v[8];
  for (int k = 0; k < 8; k++) {
    int channel = 8 * part.lane + k, channels = 8 * lanes;
    scale[k] = norm[channel];
    shift[k] = norm[channels + channel];
    slope[k] = back[channel];
    offset[k] = back[channels + channel];
  }
#pragma unroll 2
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(dy[row * dy_lanes + part.lane], g);
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) {
      float below = fmaf(scale[k], v[k], shift[k]) > 0 ? g[k] : 0;
      v[k] = fmaf(scale[k], below, fmaf(slope[k], v[k], offset[k]));
    }
    dx[row * lanes + part.lane] = pack(v);
  }
}

// To the first of the largest of each four, none of which is negative.
extern "C" __global__ void max_pool_gradient(const Lanes* __restrict__ x, const Lanes* __restrict__ dy,
                                             Lanes* __restrict__ dx, int n, int lanes, int w, int h) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int lane = i % lanes, column = i / lanes % w, row = i / lanes / w % h, image = i / lanes / w / h;
  long long corner = (((long long)image * 2 * h + 2 * row) * 2 * w + 2 * column) * lanes + lane;
  long long places[4] = {corner, corner + lanes, corner + 2ll * w * lanes, corner + 2ll * w * lanes + lanes};
  Lanes in[4], out[4], given = dy[i];
  for (int j = 0; j < 4; j++) in[j] = x[places[j]];
  for (int pair = 0; pair < 4; pair++) {
    for (int j = 0; j < 4; j++) out[j].pair[pair] = 0;
    for (int half = 0; half < 32; half += 16) {
      unsigned int v[4], most = 0;
      for (int j = 0; j < 4; j++) {
        v[j] = in[j].pair[pair] >> half & 0x7fff;
        most = max(most, v[j]);
      }
      bool found = false;
      for (int j = 0; j < 4; j++) {
        if (!found && v[j] == most) out[j].pair[pair] |= given.pair[pair] & 0xffffu << half;
        found |= v[j] == most;
      }
    }
  }
  for (int j = 0; j < 4; j++) dx[places[j]] = out[j];
}
"""
)


def fused(network: nn.Module) -> nn.Module:
    """The same parameters and buffers in other modules, for training in bfloat16; the network itself where kernels
    cannot be compiled."""
    own = kernels.compiled(TrainingKernels)
    if own is None:
        return network
    shared = chain(network.parameters(), network.buffers())
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    for module in list(twin.modules()):
        if isinstance(module, DoubleConv):
            module.double_conv = _joined(module.double_conv, own)
        elif isinstance(module, Down):
            module.maxpool_conv[0] = MaxPool(own)
    return twin


def _joined(layers: nn.Sequential, own: "TrainingKernels") -> nn.Sequential:
    """Convolution, batch norm, ReLU, ... -> convolution, both others in one, ..."""
    kept: list[nn.Module] = []
    for layer in layers:
        before = kept[-1] if kept else None
        if isinstance(layer, nn.ReLU) and isinstance(before, nn.BatchNorm2d) and NormReLU.can(before):
            kept[-1] = NormReLU(before, own)
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


class TrainingKernels(Kernels):
    """Numbers are computed in float32 and kept in bfloat16, as torch's are."""

    NAMES = (
        "moments",
        "statistics",
        "norm_relu",
        "gradient_moments",
        "gradient_statistics",
        "gradient",
        "max_pool_gradient",
    )

    def __init__(self) -> None:
        super().__init__()
        self._kernels = dict(zip(self.NAMES, compile_source(_SOURCE, *self.NAMES), strict=True))

    def norm_relu(
        self, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and batch norm's (C,), of which the running ones are updated -> ReLU of the normalised x, and
        what `norm_relu_gradient` has to know."""
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        lanes, blocks = channels // LANES, _blocks(rows, channels)
        sums, norm = weight.new_empty(blocks, 2, channels), weight.new_empty(4, channels)
        y = torch.empty_like(x)
        self._launch("moments", blocks, x, sums, rows, lanes)
        self._launch("statistics", channels, sums, blocks, rows, weight, bias, running_mean, running_var, norm)
        self._launch("norm_relu", blocks, x, norm, y, rows, lanes)
        return y, norm

    def norm_relu_gradient(self, dy: Tensor, x: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, weight and bias."""
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        lanes, blocks = channels // LANES, _blocks(rows, channels)
        dy = dy if _has_rows(dy) else dy.contiguous(memory_format=torch.channels_last)
        dy_lanes = dy.stride(3) // LANES
        sums, back = norm.new_empty(blocks, 2, channels), norm.new_empty(2, channels)
        weight, bias = norm.new_empty(2, channels)
        dx = torch.empty_like(x)
        self._launch("gradient_moments", blocks, dy, dy_lanes, x, norm, sums, rows, lanes)
        self._launch("gradient_statistics", channels, sums, blocks, rows, norm, weight, bias, back)
        self._launch("gradient", blocks, dy, dy_lanes, x, norm, back, dx, rows, lanes)
        return dx, weight, bias

    def max_pool_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Of `max_pool`, for sides that are even."""
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        _, channels, height, width = dy.shape
        n = dy.numel() // LANES
        self._launch("max_pool_gradient", -(-n // THREADS), x, dy, dx, n, channels // LANES, width, height)
        return dx

    def _launch(self, name: str, blocks: int, *arguments: Tensor | int) -> None:
        launch(self._kernels[name], blocks, *arguments)


def _blocks(rows: int, channels: int) -> int:
    at_once = THREADS * LANES // channels
    return max(1, min(BLOCKS, rows // (ROWS * at_once)))


def _has_rows(x: Tensor) -> bool:
    """Whether (B, C, H, W) is channels last, maybe some of the channels of a larger tensor, which joining makes of a
    gradient."""
    _, _, height, width = x.shape
    row = x.stride(3)
    aligned = row % LANES == 0 and x.storage_offset() % LANES == 0
    return aligned and x.stride() == (height * width * row, 1, width * row, row)


class NormReLU(nn.Module):
    def __init__(self, norm: nn.BatchNorm2d, own: TrainingKernels) -> None:
        super().__init__()
        self.norm = norm
        self.own = own

    @staticmethod
    def can(norm: nn.BatchNorm2d) -> bool:
        fits = norm.num_features % LANES == 0 and norm.num_features <= THREADS * LANES
        return fits and norm.eps == EPSILON and norm.momentum == MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return _NormReLU.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, self.own)  # type: ignore[no-any-return, no-untyped-call]


class MaxPool(nn.Module):
    """Of what comes from ReLU."""

    def __init__(self, own: TrainingKernels) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % LANES or x.shape[2] % 2 or x.shape[3] % 2 or x.dtype != torch.bfloat16:
            return nn.functional.max_pool2d(x, 2)
        return _MaxPool.apply(x, self.own)  # type: ignore[no-any-return, no-untyped-call]


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, own: Any) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y, norm = own.norm_relu(x, weight, bias, mean, var)
        ctx.save_for_backward(x, norm)
        ctx.own = own
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.own.norm_relu_gradient(dy, *ctx.saved_tensors), None, None, None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Any) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x)
        ctx.own = own
        return own.max_pool(x)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.own.max_pool_gradient(dy, *ctx.saved_tensors), None
