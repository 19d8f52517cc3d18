"""The CUDA source of `trainer.kernels`. Numbers are computed in float32 and kept in bfloat16, as torch's are."""

from unet.kernels import LANES_SOURCE, THREADS

EPSILON = 1e-5
MOMENTUM = 0.1
"""Of batch norm, both torch's default."""
EDGE_BLOCKS = 16
"""So many share each of the four sides of an image, and each corner."""

SOURCE = (
    LANES_SOURCE
    + f"""
const int THREADS = {THREADS}, EDGE_BLOCKS = {EDGE_BLOCKS};
const double EPSILON = {EPSILON}, MOMENTUM = {MOMENTUM};
"""
    + r"""
// Neighbouring threads take neighbouring lanes of a row, which is a pixel's channels; the blocks take turns.
struct Part {
  int lane;
  long long first, step;

  __device__ Part(int lanes, int block, int blocks) {
    int at_once = THREADS / lanes, row = threadIdx.x / lanes;
    lane = threadIdx.x % lanes;
    step = (long long)blocks * at_once;
    first = row < at_once ? (long long)block * at_once + row : 0x7fffffffffffffff;
  }
};

// Of eight channels: what normalises, y = scale x + shift, and the mean and 1 / the standard deviation.
struct Norm {
  float scale[8], shift[8], mean[8], inverse[8];

  __device__ Norm(const float* norm, int lane, int lanes) {
    for (int k = 0; k < 8; k++) {
      int channel = 8 * lane + k, channels = 8 * lanes;
      scale[k] = norm[channel];
      shift[k] = norm[channels + channel];
      mean[k] = norm[2 * channels + channel];
      inverse[k] = norm[3 * channels + channel];
    }
  }

  __device__ float operator()(int k, float x) const { return fmaf(scale[k], x, shift[k]); }
};

// The gradient of x: scale g + slope x + offset, g being the gradient below ReLU.
struct Back {
  float slope[8], offset[8];

  __device__ Back(const float* back, int lane, int lanes) {
    for (int k = 0; k < 8; k++) {
      slope[k] = back[8 * lane + k];
      offset[k] = back[8 * lanes + 8 * lane + k];
    }
  }

  __device__ float operator()(const Norm& norm, int k, float g, float x) const {
    float below = norm(k, x) > 0 ? g : 0;
    return fmaf(norm.scale[k], below, fmaf(slope[k], x, offset[k]));
  }
};

// The pixels that become one in pooling: of (B, 2 h, 2 w), and `row` of (B, h, w).
struct Square {
  long long rows[4];

  __device__ Square(unsigned row, unsigned h, unsigned w) {
    unsigned column = row % w, line = row / w;
    long long corner = 4ll * line * w + 2 * column;
    rows[0] = corner;
    rows[1] = corner + 1;
    rows[2] = corner + 2 * w;
    rows[3] = corner + 2 * w + 1;
  }
};

// Where one parity of a coarse pixel lies in (B, h, w): see unet/composed.py. `place` is that of a bias.
struct Cell {
  bool inside;
  long long row;
  int place;

  __device__ Cell(unsigned cell, int h, int w) {
    unsigned coarse = cell / 4, columns = w / 2 + 1, lines = h / 2 + 1;
    int x = 2 * (coarse % columns) - cell % 2, y = 2 * (coarse / columns % lines) - cell / 2 % 2;
    inside = x >= 0 && x < w && y >= 0 && y < h;
    row = ((long long)(coarse / columns / lines) * h + y) * w + x;
    place = 3 * (y == 0 ? 0 : y == h - 1 ? 2 : 1) + (x == 0 ? 0 : x == w - 1 ? 2 : 1);
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

__device__ float relu(float x) { return x > 0 || x != x ? x : 0; }

extern "C" __global__ void moments(const Lanes* __restrict__ x, float* sums, int rows, int lanes) {
  Part part(lanes, blockIdx.x, gridDim.x);
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

// To x, too, comes what the coarse grid and a bias by place add to it.
extern "C" __global__ void add_moments(Lanes* __restrict__ x, const Lanes* __restrict__ coarse,
                                       const float* __restrict__ places, float* sums, int cells, int lanes, int h,
                                       int w) {
  Part part(lanes, blockIdx.x, gridDim.x);
  float a[8] = {}, b[8] = {}, v[8], added[8];
#pragma unroll 4
  for (long long i = part.first; i < cells; i += part.step) {
    Cell cell(i, h, w);
    if (!cell.inside) continue;
    const float* place = places + (cell.place * lanes + part.lane) * 8;
    unpack(x[cell.row * lanes + part.lane], v);
    unpack(coarse[i * lanes + part.lane], added);
    for (int k = 0; k < 8; k++) v[k] += added[k] + place[k];
    Lanes kept = pack(v);
    x[cell.row * lanes + part.lane] = kept;
    unpack(kept, v);
    for (int k = 0; k < 8; k++) {
      a[k] += v[k];
      b[k] += v[k] * v[k];
    }
  }
  add_up(a, b, lanes, sums);
}

// A block a channel. `norm`: (4, channels), see Norm.
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

extern "C" __global__ void norm_relu(const Lanes* __restrict__ x, const float* __restrict__ numbers,
                                     Lanes* __restrict__ y, int rows, int lanes) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
  float v[8];
#pragma unroll 4
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) v[k] = relu(norm(k, v[k]));
    y[row * lanes + part.lane] = pack(v);
  }
}

// The largest of each four, too: (B, h, w) of `rows` pixels.
extern "C" __global__ void norm_relu_pool(const Lanes* __restrict__ x, const float* __restrict__ numbers,
                                          Lanes* __restrict__ y, Lanes* __restrict__ pooled, int rows, int lanes, int h,
                                          int w) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
#pragma unroll 1
  for (long long row = part.first; row < rows; row += part.step) {
    Square square(row, h, w);
    float v[4][8], most[8] = {};
    for (int j = 0; j < 4; j++) unpack(x[square.rows[j] * lanes + part.lane], v[j]);
    for (int j = 0; j < 4; j++) {
      for (int k = 0; k < 8; k++) {
        v[j][k] = relu(norm(k, v[j][k]));
        most[k] = v[j][k] > most[k] || v[j][k] != v[j][k] ? v[j][k] : most[k];
      }
      y[square.rows[j] * lanes + part.lane] = pack(v[j]);
    }
    pooled[row * lanes + part.lane] = pack(most);
  }
}

// Sums of the gradient below ReLU, and of its product with the normalised x.
extern "C" __global__ void gradient_moments(const Lanes* __restrict__ dy, const Lanes* __restrict__ x,
                                            const float* __restrict__ numbers, float* sums, int rows, int lanes) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
  float a[8] = {}, b[8] = {}, g[8], v[8];
#pragma unroll 4
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(dy[row * lanes + part.lane], g);
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) {
      float below = norm(k, v[k]) > 0 ? g[k] : 0;
      a[k] += below;
      b[k] += below * ((v[k] - norm.mean[k]) * norm.inverse[k]);
    }
  }
  add_up(a, b, lanes, sums);
}

// Four pixels of x and dy, and to the largest of them what comes back through pooling. A row of dy has its own stride.
__device__ void load_square(const Square& square, const Lanes* x, const Lanes* dy, int dy_lanes, Lanes pooled,
                            const Norm& norm, int lane, int lanes, float v[4][8], float g[4][8]) {
  float given[8];
  unpack(pooled, given);
  for (int j = 0; j < 4; j++) {
    unpack(x[square.rows[j] * lanes + lane], v[j]);
    unpack(dy[square.rows[j] * dy_lanes + lane], g[j]);
  }
  for (int k = 0; k < 8; k++) {
    float n[4] = {norm(k, v[0][k]), norm(k, v[1][k]), norm(k, v[2][k]), norm(k, v[3][k])};
    float most = fmaxf(fmaxf(n[0], n[1]), fmaxf(n[2], n[3]));
    bool found = false;
    for (int j = 0; j < 4; j++) {
      if (!found && n[j] == most) g[j][k] += given[k];
      found |= n[j] == most;
    }
  }
}

extern "C" __global__ void gradient_moments_pool(const Lanes* __restrict__ dy, int dy_lanes,
                                                 const Lanes* __restrict__ pooled, const Lanes* __restrict__ x,
                                                 const float* __restrict__ numbers, float* sums, int rows, int lanes,
                                                 int h, int w) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
  float a[8] = {}, b[8] = {};
#pragma unroll 1
  for (long long row = part.first; row < rows; row += part.step) {
    float v[4][8], g[4][8];
    load_square(Square(row, h, w), x, dy, dy_lanes, pooled[row * lanes + part.lane], norm, part.lane, lanes, v, g);
    for (int j = 0; j < 4; j++)
      for (int k = 0; k < 8; k++) {
        float below = norm(k, v[j][k]) > 0 ? g[j][k] : 0;
        a[k] += below;
        b[k] += below * ((v[j][k] - norm.mean[k]) * norm.inverse[k]);
      }
  }
  add_up(a, b, lanes, sums);
}

// A block a channel. `back`: (2, channels), see Back.
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

extern "C" __global__ void gradient(const Lanes* __restrict__ dy, const Lanes* __restrict__ x,
                                    const float* __restrict__ numbers, const float* __restrict__ slopes,
                                    Lanes* __restrict__ dx, int rows, int lanes) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
  Back back(slopes, part.lane, lanes);
  float g[8], v[8];
#pragma unroll 2
  for (long long row = part.first; row < rows; row += part.step) {
    unpack(dy[row * lanes + part.lane], g);
    unpack(x[row * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) v[k] = back(norm, k, g[k], v[k]);
    dx[row * lanes + part.lane] = pack(v);
  }
}

// For what was added from the coarse grid, too: its pixels of which nothing was used have a gradient of zero.
extern "C" __global__ void gradient_add(const Lanes* __restrict__ dy, const Lanes* __restrict__ x,
                                        const float* __restrict__ numbers, const float* __restrict__ slopes,
                                        Lanes* __restrict__ dx, Lanes* __restrict__ coarse, int cells, int lanes, int h,
                                        int w) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
  Back back(slopes, part.lane, lanes);
  float g[8], v[8];
#pragma unroll 2
  for (long long i = part.first; i < cells; i += part.step) {
    Cell cell(i, h, w);
    Lanes found = {};
    if (cell.inside) {
      unpack(dy[cell.row * lanes + part.lane], g);
      unpack(x[cell.row * lanes + part.lane], v);
      for (int k = 0; k < 8; k++) v[k] = back(norm, k, g[k], v[k]);
      found = pack(v);
      dx[cell.row * lanes + part.lane] = found;
    }
    coarse[i * lanes + part.lane] = found;
  }
}

extern "C" __global__ void gradient_pool(const Lanes* __restrict__ dy, int dy_lanes,
                                         const Lanes* __restrict__ pooled, const Lanes* __restrict__ x,
                                         const float* __restrict__ numbers, const float* __restrict__ slopes,
                                         Lanes* __restrict__ dx, int rows, int lanes, int h, int w) {
  Part part(lanes, blockIdx.x, gridDim.x);
  Norm norm(numbers, part.lane, lanes);
  Back back(slopes, part.lane, lanes);
#pragma unroll 1
  for (long long row = part.first; row < rows; row += part.step) {
    Square square(row, h, w);
    float v[4][8], g[4][8];
    load_square(square, x, dy, dy_lanes, pooled[row * lanes + part.lane], norm, part.lane, lanes, v, g);
    for (int j = 0; j < 4; j++) {
      for (int k = 0; k < 8; k++) v[j][k] = back(norm, k, g[j][k], v[j][k]);
      dx[square.rows[j] * lanes + part.lane] = pack(v[j]);
    }
  }
}

// Of (B, h, w) pixels: sums over the sides and corners, (8, EDGE_BLOCKS, 2, channels), of which the first are meant.
extern "C" __global__ void edge_sums(const Lanes* __restrict__ x, float* sums, int images, int lanes, int h, int w) {
  int edge = blockIdx.x / EDGE_BLOCKS, place = edge < 4 ? edge : edge + 1;
  int first_y[3] = {0, 1, h - 1}, first_x[3] = {0, 1, w - 1}, y = first_y[place / 3], x_ = first_x[place % 3];
  int lines = place / 3 == 1 ? h - 2 : 1, columns = place % 3 == 1 ? w - 2 : 1;
  Part part(lanes, blockIdx.x % EDGE_BLOCKS, EDGE_BLOCKS);
  float a[8] = {}, none[8] = {}, v[8];
  for (long long i = part.first; i < (long long)images * lines * columns; i += part.step) {
    long long image = i / columns / lines, line = y + i / columns % lines, column = x_ + i % columns;
    unpack(x[((image * h + line) * w + column) * lanes + part.lane], v);
    for (int k = 0; k < 8; k++) a[k] += v[k];
  }
  add_up(a, none, lanes, sums);
}
"""
)
