// The exact Euclidean distance transform on CUDA.
//
// Along the innermost axis a block holds the features of a row as bits in shared memory, and each thread finds the nearest one from its
// place with a few bit scans. Along the others each thread takes one voxel and looks out in both directions until a step alone is no
// shorter than the best so far (edt.hpp, "window"); neighbouring threads read neighbouring columns. Passes go to and fro between two
// buffers.
#include "edt_cuda.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "../core/portable.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 128;

struct Rows {
  EdtArgs a;
  void* out;
  int32_t* index;
  int64_t rows;
  int64_t voxels;
};

__device__ __forceinline__ int lowest(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
__device__ __forceinline__ int highest(unsigned bits) { return 31 - __clz(static_cast<int>(bits)); }

// The set bit nearest to c of n bits; -1 if there is none.
__device__ int64_t nearest_set(const unsigned* bits, int64_t words, int64_t c) {
  int64_t left = -1, right = -1;
  unsigned here = bits[c / 32] & (0xFFFFFFFFu >> (31 - c % 32));
  for (int64_t w = c / 32;;) {
    if (here != 0) {
      left = w * 32 + highest(here);
      break;
    }
    if (--w < 0) break;
    here = bits[w];
  }
  here = bits[c / 32] & (0xFFFFFFFFu << (c % 32));
  for (int64_t w = c / 32;;) {
    if (here != 0) {
      right = w * 32 + lowest(here);
      break;
    }
    if (++w >= words || (left >= 0 && w * 32 - c > c - left)) break;
    here = bits[w];
  }
  if (left < 0 || right < 0) return left < 0 ? right : left;
  return c - left <= right - c ? left : right;
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_kernel(const __grid_constant__ Rows p) {
  __shared__ unsigned bits[tf_cuda::kMostRow / 32];
  const int64_t n = p.a.sizes[2], words = (n + 31) / 32;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const uint8_t* const features = p.a.features + row * n;
    for (int64_t w = threadIdx.x; w < words; w += kThreads) {
      unsigned word = 0;
      const int64_t end = n - w * 32 < 32 ? n - w * 32 : 32;
      for (int64_t i = 0; i < end; ++i) word |= static_cast<unsigned>(features[w * 32 + i] != 0) << i;
      bits[w] = word;
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < n; c += kThreads) {
      const int64_t at = nearest_set(bits, words, c);
      const double step = static_cast<double>(c - at) * p.a.spacing[2];
      static_cast<T*>(p.out)[row * n + c] = at < 0 ? static_cast<T>(INFINITY) : static_cast<T>(step * step);
      if (p.index != nullptr) {
        const int64_t volume = row * n / p.voxels, place = row * n % p.voxels + c;
        p.index[(volume * 3 + 2) * p.voxels + place] = static_cast<int32_t>(at);
        p.index[(volume * 3 + 1) * p.voxels + place] = at < 0 ? -1 : 0;
        p.index[volume * 3 * p.voxels + place] = at < 0 ? -1 : 0;
      }
    }
    __syncthreads();
  }
}

struct Columns {
  const void* in;
  void* out;
  const int32_t* in_index;
  int32_t* out_index;
  int64_t n;       // along the axis
  int64_t stride;  // between neighbours along it
  int64_t total;   // of the batch
  int64_t voxels;  // of a volume
  double spacing;
  int axis;
  bool root;
};

template <class T>
__global__ void __launch_bounds__(kThreads) column_kernel(const __grid_constant__ Columns p) {
  const T* const in = static_cast<const T*>(p.in);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.total; i += step) {
    const int64_t q = i / p.stride % p.n;
    T best = in[i];
    int64_t from = 0;
    for (int64_t k = 1; k < p.n; ++k) {
      const double along = static_cast<double>(k) * p.spacing;
      const T square = static_cast<T>(along * along);
      if (square >= best) break;
      if (q - k >= 0) {
        const T value = in[i - k * p.stride] + square;
        if (value < best) {
          best = value;
          from = -k;
        }
      }
      if (q + k < p.n) {
        const T value = in[i + k * p.stride] + square;
        if (value < best) {
          best = value;
          from = k;
        }
      }
    }
    static_cast<T*>(p.out)[i] = p.root ? static_cast<T>(sqrt(best)) : best;
    if (p.in_index != nullptr) {
      const int64_t base = i / p.voxels * 3 * p.voxels, place = i % p.voxels;
      for (int axis = 0; axis < 3; ++axis) {
        const int32_t came = p.in_index[base + axis * p.voxels + place + from * p.stride];
        const bool none = p.in_index[base + 2 * p.voxels + place + from * p.stride] < 0;
        p.out_index[base + axis * p.voxels + place] = axis == p.axis && !none ? static_cast<int32_t>(q + from) : came;
      }
    }
  }
}

template <class T>
const char* transform(const EdtArgs& a, void* work, int32_t* work_index, cudaStream_t stream) {
  const int64_t voxels = a.sizes[0] * a.sizes[1] * a.sizes[2], total = a.batch * voxels;
  const int64_t n[3] = {a.sizes[0], a.sizes[1], a.sizes[2]};
  const int64_t strides[2] = {n[1] * n[2], n[2]};
  // two column passes come after the rows: out -> work -> out
  Rows rows = {a, a.out, a.index, a.batch * n[0] * n[1], voxels};
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(rows.rows, 65535));
  row_kernel<T><<<grid, kThreads, 0, stream>>>(rows);
  for (int axis = 1; axis >= 0; --axis) {
    const bool second = axis == 0;
    const Columns p = {second ? work : a.out,
                       second ? a.out : work,
                       second ? work_index : a.index,
                       second ? a.index : work_index,
                       n[axis],
                       strides[axis],
                       total,
                       voxels,
                       a.spacing[axis],
                       axis,
                       second && !a.squared};
    const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((total + kThreads - 1) / kThreads, int64_t{1} << 20));
    column_kernel<T><<<blocks, kThreads, 0, stream>>>(p);
  }
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace

const char* edt(const EdtArgs& a, void* work, int32_t* work_index, void* stream) {
  if (a.batch * a.sizes[0] * a.sizes[1] * a.sizes[2] == 0) return nullptr;
  if (a.sizes[2] > kMostRow) return "rows of more than 65536 voxels";
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return a.wide ? transform<double>(a, work, work_index, on) : transform<float>(a, work, work_index, on);
}

}  // namespace TF_NS
