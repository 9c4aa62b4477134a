// Similarity of pictures on CUDA. A block makes a tile of windows: sums along rows of pixels of four moments into shared memory, each
// pixel coming from memory once and from the first-level cache after that, then sums down the columns in registers. Backward, a block
// owns a tile of pixels and makes the windows that see it again; the fields of its gradient go through shared memory twice, along rows
// and down. Sums of a block are double and are added outside, in order: no atomics.
#include "quality_cuda.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 256;
enum Field : int { kMeanX, kMeanY, kSquares, kProduct, kFields };
enum Back : int { kOfProduct, kOfSquares, kOfX, kOfY, kBacks };

// Windows of a forward block, pixels of a backward block: what 48 KB of shared memory hold.
template <class M>
struct Tile;
template <>
struct Tile<float> {
  static constexpr int kColumns = 32, kRows = 32, kPixels = 32, kLines = 16;
};
template <>
struct Tile<double> {
  static constexpr int kColumns = 32, kRows = 16, kPixels = 16, kLines = 8;
};

template <class T>
__device__ T* pixel(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column) {
  return static_cast<T*>(image.data) + b * image.batch_stride + c * image.channel_stride + row * image.row_stride +
         column * image.column_stride;
}

template <class M>
__device__ M load(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column) {
  switch (image.dtype) {
    case kFloat64: return static_cast<M>(*pixel<double>(image, b, c, row, column));
    case kBFloat16: return static_cast<M>(to_math(*pixel<bfloat16>(image, b, c, row, column)));
    case kFloat16: return static_cast<M>(to_math(*pixel<float16>(image, b, c, row, column)));
    case kQualityByte: return static_cast<M>(*pixel<uint8_t>(image, b, c, row, column));
    default: return static_cast<M>(*pixel<float>(image, b, c, row, column));
  }
}

template <class M>
__device__ void store(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column, M value) {
  switch (image.dtype) {
    case kFloat64: *pixel<double>(image, b, c, row, column) = static_cast<double>(value); break;
    case kBFloat16: *pixel<bfloat16>(image, b, c, row, column) = Round<bfloat16>::nearest(static_cast<float>(value)); break;
    case kFloat16: *pixel<float16>(image, b, c, row, column) = Round<float16>::nearest(static_cast<float>(value)); break;
    default: *pixel<float>(image, b, c, row, column) = static_cast<float>(value); break;
  }
}

__device__ int64_t within(int64_t at, int64_t size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// Where a block stands, and the pixel about which its moments are taken: the variance of a bright, even area would otherwise be lost in
// the rounding of squares.
template <class M>
struct Place {
  int64_t b, c, row, column;  // of its first window or pixel
  M x, y;
  __device__ Place(const QualityArgs& a, int64_t across, int rows, int columns) {
    const int64_t wide = (across + columns - 1) / columns;
    const int64_t down = gridDim.x / (a.batches * a.channels) / wide, tiles = wide * down;
    const int64_t plane = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    b = plane / a.channels;
    c = plane % a.channels;
    row = tile / wide * rows;
    column = tile % wide * columns;
    x = load<M>(a.x, b, c, row, column) * static_cast<M>(a.scale);
    y = load<M>(a.y, b, c, row, column) * static_cast<M>(a.scale);
  }
};

// Sums along rows for windows `columns` wide from `left` on, of rows of pixels from `top` on; outside the picture, of its nearest pixel.
template <class M, int kTaps, int kRows, int kColumns>
__device__ void sum_across(const QualityArgs& a, const Place<M>& place, int64_t top, int64_t left, M (&sums)[kFields][kRows][kColumns]) {
  const M scale = static_cast<M>(a.scale);
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kColumns; at += kThreads) {
    const int r = at / kColumns, i = at % kColumns;
    const int64_t row = within(top + r, a.height);
    M found[kFields] = {};
    for (int k = 0; k < kTaps; ++k) {
      const int64_t column = within(left + i + k, a.width);
      const M w = static_cast<M>(a.weights[k]);
      const M x = load<M>(a.x, place.b, place.c, row, column) * scale - place.x;
      const M y = load<M>(a.y, place.b, place.c, row, column) * scale - place.y;
      found[kMeanX] += w * x;
      found[kMeanY] += w * y;
      found[kSquares] += w * (x * x + y * y);
      found[kProduct] += w * (x * y);
    }
    for (int field = 0; field < kFields; ++field) sums[field][r][i] = found[field];
  }
}

// What a window holds; names as in quality_reference.py.
template <class M>
struct Window {
  M x, y;  // means less the block's own pixels
  M mean_x, mean_y;
  M above_l, below_l, above_c, below_c;
};
template <class M, int kTaps, int kRows, int kColumns>
__device__ Window<M> window(const QualityArgs& a, const Place<M>& place, const M (&sums)[kFields][kRows][kColumns], int r, int i) {
  M m[kFields] = {};
  for (int k = 0; k < kTaps; ++k) {
    for (int field = 0; field < kFields; ++field) m[field] += static_cast<M>(a.weights[k]) * sums[field][r + k][i];
  }
  Window<M> out;
  out.x = m[kMeanX];
  out.y = m[kMeanY];
  out.mean_x = out.x + place.x;
  out.mean_y = out.y + place.y;
  const M unbiased = static_cast<M>(a.unbiased), c1 = static_cast<M>(a.c1), c2 = static_cast<M>(a.c2);
  // Each sum is rounded alike above and below, so that equal pictures have exactly 1.
  out.above_l = 2 * (out.mean_x * out.mean_y) + c1;
  out.below_l = out.mean_x * out.mean_x + out.mean_y * out.mean_y + c1;
  out.above_c = unbiased * (2 * (m[kProduct] - out.x * out.y)) + c2;
  out.below_c = unbiased * (m[kSquares] - (out.x * out.x + out.y * out.y)) + c2;
  return out;
}

// The sum over the block's threads, in thread 0.
__device__ double block_sum(double value) {
  __shared__ double room[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  room[thread] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) room[thread] += room[thread + half];
  }
  return room[0];
}

template <class M, int kTaps>
__global__ void __launch_bounds__(kThreads) similarity_kernel(QualityArgs a) {
  constexpr int kColumns = Tile<M>::kColumns, kRows = Tile<M>::kRows;
  __shared__ M sums[kFields][kRows + kTaps - 1][kColumns];
  const int64_t down = a.height - kTaps + 1, across = a.width - kTaps + 1;
  const Place<M> place(a, across, kRows, kColumns);
  sum_across<M, kTaps>(a, place, place.row, place.column, sums);
  __syncthreads();
  double total = 0.0;
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kColumns; at += kThreads) {
    const int r = at / kColumns, i = at % kColumns;
    if (place.row + r >= down || place.column + i >= across) continue;
    const Window<M> m = window<M, kTaps>(a, place, sums, r, i);
    total += static_cast<double>(a.contrast ? m.above_c / m.below_c : m.above_l * m.above_c / (m.below_l * m.below_c));
  }
  total = block_sum(total);
  if (threadIdx.x == 0) a.means[blockIdx.x] = total;
}

template <class M>
__global__ void pool_kernel(QualityArgs a) {
  const int64_t width = (a.width + 1) / 2, height = (a.height + 1) / 2;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= a.batches * a.channels * height * width) return;
  const int64_t column = at % width, row = at / width % height, plane = at / width / height;
  const int64_t b = plane / a.channels, c = plane % a.channels;
  for (int picture = 0; picture < 2; ++picture) {
    M sum = 0;
    for (int k = 0; k < 4; ++k) {
      const int64_t r = 2 * row - a.height % 2 + k / 2, i = 2 * column - a.width % 2 + k % 2;
      if (r >= 0 && i >= 0) sum += load<M>(picture == 0 ? a.x : a.y, b, c, r, i);
    }
    store(picture == 0 ? a.px : a.py, b, c, row, column, static_cast<M>(0.25) * sum);
  }
}

template <class M, int kTaps>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(QualityArgs a) {
  constexpr int kPixels = Tile<M>::kPixels, kLines = Tile<M>::kLines, kMore = kTaps - 1;
  __shared__ M sums[kFields][kLines + 2 * kMore][kPixels + kMore];
  __shared__ M fields[kBacks][kLines + kMore][kPixels + kMore];
  const int64_t down = a.height - kMore, across = a.width - kMore;
  const Place<M> place(a, a.width, kLines, kPixels);
  sum_across<M, kTaps>(a, place, place.row - kMore, place.column - kMore, sums);
  __syncthreads();
  const double count = static_cast<double>(down) * static_cast<double>(across);
  const M slope = static_cast<M>(2.0 * a.grad[place.b * a.channels + place.c] / count), unbiased = static_cast<M>(a.unbiased);
  for (int at = static_cast<int>(threadIdx.x); at < (kLines + kMore) * (kPixels + kMore); at += kThreads) {
    const int r = at / (kPixels + kMore), i = at % (kPixels + kMore);
    const int64_t row = place.row - kMore + r, column = place.column - kMore + i;
    M found[kBacks] = {};
    if (row >= 0 && row < down && column >= 0 && column < across) {
      const Window<M> m = window<M, kTaps>(a, place, sums, r, i);
      const M contrast = m.above_c / m.below_c, luminance = m.above_l / m.below_l;
      const M of_contrast = unbiased * slope / m.below_c * (a.contrast ? static_cast<M>(1) : luminance);
      const M of_luminance = a.contrast ? static_cast<M>(0) : slope * contrast / m.below_l;
      found[kOfProduct] = of_contrast;
      found[kOfSquares] = -contrast * of_contrast;
      found[kOfX] = of_luminance * (m.mean_y - luminance * m.mean_x) + of_contrast * (contrast * m.x - m.y);
      found[kOfY] = of_luminance * (m.mean_x - luminance * m.mean_y) + of_contrast * (contrast * m.y - m.x);
    }
    for (int k = 0; k < kBacks; ++k) fields[k][r][i] = found[k];
  }
  __syncthreads();
  // Along rows, over the moments' room: pixel i is seen by the windows i to i + kMore of the tile.
  for (int at = static_cast<int>(threadIdx.x); at < (kLines + kMore) * kPixels; at += kThreads) {
    const int r = at / kPixels, i = at % kPixels;
    M found[kBacks] = {};
    for (int k = 0; k < kTaps; ++k) {
      for (int field = 0; field < kBacks; ++field) found[field] += static_cast<M>(a.weights[k]) * fields[field][r][i + k];
    }
    for (int field = 0; field < kBacks; ++field) sums[field][r][i] = found[field];
  }
  __syncthreads();
  const M scale = static_cast<M>(a.scale);
  for (int at = static_cast<int>(threadIdx.x); at < kLines * kPixels; at += kThreads) {
    const int r = at / kPixels, i = at % kPixels;
    const int64_t row = place.row + r, column = place.column + i;
    if (row >= a.height || column >= a.width) continue;
    M found[kBacks] = {};
    for (int k = 0; k < kTaps; ++k) {
      for (int field = 0; field < kBacks; ++field) found[field] += static_cast<M>(a.weights[k]) * sums[field][r + k][i];
    }
    const M x = load<M>(a.x, place.b, place.c, row, column) * scale - place.x;
    const M y = load<M>(a.y, place.b, place.c, row, column) * scale - place.y;
    for (int picture = 0; picture < 2; ++picture) {
      const QualityImage& out = picture == 0 ? a.dx : a.dy;
      const QualityImage& pooled = picture == 0 ? a.px : a.py;
      if (out.data == nullptr) continue;
      const M own = picture == 0 ? x : y, other = picture == 0 ? y : x;
      M value = scale * (found[picture == 0 ? kOfX : kOfY] + other * found[kOfProduct] + own * found[kOfSquares]);
      if (pooled.data != nullptr) {
        const int64_t half_row = (row + a.height % 2) / 2, half_column = (column + a.width % 2) / 2;
        value += static_cast<M>(0.25) * load<M>(pooled, place.b, place.c, half_row, half_column);
      }
      store(out, place.b, place.c, row, column, value);
    }
  }
}

// ---- squared error ------------------------------------------------------------------------------------------------------------------

constexpr int64_t kEach = 16;  // pixels of a thread

template <class M, class Work>
__device__ void each_pixel(const QualityArgs& a, int64_t pieces, const Work& work) {
  const int64_t b = blockIdx.x / pieces, pixels = a.channels * a.height * a.width;
  const int64_t begin = blockIdx.x % pieces * kThreads * kEach;
  for (int64_t at = begin + threadIdx.x; at < begin + kThreads * kEach && at < pixels; at += kThreads) {
    const int64_t column = at % a.width, row = at / a.width % a.height, c = at / a.width / a.height;
    work(b, c, row, column, load<M>(a.x, b, c, row, column), load<M>(a.y, b, c, row, column));
  }
}

__device__ int64_t pieces_of(const QualityArgs& a) { return gridDim.x / a.batches; }

template <class M>
__global__ void squared_error_kernel(QualityArgs a) {
  double total = 0.0;
  each_pixel<M>(a, pieces_of(a),
                [&](int64_t, int64_t, int64_t, int64_t, M x, M y) { total += static_cast<double>(x - y) * static_cast<double>(x - y); });
  total = block_sum(total);
  if (threadIdx.x == 0) a.means[blockIdx.x] = total;
}

template <class M>
__global__ void squared_error_backward_kernel(QualityArgs a) {
  const double count = static_cast<double>(a.channels * a.height) * static_cast<double>(a.width);
  const int64_t pieces = pieces_of(a);
  const M slope = static_cast<M>(2.0 * a.grad[blockIdx.x / pieces] / count);
  each_pixel<M>(a, pieces, [&](int64_t b, int64_t c, int64_t row, int64_t column, M x, M y) {
    const M found = x == y ? static_cast<M>(0) : slope * (x - y);
    if (a.dx.data != nullptr) store(a.dx, b, c, row, column, found);
    if (a.dy.data != nullptr) store(a.dy, b, c, row, column, -found);
  });
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

template <class M, int kTaps>
void launch_forward(const QualityArgs& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.batches * a.channels * quality_tiles(a)));
  similarity_kernel<M, kTaps><<<grid, kThreads, 0, stream>>>(a);
  if (a.px.data == nullptr) return;
  const int64_t pooled = a.batches * a.channels * ((a.height + 1) / 2) * ((a.width + 1) / 2);
  const dim3 small(static_cast<unsigned>(divided(pooled, kThreads)));
  pool_kernel<M><<<small, kThreads, 0, stream>>>(a);
}

template <class M, int kTaps>
void launch_backward(const QualityArgs& a, cudaStream_t stream) {
  const int64_t tiles = divided(a.height, Tile<M>::kLines) * divided(a.width, Tile<M>::kPixels);
  const dim3 grid(static_cast<unsigned>(a.batches * a.channels * tiles));
  backward_kernel<M, kTaps><<<grid, kThreads, 0, stream>>>(a);
}

}  // namespace

int64_t quality_tiles(const QualityArgs& a) {
  const int64_t rows = a.wide ? Tile<double>::kRows : Tile<float>::kRows;
  return divided(a.height - a.taps + 1, rows) * divided(a.width - a.taps + 1, Tile<float>::kColumns);
}
int64_t quality_pieces(const QualityArgs& a) { return divided(a.channels * a.height * a.width, kThreads * kEach); }

const char* image_similarity(const QualityArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.wide) {
    a.taps == 11 ? launch_forward<double, 11>(a, on) : launch_forward<double, 7>(a, on);
  } else {
    a.taps == 11 ? launch_forward<float, 11>(a, on) : launch_forward<float, 7>(a, on);
  }
  return launched();
}

const char* image_similarity_backward(const QualityArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.wide) {
    a.taps == 11 ? launch_backward<double, 11>(a, on) : launch_backward<double, 7>(a, on);
  } else {
    a.taps == 11 ? launch_backward<float, 11>(a, on) : launch_backward<float, 7>(a, on);
  }
  return launched();
}

const char* image_squared_error(const QualityArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>(a.batches * quality_pieces(a)));
  if (a.wide) {
    squared_error_kernel<double><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  } else {
    squared_error_kernel<float><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  }
  return launched();
}

const char* image_squared_error_backward(const QualityArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>(a.batches * quality_pieces(a)));
  if (a.wide) {
    squared_error_backward_kernel<double><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  } else {
    squared_error_backward_kernel<float><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  }
  return launched();
}

}  // namespace TF_NS
