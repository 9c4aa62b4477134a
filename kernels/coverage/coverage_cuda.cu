// Gains of candidates on CUDA: similarities of 64 candidates with 128 rows in registers, never in memory.
//
// A block of 128 threads holds the tile, 8 x 8 each, as sums of products from shared memory: 64 multiplications for four 16-byte reads.
// What is covered already is subtracted where the products lie, and sums over the rows of a tile go to memory as float64, to be added in
// the order of tiles. Every inner product and every sum has one order, whatever else is computed with it, so a gain never rises from step
// to step (coverage_points.hpp). Bound by multiplications: n d per gain.
#include "coverage_cuda.hpp"

#include "coverage.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

namespace TF_NS {
namespace {

constexpr int kThreads = 128;
constexpr int kTileRows = static_cast<int>(kCoverTileRows);
constexpr int kTileCandidates = 64;
constexpr int kEach = 8;    // rows and candidates of a thread
constexpr int kDepth = 16;  // dimensions in shared memory at a time
constexpr int kRowPitch = kTileRows + 4;
constexpr int kCandidatePitch = kTileCandidates + 4;
constexpr int kAcross = kTileRows / kEach;  // threads that share candidates

struct Shared {
  alignas(16) float rows[kDepth * kRowPitch];
  alignas(16) float candidates[kDepth * kCandidatePitch];
  float sums[kTileCandidates * kAcross];
};

struct alignas(16) Four {
  float of[4];
};
__device__ __forceinline__ void read8(const float* p, float out[kEach]) {
  const Four low = *reinterpret_cast<const Four*>(p), high = *reinterpret_cast<const Four*>(p + 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = low.of[i];
    out[4 + i] = high.of[i];
  }
}

// dot[c][r]: candidates blockIdx.y * 64 + 8 * (thread / 16) + c, rows blockIdx.x * 128 + 8 * (thread % 16) + r.
__device__ __forceinline__ void products(const CoverTiles& a, Shared& s, float dot[kEach][kEach]) {
  const int t = static_cast<int>(threadIdx.x);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTileRows + t;
  const int64_t candidate = static_cast<int64_t>(blockIdx.y) * kTileCandidates + t / 2;
  const float* const from_row = row < a.rows ? a.z + row * a.d : nullptr;
  const float* const from_candidate = candidate < a.count ? a.z + a.which[candidate] * a.d : nullptr;
  const int half = t % 2 * (kDepth / 2);
#pragma unroll
  for (int c = 0; c < kEach; ++c) {
#pragma unroll
    for (int r = 0; r < kEach; ++r) dot[c][r] = 0.0f;
  }
  for (int64_t begin = 0; begin < a.d; begin += kDepth) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      s.rows[k * kRowPitch + t] = from_row != nullptr && begin + k < a.d ? from_row[begin + k] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kDepth / 2; ++k) {
      const int64_t at = begin + half + k;
      s.candidates[(half + k) * kCandidatePitch + t / 2] = from_candidate != nullptr && at < a.d ? from_candidate[at] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float left[kEach], right[kEach];
      read8(s.candidates + k * kCandidatePitch + t / kAcross * kEach, left);
      read8(s.rows + k * kRowPitch + t % kAcross * kEach, right);
#pragma unroll
      for (int c = 0; c < kEach; ++c) {
#pragma unroll
        for (int r = 0; r < kEach; ++r) dot[c][r] = fma(left[c], right[r], dot[c][r]);
      }
    }
    __syncthreads();
  }
}

__device__ __forceinline__ int64_t first_candidate() {
  return static_cast<int64_t>(blockIdx.y) * kTileCandidates + threadIdx.x / kAcross * kEach;
}
__device__ __forceinline__ int64_t first_row() { return static_cast<int64_t>(blockIdx.x) * kTileRows + threadIdx.x % kAcross * kEach; }
__device__ __forceinline__ float norm_of_candidate(const CoverTiles& a, int64_t candidate) {
  return candidate < a.count ? a.norms[a.which[candidate]] : 0.0f;
}

// sums [candidate][threads across], joined in order, to the partial sums of this tile.
template <class Join>
__device__ __forceinline__ void write_partial(const CoverTiles& a, const Shared& s, const Join& join) {
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  const int64_t candidate = static_cast<int64_t>(blockIdx.y) * kTileCandidates + t;
  if (t >= kTileCandidates || candidate >= a.count) return;
  double total = 0.0;
  for (int i = 0; i < kAcross; ++i) total = join(total, static_cast<double>(s.sums[t * kAcross + i]));
  a.partial[static_cast<int64_t>(blockIdx.x) * a.count + candidate] = total;
}

template <int kind>
__global__ void __launch_bounds__(kThreads) gains_kernel(const __grid_constant__ CoverTiles a) {
  __shared__ Shared s;
  float dot[kEach][kEach];
  products(a, s, dot);
  const int64_t candidate = first_candidate(), row = first_row();
  float norms[kEach], current[kEach], weights[kEach];
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const bool inside = row + r < a.rows;
    norms[r] = inside ? a.norms[row + r] : 0.0f;
    current[r] = inside ? a.current[row + r] : 0.0f;
    weights[r] = inside ? a.weights[row + r] : 0.0f;
  }
#pragma unroll
  for (int c = 0; c < kEach; ++c) {
    const float norm = norm_of_candidate(a, candidate + c);
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const float better = value_of<kind>(dot[c][r], norms[r], norm, a.gamma) - current[r];
      sum = fma(better > 0.0f ? better : 0.0f, weights[r], sum);
    }
    s.sums[(threadIdx.x / kAcross * kEach + c) * kAcross + threadIdx.x % kAcross] = sum;
  }
  write_partial(a, s, [](double x, double y) { return x + y; });
}

template <int kind>
__global__ void __launch_bounds__(kThreads) values_kernel(const __grid_constant__ CoverTiles a) {
  __shared__ Shared s;
  float dot[kEach][kEach];
  products(a, s, dot);
  const int64_t candidate = first_candidate(), row = first_row();
#pragma unroll
  for (int c = 0; c < kEach; ++c) {
    const float norm = norm_of_candidate(a, candidate + c);
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      if (candidate + c >= a.count || row + r >= a.rows) continue;
      a.values[(candidate + c) * a.rows + row + r] = value_of<kind>(dot[c][r], a.norms[row + r], norm, a.gamma);
    }
  }
}

__global__ void __launch_bounds__(kThreads) farthest_kernel(const __grid_constant__ CoverTiles a) {
  __shared__ Shared s;
  float dot[kEach][kEach];
  products(a, s, dot);
  const int64_t candidate = first_candidate(), row = first_row();
#pragma unroll
  for (int c = 0; c < kEach; ++c) {
    const float norm = norm_of_candidate(a, candidate + c);
    float top = 0.0f;
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      if (candidate + c < a.count && row + r < a.rows) top = larger(top, -minus_square(dot[c][r], a.norms[row + r], norm));
    }
    s.sums[(threadIdx.x / kAcross * kEach + c) * kAcross + threadIdx.x % kAcross] = top;
  }
  write_partial(a, s, [](double x, double y) { return y > x ? y : x; });
}

struct Norms {
  const float* z;
  int64_t n, d;
  float* norms;
};
// In the order of `products`.
__global__ void __launch_bounds__(kThreads) norms_kernel(const __grid_constant__ Norms p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.n) return;
  float sum = 0.0f;
  for (int64_t k = 0; k < p.d; ++k) sum = fma(p.z[i * p.d + k], p.z[i * p.d + k], sum);
  p.norms[i] = sum;
}

__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ CoverJoin a) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= a.count) return;
  double total = 0.0;
#pragma unroll 8
  for (int64_t p = 0; p < a.pieces; ++p) total += a.partial[p * a.count + c];
  a.gains[c] = total;
}

__global__ void __launch_bounds__(kThreads) take_kernel(const __grid_constant__ CoverTake a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.rows || !(a.values[i] > a.current[i])) return;
  a.current[i] = a.values[i];
  a.owner[i] = a.number;
}

// Adds the threads' sums in the order of a tree; the total is the first thread's.
__device__ __forceinline__ double sum_of_block(double* shared, double mine) {
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) shared[t] += shared[t + half];
  }
  __syncthreads();
  return shared[0];
}

// Block (piece of the rows, candidate).
template <class T>
__global__ void __launch_bounds__(kThreads) matrix_kernel(const __grid_constant__ CoverMatrix a) {
  __shared__ double shared[kThreads];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kCoverPieceRows;
  const int64_t end = begin + kCoverPieceRows < a.rows ? begin + kCoverPieceRows : a.rows;
  const T* const row = static_cast<const T*>(a.matrix) + a.which[blockIdx.y] * a.rows;
  double sum = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float better = to_math(row[i]) - a.current[i];
    sum += static_cast<double>(better > 0.0f ? better * a.weights[i] : 0.0f);
  }
  const double total = sum_of_block(shared, sum);
  if (threadIdx.x == 0) a.partial[static_cast<int64_t>(blockIdx.x) * a.count + blockIdx.y] = total;
}

__global__ void __launch_bounds__(kThreads) lists_kernel(const __grid_constant__ CoverLists a) {
  __shared__ double shared[kThreads];
  const int64_t j = a.which[blockIdx.x];
  double sum = 0.0;
  for (int64_t e = a.indptr[j] + threadIdx.x; e < a.indptr[j + 1]; e += kThreads) {
    const int64_t i = a.indices[e];
    const float better = a.values[e] - a.current[i];
    sum += static_cast<double>(better > 0.0f ? better * a.weights[i] : 0.0f);
  }
  const double total = sum_of_block(shared, sum);
  if (threadIdx.x == 0) a.gains[blockIdx.x] = total;
}

unsigned pieces(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }
dim3 tiles(const CoverTiles& a) { return dim3(pieces(a.rows, kTileRows), pieces(a.count, kTileCandidates)); }

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace

const char* cover_norms(const float* z, int64_t n, int64_t d, float* norms, void* stream) {
  const Norms p = {z, n, d, norms};
  const unsigned grid = pieces(n, kThreads);
  norms_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return launched();
}

const char* cover_gains(const CoverTiles& a, void* stream) {
  const dim3 grid = tiles(a);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.kind) {
    case kSquared: gains_kernel<kSquared><<<grid, kThreads, 0, on>>>(a); break;
    case kDistance: gains_kernel<kDistance><<<grid, kThreads, 0, on>>>(a); break;
    case kCosine01: gains_kernel<kCosine01><<<grid, kThreads, 0, on>>>(a); break;
    case kCosine2: gains_kernel<kCosine2><<<grid, kThreads, 0, on>>>(a); break;
    case kGaussian: gains_kernel<kGaussian><<<grid, kThreads, 0, on>>>(a); break;
    default: gains_kernel<kInner><<<grid, kThreads, 0, on>>>(a); break;
  }
  return launched();
}

const char* cover_values(const CoverTiles& a, void* stream) {
  const dim3 grid = tiles(a);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.kind) {
    case kSquared: values_kernel<kSquared><<<grid, kThreads, 0, on>>>(a); break;
    case kDistance: values_kernel<kDistance><<<grid, kThreads, 0, on>>>(a); break;
    case kCosine01: values_kernel<kCosine01><<<grid, kThreads, 0, on>>>(a); break;
    case kCosine2: values_kernel<kCosine2><<<grid, kThreads, 0, on>>>(a); break;
    case kGaussian: values_kernel<kGaussian><<<grid, kThreads, 0, on>>>(a); break;
    default: values_kernel<kInner><<<grid, kThreads, 0, on>>>(a); break;
  }
  return launched();
}

const char* cover_farthest(const CoverTiles& a, void* stream) {
  const dim3 grid = tiles(a);
  farthest_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* cover_join(const CoverJoin& a, void* stream) {
  const unsigned grid = pieces(a.count, kThreads);
  join_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* cover_take(const CoverTake& a, void* stream) {
  const unsigned grid = pieces(a.rows, kThreads);
  take_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* cover_matrix_gains(const CoverMatrix& a, void* stream) {
  const dim3 grid(pieces(a.rows, kCoverPieceRows), static_cast<unsigned>(a.count));
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case kBFloat16: matrix_kernel<bfloat16><<<grid, kThreads, 0, on>>>(a); break;
    case kFloat16: matrix_kernel<float16><<<grid, kThreads, 0, on>>>(a); break;
    default: matrix_kernel<float><<<grid, kThreads, 0, on>>>(a); break;
  }
  return launched();
}

const char* cover_lists_gains(const CoverLists& a, void* stream) {
  const unsigned grid = static_cast<unsigned>(a.count);
  lists_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

}  // namespace TF_NS
