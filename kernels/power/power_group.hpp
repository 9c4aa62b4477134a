// CUDA threads that work on one row together, and what they take from memory: a power of two of a warp's lanes, or a whole block.
//
// Sums are exchanges of a fixed pattern, so that every lane has the same bits and results do not depend on what else runs. In one layout a
// lane holds neighbours (16 bytes and a multiple of it), and lanes stand beside each other: whole lines from memory.
#pragma once

#include "power_api.hpp"
#include "power_scalar.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

namespace TF_NS {

using namespace tenfold;

constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int kPartThreads = 128, kWholeThreads = 256;

// `width` lanes of a warp per row. All lanes of the warp have to come to every exchange.
template <int width>
struct Part {
  static constexpr int kLanes = width, kThreads = kPartThreads, kRows = kThreads / width;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % width; }
  __device__ static int64_t row() { return static_cast<int64_t>(blockIdx.x) * kRows + static_cast<int>(threadIdx.x) / width; }

  template <class T>
  __device__ static T total(T v) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(kAll, v, distance);
    return v;
  }
  template <class T>
  __device__ static T largest(T v) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2) {
      const T other = __shfl_xor_sync(kAll, v, distance);
      v = other > v ? other : v;
    }
    return v;
  }
  __device__ static void sync() { __syncwarp(); }
  // Whether a row that works beside this one still has something to do.
  __device__ static bool any(bool here) { return __ballot_sync(kAll, here) != 0; }
};

// A block per row. `left` is the same in all its threads, because sums are.
struct Whole {
  static constexpr int kLanes = kWholeThreads, kThreads = kWholeThreads, kRows = 1;

  __device__ static int lane() { return static_cast<int>(threadIdx.x); }
  __device__ static int64_t row() { return static_cast<int64_t>(blockIdx.x); }

  template <class T>
  __device__ static T total(T v) {
    __shared__ T parts[kWholeThreads / 32];
    v = Part<32>::total(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = parts[0];
#pragma unroll
    for (int warp = 1; warp < kWholeThreads / 32; ++warp) sum += parts[warp];
    return sum;
  }
  template <class T>
  __device__ static T largest(T v) {
    __shared__ T parts[kWholeThreads / 32];
    v = Part<32>::largest(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    T most = parts[0];
#pragma unroll
    for (int warp = 1; warp < kWholeThreads / 32; ++warp) most = parts[warp] > most ? parts[warp] : most;
    return most;
  }
  __device__ static void sync() { __syncthreads(); }
  __device__ static bool any(bool here) { return here; }
};

// Along a row by a whole warp (G is Part<32>) or block: the W of power_scalar.hpp.
template <class G>
struct Together {
  using V = double;
  static constexpr int64_t kStep = G::kLanes, kRanks = G::kLanes;
  __device__ static double get(const double* p) { return *p; }
  __device__ static void put(double* p, double v) { *p = v; }
  __device__ static int64_t begin() { return G::lane(); }
  __device__ static double total(double v) { return G::total(v); }
  TF_HD static int64_t padded(int64_t n) { return n; }
  __device__ static int64_t rank() { return G::lane(); }
  __device__ static void sync() { G::sync(); }
};

// The row of a group; groups behind the last row repeat it and write nothing.
template <class G>
__device__ int64_t row_of(int64_t rows, bool& real) {
  const int64_t row = G::row();
  real = row < rows;
  return real ? row : rows - 1;
}

// 1 / x to within one unit in the last place in float; 1 / 0 is infinite, and so is the reciprocal of a subnormal.
__device__ inline float quick_inverse(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}
__device__ inline double quick_inverse(double x) { return 1.0 / x; }

template <class T>
struct alignas(16) Neighbours {
  T part[4];
};
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T re, im;
};

template <class T>
__device__ T value_at(const PowerView& view, int64_t row, int64_t user) {
  return static_cast<const T*>(view.data)[row * view.row + user * view.user];
}
template <class T>
__device__ const T* real_at(const PowerView& view, int64_t row, int64_t user) {
  return static_cast<const T*>(view.data) + row * view.row + user * view.user;
}
template <class T>
__device__ const Pair<T>* complex_at(const PowerView& view, int64_t row, int64_t user) {
  return static_cast<const Pair<T>*>(view.data) + row * view.row + user * view.user;
}

// The carrier of value j where a lane holds runs of `run` neighbours.
template <class G, int run>
__device__ int64_t carrier_of(int j) {
  return (static_cast<int64_t>(j / run) * G::kLanes + G::lane()) * run + j % run;
}

// `held` complex values, in runs of two; 0 behind the last. wide: rows begin at multiples of 16 bytes and carriers are even in number and
// lie side by side.
template <class G, int held, class T>
__device__ void load_complex(const Pair<T>* from, int64_t step, int64_t carriers, bool wide, T (&re)[held], T (&im)[held]) {
#pragma unroll
  for (int j = 0; j < held; j += 2) {
    const int64_t k = carrier_of<G, 2>(j);
    if (wide) {
      Neighbours<T> found = {};
      if (k < carriers) found = *reinterpret_cast<const Neighbours<T>*>(from + k);
      re[j] = found.part[0];
      im[j] = found.part[1];
      re[j + 1] = found.part[2];
      im[j + 1] = found.part[3];
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Pair<T> found = {};
        if (k + h < carriers) found = from[(k + h) * step];
        re[j + h] = found.re;
        im[j + h] = found.im;
      }
    }
  }
}

template <class G, int held, class T>
__device__ void store_complex(Pair<T>* to, int64_t carriers, bool wide, const T (&re)[held], const T (&im)[held]) {
#pragma unroll
  for (int j = 0; j < held; j += 2) {
    const int64_t k = carrier_of<G, 2>(j);
    if (wide) {
      if (k < carriers) *reinterpret_cast<Neighbours<T>*>(to + k) = {{re[j], im[j], re[j + 1], im[j + 1]}};
    } else {
      if (k < carriers) to[k] = {re[j], im[j]};
      if (k + 1 < carriers) to[k + 1] = {re[j + 1], im[j + 1]};
    }
  }
}

// `held` real values in runs of four, `other` behind the last.
template <class G, int held, class T>
__device__ void load_real(const T* from, int64_t step, int64_t carriers, bool wide, T other, T (&value)[held]) {
#pragma unroll
  for (int j = 0; j < held; j += 4) {
    const int64_t k = carrier_of<G, 4>(j);
    if (wide) {
      Neighbours<T> found = {{other, other, other, other}};
      if (k < carriers) found = *reinterpret_cast<const Neighbours<T>*>(from + k);
#pragma unroll
      for (int h = 0; h < 4; ++h) value[j + h] = found.part[h];
    } else {
#pragma unroll
      for (int h = 0; h < 4; ++h) value[j + h] = k + h < carriers ? from[(k + h) * step] : other;
    }
  }
}

template <class G, int held, class T>
__device__ void store_real(T* to, int64_t carriers, bool wide, const T (&value)[held]) {
#pragma unroll
  for (int j = 0; j < held; j += 4) {
    const int64_t k = carrier_of<G, 4>(j);
    if (wide) {
      if (k < carriers) *reinterpret_cast<Neighbours<T>*>(to + k) = {{value[j], value[j + 1], value[j + 2], value[j + 3]}};
    } else {
#pragma unroll
      for (int h = 0; h < 4; ++h) {
        if (k + h < carriers) to[k + h] = value[j + h];
      }
    }
  }
}

// ---- on the host ----------------------------------------------------------------------------------------------------------------

// Whether rows of this view may be read as load_complex and load_real do when `wide`: `values` to 16 bytes.
inline bool is_wide(const PowerView& view, int64_t carriers, int64_t values) {
  if (view.data == nullptr) return true;
  const bool even = carriers % values == 0 && view.row % values == 0 && view.user % values == 0;
  return even && view.carrier == 1 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

inline const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// work(G{}) with as few threads per row as `lanes`.
template <class Work>
const char* with_lanes(int64_t lanes, const Work& work) {
  if (lanes <= 4) return work(Part<4>{});
  if (lanes <= 8) return work(Part<8>{});
  if (lanes <= 16) return work(Part<16>{});
  if (lanes <= 32) return work(Part<32>{});
  return work(Whole{});
}

constexpr const char* kTooMany = "more rows than a grid has blocks";

template <class G>
bool grid_for(int64_t rows, dim3& grid) {
  const int64_t blocks = (rows + G::kRows - 1) / G::kRows;
  grid = dim3(static_cast<unsigned>(blocks));
  return blocks <= 0x7FFFFFFF;
}

}  // namespace TF_NS
