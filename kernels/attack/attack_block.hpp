// What the CUDA files of the family share: wide loads, sums over warps and blocks in a fixed order, rows of a matrix by a block.
#pragma once

#include "attack.hpp"

#include <cuda_runtime.h>

namespace TF_NS {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int kRowThreads = 1024;  // a row of a vocabulary has a block for itself
constexpr int kFour = 4;

template <class T>
struct alignas(sizeof(T) * kFour) Four {
  T v[kFour];
};

template <class T>
__device__ __forceinline__ bool fits_four(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}
template <class T>
__device__ __forceinline__ T warp_most(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kAll, x, distance);
    x = other > x ? other : x;
  }
  return x;
}

// In every thread of a block of kThreads.
template <int kThreads, class T, class OfWarp>
__device__ T block_joined(T x, T nothing, const OfWarp& of_warp) {
  __shared__ T room[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  x = of_warp(x);
  __syncthreads();  // `room` may still be read from the call before
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return of_warp(lane < kThreads / kWarp ? room[lane] : nothing);
}
template <int kThreads, class T>
__device__ T block_sum(T x) {
  return block_joined<kThreads>(x, T(0), [](T v) { return warp_sum(v); });
}
template <int kThreads, class T>
__device__ T block_most(T x) {
  return block_joined<kThreads>(x, static_cast<T>(-INFINITY), [](T v) { return warp_most(v); });
}

// take(x) for the numbers of a row that fall to this thread of its block, flush() behind each four.
template <class T, class Take, class Flush>
__device__ __forceinline__ void each_of_row(const T* x, int64_t n, const Take& take, const Flush& flush) {
  const int64_t fours = fits_four(x) ? n / kFour : 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < fours; k += kRowThreads) {
    const Four<T> all = reinterpret_cast<const Four<T>*>(x)[k];
    for (int i = 0; i < kFour; ++i) take(all.v[i]);
    flush();
  }
  for (int64_t k = fours * kFour + threadIdx.x; k < n; k += kRowThreads) {
    take(x[k]);
    flush();
  }
}

inline const char* launched() {
  const cudaError_t code = cudaGetLastError();
  return code == cudaSuccess ? nullptr : cudaGetErrorString(code);
}

template <class Call>
const char* with_real(int dtype, const Call& call) {
  return dtype == kFloat64 ? call(double{}) : call(float{});
}
template <class Call>
const char* with_every(int dtype, const Call& call) {
  switch (dtype) {
    case kFloat64: return call(double{});
    case kBFloat16: return call(bfloat16{});
    case kFloat16: return call(float16{});
    default: return call(float{});
  }
}

}  // namespace TF_NS
