// Kernel discrepancies on CUDA: a block owns 64 points and meets all others, 64 at a time.
//
// 256 threads hold the 64 x 64 tile of the kernel matrix in registers, 4 x 4 each. Both products, of the points and of the weighted slopes
// with the points, run from shared memory, 16 multiplications for two 16-byte reads. Every tile is made twice, once for either block, so
// that nobody waits and each sum has one order. Bound by multiplications: 5 n^2 d of them, against n d floats of memory.
//
// Dimensions beyond 64: a block owns one chunk of 64 of the gradient and makes the inner products anew.
#include "mmd_cuda.hpp"

#include "mmd.hpp"

#include <cuda_runtime.h>

namespace TF_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = 64;   // points in a tile, and dimensions of the gradient in a chunk
constexpr int kDepth = 32;  // dimensions of an inner product in shared memory at a time
constexpr int kPitch = kSide + 4;
constexpr unsigned kAll = 0xFFFFFFFFu;

struct alignas(16) Four {
  float of[4];
};

struct Shared {
  // the inner product's operands [dimension][point] and, when they are done, the points [point][dimension] of the gradient's chunk
  alignas(16) float operands[2 * kDepth * kPitch];
  alignas(16) float slopes[kSide * kPitch];  // [column][row]
  float norms[2][kSide];
};

__device__ Four read4(const float* p) { return *reinterpret_cast<const Four*>(p); }

__device__ float exp_device(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  return std::exp(x);
#endif
}

// Rows of a thread: 4 * (thread / 16) + i; columns: 4 * (thread % 16) + j.
struct Place {
  int row, column;
};
__device__ Place place() {
  const int t = static_cast<int>(threadIdx.x);
  return {4 * (t / 16), 4 * (t % 16)};
}

__device__ float clamped_distance(float d) { return d < 0.0f ? 0.0f : d; }  // keeps NaN

// |z_i - z_j|^2 of a tile, exactly 0 for i == j.
__device__ void distances(Shared& s, const float* z, int64_t points, int64_t d, int64_t first_row, int64_t first_column, float out[4][4]) {
  const int t = static_cast<int>(threadIdx.x);
  const Place at = place();
  float inner[4][4] = {};
  float norm = 0.0f;  // of row t / 2 .. for the first 128 threads: 64 rows, 64 columns
  for (int64_t begin = 0; begin < d; begin += kDepth) {
    __syncthreads();
    for (int i = t; i < 2 * kSide * kDepth; i += kThreads) {
      const int which = i / (kSide * kDepth);
      const int point = i % (kSide * kDepth) / kDepth, k = i % kDepth;
      const int64_t row = (which == 0 ? first_row : first_column) + point;
      const bool inside = row < points && begin + k < d;
      s.operands[(which * kDepth + k) * kPitch + point] = inside ? z[row * d + begin + k] : 0.0f;
    }
    __syncthreads();
    if (t < 2 * kSide) {
      const float* mine = s.operands + (t / kSide) * kDepth * kPitch + t % kSide;
      for (int k = 0; k < kDepth; ++k) norm = fma(mine[k * kPitch], mine[k * kPitch], norm);
    }
    for (int k = 0; k < kDepth; ++k) {
      const Four a = read4(s.operands + k * kPitch + at.row);
      const Four b = read4(s.operands + (kDepth + k) * kPitch + at.column);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) inner[i][j] = fma(a.of[i], b.of[j], inner[i][j]);
      }
    }
  }
  if (t < 2 * kSide) s.norms[t / kSide][t % kSide] = norm;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float sum = s.norms[0][at.row + i] + s.norms[1][at.column + j];
      const bool same = first_row + at.row + i == first_column + at.column + j;
      out[i][j] = same ? 0.0f : clamped_distance(fma(-2.0f, inner[i][j], sum));
    }
  }
}

__device__ void kernel_of(float d, const float* inverse, int kernels, bool doubling, bool clamp, float& total, float& slope) {
  total = slope = 0.0f;
  if (doubling) {
    float p = exp_device(-d * inverse[kernels - 1]);
    for (int u = kernels - 1; u >= 0; --u) {
      total += p;
      slope = fma(p, inverse[u], slope);
      p *= p;
    }
    return;
  }
  for (int u = 0; u < kernels; ++u) {
    const float t = d * inverse[u];
    const bool outside = clamp && (t < kClampLow || t > kClampHigh);
    const float e = exp_device(-(clamp && t < kClampLow ? kClampLow : clamp && t > kClampHigh ? kClampHigh : t));
    total += e;
    slope = fma(outside ? 0.0f : e, inverse[u], slope);
  }
}

// moved[row][k] += sum_column g[row][column] z[column][k] for the chunk of dimensions that begins at `chunk`.
__device__ void add_moved(Shared& s, const float* z, int64_t points, int64_t d, int64_t first_column, int64_t chunk, const float g[4][4],
                          float moved[4][4]) {
  const int t = static_cast<int>(threadIdx.x);
  const Place at = place();
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s.slopes[(at.column + j) * kPitch + at.row + i] = g[i][j];
  }
  static_assert(2 * kDepth >= kSide, "the chunk takes the operands' place");
  for (int i = t; i < kSide * kSide; i += kThreads) {
    const int64_t row = first_column + i / kSide, k = chunk + i % kSide;
    s.operands[(i / kSide) * kPitch + i % kSide] = row < points && k < d ? z[row * d + k] : 0.0f;
  }
  __syncthreads();
  for (int c = 0; c < kSide; ++c) {
    const Four a = read4(s.slopes + c * kPitch + at.row);
    const Four b = read4(s.operands + c * kPitch + at.column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) moved[i][j] = fma(a.of[i], b.of[j], moved[i][j]);
    }
  }
}

// Sums over the 16 threads that share rows; every one of them gets the result.
template <class T>
__device__ T across_columns(T x) {
  for (int distance = 8; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}

__device__ void write_moved(const float* z, int64_t points, int64_t d, int64_t first_row, int64_t chunk, const float pull[4],
                            const float moved[4][4], float* gradient) {
  const Place at = place();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float total = across_columns(pull[i]);
    const int64_t row = first_row + at.row + i;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t k = chunk + at.column + j;
      if (row < points && k < d) gradient[row * d + k] = -4.0f * (total * z[row * d + k] - moved[i][j]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) pairs_kernel(PairLaunch a) {
  __shared__ Shared s;
  __shared__ double totals[kThreads / 16];
  const int chunks = a.gradient == nullptr ? 1 : static_cast<int>((a.d + kSide - 1) / kSide);
  const int64_t problem = blockIdx.y;
  const int64_t tile = blockIdx.x / chunks, chunk = static_cast<int64_t>(blockIdx.x % chunks) * kSide;
  const int64_t tiles = (a.points + kSide - 1) / kSide;
  const float* z = a.z + problem * a.points * a.d;
  const float* v = a.v + problem * a.v_set;
  const float* inverse = a.inverse + problem * a.kernels;
  const Place at = place();
  const int64_t first_row = tile * kSide;
  double value = 0.0;
  float pull[4] = {}, moved[4][4] = {};
  for (int64_t first = 0; first < a.points; first += kSide) {
    float d[4][4], g[4][4];
    distances(s, z, a.points, a.d, first_row, first, d);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t row = first_row + at.row + i, column = first + at.column + j;
        float w = 0.0f;
        if (row < a.points && column < a.points) {
          for (int64_t c = 0; c < a.columns; ++c) w = fma(v[row * a.columns + c], v[column * a.columns + c], w);
          if (a.unbiased) {
            if (row < a.sources && column < a.sources) w *= a.within_x;
            if (row >= a.sources && column >= a.sources) w *= a.within_y;
            if (row == column) w = 0.0f;
          }
        }
        float total, slope;
        kernel_of(d[i][j], inverse, a.kernels, a.doubling, false, total, slope);
        sum = fma(w, total, sum);
        g[i][j] = w * slope;
        pull[i] += g[i][j];
      }
    }
    value += static_cast<double>(sum);
    if (a.gradient != nullptr) add_moved(s, z, a.points, a.d, first, chunk, g, moved);
  }
  if (a.gradient != nullptr) write_moved(z, a.points, a.d, first_row, chunk, pull, moved, a.gradient + problem * a.points * a.d);
  value = across_columns(value);
  if (threadIdx.x % 16 == 0) totals[threadIdx.x / 16] = value;
  __syncthreads();
  if (threadIdx.x == 0 && chunk == 0) {
    double all = 0.0;
    for (int i = 0; i < kThreads / 16; ++i) all += totals[i];
    a.partial[problem * tiles + tile] = all;
  }
}

__global__ void __launch_bounds__(kThreads) contrast_kernel(ContrastLaunch a) {
  __shared__ Shared s;
  const int chunks = a.gradient == nullptr ? 1 : static_cast<int>((a.d + kSide - 1) / kSide);
  const int64_t problem = blockIdx.y;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / chunks) * kSide, chunk = static_cast<int64_t>(blockIdx.x % chunks) * kSide;
  const float* z = a.z + problem * a.points * a.d;
  const int64_t* labels = a.labels + problem * a.points;
  const float* inverse = a.inverse + problem * a.classes * a.classes * a.kernels;
  const float* weights = a.weights + problem * a.classes * a.classes * 4;
  double* sums = a.sums + problem * a.points * a.classes * 2;
  const Place at = place();
  float pull[2][4] = {}, moved[2][4][4] = {};
  for (int64_t first = 0; first < a.points; first += kSide) {
    float d[4][4], g[2][4][4] = {};
    distances(s, z, a.points, a.d, first_row, first, d);
    for (int64_t b = 0; b < a.classes; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first_row + at.row + i;
        const int64_t y = row < a.points ? labels[row] : -1;
        const bool source = row < a.sources;
        const int64_t pair = y < 0 ? 0 : source ? y * a.classes + b : b * a.classes + y;
        float own_sum = 0.0f, other_sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t column = first + at.column + j;
          const int64_t other_y = column < a.points ? labels[column] : -1;
          const bool same_side = source == (column < a.sources);
          const bool own = y >= 0 && same_side && other_y == y, other = y >= 0 && !same_side && other_y == b;
          if (!own && !other) continue;
          float total, slope;
          kernel_of(d[i][j], inverse + pair * a.kernels, a.kernels, a.doubling, a.clamp, total, slope);
          (own ? own_sum : other_sum) += total;
          const float weighted = weights[pair * 4 + (own ? (source ? 0 : 1) : 2)] * slope;
          g[0][i][j] += y == b ? weighted : 0.0f;
          g[1][i][j] += y == b ? 0.0f : weighted;
        }
        const double both[2] = {across_columns(static_cast<double>(own_sum)), across_columns(static_cast<double>(other_sum))};
        if (threadIdx.x % 16 == 0 && chunk == 0 && row < a.points) {
          sums[(row * a.classes + b) * 2] += both[0];
          sums[(row * a.classes + b) * 2 + 1] += both[1];
        }
      }
    }
    if (a.gradient == nullptr) continue;
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) pull[kind][i] += g[kind][i][j];
      }
      add_moved(s, z, a.points, a.d, first, chunk, g[kind], moved[kind]);
    }
  }
  if (a.gradient == nullptr) return;
#pragma unroll
  for (int kind = 0; kind < 2; ++kind) {
    float* to = a.gradient + (static_cast<int64_t>(kind) * a.problems + problem) * a.points * a.d;
    write_moved(z, a.points, a.d, first_row, chunk, pull[kind], moved[kind], to);
  }
}

dim3 grid_for(int64_t points, int64_t d, bool gradient, int problems) {
  const int64_t chunks = gradient ? (d + kSide - 1) / kSide : 1;
  return dim3(static_cast<unsigned>((points + kSide - 1) / kSide * chunks), static_cast<unsigned>(problems));
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace

const char* mmd_pairs(const PairLaunch& a, void* stream) {
  const dim3 grid = grid_for(a.points, a.d, a.gradient != nullptr, a.problems);
  pairs_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* mmd_contrast(const ContrastLaunch& a, void* stream) {
  const dim3 grid = grid_for(a.points, a.d, a.gradient != nullptr, a.problems);
  contrast_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

}  // namespace TF_NS
