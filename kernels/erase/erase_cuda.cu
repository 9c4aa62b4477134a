// Saliency sums and masked Adam on CUDA: traversal only, the math of a weight stands in erase.hpp. Memory bounds both: 12 and 28 bytes
// per float32 weight.
//
// A thread has eight consecutive weights, those of one byte of a mask, in loads of 16 bytes where the memory is aligned; where the byte is
// 0 it reads nothing else. All tensors of a launch stand in its parameters (CUDA 12.1 and later allow 32,764 bytes), 500 and more, so a
// captured graph holds everything.
#include "erase.hpp"
#include "erase_cuda.hpp"

#include <cuda_runtime.h>

#include <type_traits>

namespace TF_NS {
namespace {
using namespace tenfold;

constexpr int kThreads = 256;
constexpr int kEach = 8;
constexpr int64_t kTile = kThreads * kEach;
constexpr int kParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

template <class Head, class Tensor>
struct Pass : Head {
  static constexpr int kTensors = (kParameterBytes - static_cast<int>(sizeof(Head)) - 16) / static_cast<int>(sizeof(Tensor) + 4);
  int32_t count;
  uint32_t tiles;
  Tensor tensors[kTensors];
  uint32_t first_tile[kTensors];
};

struct SumHead {
  int32_t grad_dtype, weight_dtype, mode, unused;
};
template <class M>
struct AdamHead {
  MaskedAdamScalars<M> s;
};

// work(tensor, first element of the thread) for every tile of this block of threads.
template <class P, class Work>
__device__ __forceinline__ void each_tile(const P& p, const Work& work) {
  for (uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    int low = 0;
    for (int high = p.count - 1; low < high;) {
      const int middle = (low + high + 1) / 2;
      if (p.first_tile[middle] <= tile) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    work(p.tensors[low], static_cast<int64_t>(tile - p.first_tile[low]) * kTile + threadIdx.x * int64_t{kEach});
  }
}

template <class T>
struct alignas(16) Eight {
  T v[kEach];
};

__device__ __forceinline__ bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Eight elements in the type M, 0 behind the end.
template <class M, class T>
__device__ __forceinline__ void load8(const void* data, int64_t first, int64_t numel, M* out) {
  const T* from = static_cast<const T*>(data) + first;
  if (first + kEach <= numel && aligned(from)) {
    const Eight<T> all = *reinterpret_cast<const Eight<T>*>(from);
    for (int i = 0; i < kEach; ++i) out[i] = static_cast<M>(to_math(all.v[i]));
  } else {
    for (int i = 0; i < kEach; ++i) out[i] = first + i < numel ? static_cast<M>(to_math(from[i])) : M(0);
  }
}

template <class M>
__device__ __forceinline__ void load8(int dtype, const void* data, int64_t first, int64_t numel, M* out) {
  if (dtype == kFloat32) return load8<M, float>(data, first, numel, out);
  if (dtype == kFloat64) return load8<M, double>(data, first, numel, out);
  if (dtype == kBFloat16) return load8<M, bfloat16>(data, first, numel, out);
  load8<M, float16>(data, first, numel, out);
}

// -- sums --------------------------------------------------------------------------------------------------------------------------

template <class A>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Pass<SumHead, EraseSumTensor> p) {
  each_tile(p, [&](const EraseSumTensor& t, int64_t first) {
    if (first >= t.numel) return;
    A acc[kEach], g[kEach], w[kEach] = {};
    load8<A, A>(t.acc, first, t.numel, acc);
    load8(p.grad_dtype, t.grad, first, t.numel, g);
    if (p.mode == kProduct) load8(p.weight_dtype, t.weight, first, t.numel, w);
    for (int i = 0; i < kEach; ++i) {
      acc[i] = p.mode == kSigned ? saliency<kSigned>(acc[i], g[i], A(0))
               : p.mode == kAbs  ? saliency<kAbs>(acc[i], g[i], A(0))
                                 : saliency<kProduct>(acc[i], g[i], w[i]);
    }
    A* to = static_cast<A*>(t.acc) + first;
    if (first + kEach <= t.numel && aligned(to)) {
      Eight<A> all;
      for (int i = 0; i < kEach; ++i) all.v[i] = acc[i];
      *reinterpret_cast<Eight<A>*>(to) = all;
    } else {
      for (int i = 0; i < kEach && first + i < t.numel; ++i) to[i] = acc[i];
    }
  });
}

// -- masked Adam -------------------------------------------------------------------------------------------------------------------

// Writes those of the eight whose bit is set: what is masked is not written at all.
template <class T>
__device__ __forceinline__ void store_live(void* data, int64_t first, uint32_t live, const math_t<T>* value) {
  T* to = static_cast<T*>(data) + first;
  if (live == 0xFFu && aligned(to)) {
    Eight<T> all;
    for (int i = 0; i < kEach; ++i) all.v[i] = Round<T>::nearest(value[i]);
    *reinterpret_cast<Eight<T>*>(to) = all;
  } else {
    for (int i = 0; i < kEach; ++i) {
      if (live >> i & 1u) to[i] = Round<T>::nearest(value[i]);
    }
  }
}

// T: weights and gradients, S: moments.
template <class T, class S>
__global__ void __launch_bounds__(kThreads) adam_kernel(const __grid_constant__ Pass<AdamHead<math_t<T>>, EraseAdamTensor> p) {
  using M = math_t<T>;
  each_tile(p, [&](const EraseAdamTensor& t, int64_t first) {
    if (first >= t.numel) return;
    const uint32_t live = t.bits[first / kEach];
    if (live == 0) return;
    M w[kEach], g[kEach], m[kEach], v[kEach];
    load8<M, T>(t.param, first, t.numel, w);
    load8<M, T>(t.grad, first, t.numel, g);
    load8<M, S>(t.exp_avg, first, t.numel, m);
    load8<M, S>(t.exp_avg_sq, first, t.numel, v);
    for (int i = 0; i < kEach; ++i) masked_adam_element(g[i], w[i], m[i], v[i], p.s);
    store_live<T>(t.param, first, live, w);
    store_live<S>(t.exp_avg, first, live, m);
    store_live<S>(t.exp_avg_sq, first, live, v);
  });
}

// -- launching ---------------------------------------------------------------------------------------------------------------------

const char* said(cudaError_t code) { return code == cudaSuccess ? nullptr : cudaGetErrorString(code); }

// Fills parameters with tensors and calls launch(params, grid) each time they are full.
template <class Head, class Tensor, class Launch>
const char* each_launch(const Head& head, const Tensor* tensors, int64_t count, const Launch& launch) {
  using P = Pass<Head, Tensor>;
  static_assert(sizeof(P) <= kParameterBytes, "launch parameters too large");
  constexpr int64_t kMostTiles = int64_t{1} << 31;
  P p;
  static_cast<Head&>(p) = head;
  for (int64_t t = 0; t < count;) {
    p.count = 0;
    int64_t tiles = 0;
    for (; t < count && p.count < P::kTensors && tiles < kMostTiles; ++t) {
      if (tensors[t].numel == 0) continue;
      p.tensors[p.count] = tensors[t];
      p.first_tile[p.count++] = static_cast<uint32_t>(tiles);
      tiles += (tensors[t].numel + kTile - 1) / kTile;
    }
    if (p.count == 0) continue;
    p.tiles = static_cast<uint32_t>(tiles);
    launch(p, dim3(static_cast<unsigned>(tiles < 0x7FFFFFFF ? tiles : 0x7FFFFFFF)));
    const char* error = said(cudaGetLastError());
    if (error != nullptr) return error;
  }
  return nullptr;
}

template <class T, class S>
const char* adam(const EraseAdamArgs& a, cudaStream_t stream) {
  const AdamHead<math_t<T>> head = {masked_adam_scalars<math_t<T>>(a)};
  return each_launch(head, a.tensors, a.count, [&](const auto& p, dim3 grid) {
    const auto kernel = &adam_kernel<T, S>;
    kernel<<<grid, kThreads, 0, stream>>>(p);
  });
}

template <class T>
const char* adam_half(const EraseAdamArgs& a, cudaStream_t stream) {
  return a.state_dtype == a.dtype ? adam<T, T>(a, stream) : adam<T, float>(a, stream);
}

template <class A>
const char* sum(const EraseSumArgs& a, cudaStream_t stream) {
  const SumHead head = {a.grad_dtype, a.weight_dtype, a.mode, 0};
  return each_launch(head, a.tensors, a.count, [&](const auto& p, dim3 grid) {
    const auto kernel = &sum_kernel<A>;
    kernel<<<grid, kThreads, 0, stream>>>(p);
  });
}

}  // namespace
}  // namespace TF_NS

namespace tf_cuda {

const char* erase_sum(const tenfold::EraseSumArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return a.acc_dtype == kFloat64 ? sum<double>(a, on) : sum<float>(a, on);
}

const char* erase_adam(const tenfold::EraseAdamArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.dtype == kFloat64) return adam<double, double>(a, on);
  if (a.dtype == kBFloat16) return adam_half<bfloat16>(a, on);
  if (a.dtype == kFloat16) return adam_half<float16>(a, on);
  return adam<float, float>(a, on);
}

}  // namespace tf_cuda
