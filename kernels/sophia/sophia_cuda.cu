// Sophia passes on CUDA: traversal only, the math of an element stands in sophia.hpp. Memory bounds them: 24 bytes per float32 weight.
//
// A block of 256 threads works on tiles of 2,048 elements, a warp on 256 of them: one block of an 8-bit state, whose scale it finds by
// shuffles. A thread has two runs of four elements, 128 apart, so that each load and store of a warp is whole lines of memory. Two threads
// share a Philox block of eight rounding halves: each makes one and hands half of it over. All tensors of a launch stand in its parameters
// (CUDA 12.1 and later allow 32,764 bytes), about 400, so a captured graph holds everything.
#include "sophia.hpp"
#include "sophia_cuda.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

namespace TF_NS {
namespace {
using namespace tenfold;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kEach = 8;
constexpr int kRun = 4;              // consecutive elements of a thread
constexpr int kNext = kWarp * kRun;  // from one run of a thread to its next
constexpr int64_t kTile = kThreads * kEach;
static_assert(kTile == tf_cuda::kSophiaTile && kWarp * kEach == kByteBlock, "a warp holds a block of an 8-bit state");
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Blocks per multiprocessor that the registers of the plain step must leave room for.
template <class T, class S>
constexpr int kStepBlocks = sizeof(T) == 8               ? 1
                            : std::is_same_v<S, uint8_t> ? 3
                                                         : 4;
constexpr int kParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

// -- launch parameters -------------------------------------------------------------------------------------------------------------

// What a kernel is given: a head of its own, and as many tensors as fit.
template <class Head, class Tensor>
struct Pass : Head {
  using TensorType = Tensor;
  static constexpr int kTensors = (kParameterBytes - static_cast<int>(sizeof(Head)) - 24) / static_cast<int>(sizeof(Tensor) + 4);
  int32_t count;
  uint32_t tiles;
  uint32_t tiles_before;  // of earlier launches
  Tensor tensors[kTensors];
  uint32_t first_tile[kTensors];
};

// Scalars are converted once, on the host: in the kernel it would be once per element.
template <class M>
struct StepHead {
  SophiaStepArgs a;
  SophiaScalars<M> s;
  double* partials;
};
template <class M>
struct HessianHead {
  SophiaHessianArgs a;
  M keep, weight;
};
struct CodeHead {};

// -- the walk ----------------------------------------------------------------------------------------------------------------------

// work(tensor, first element of the thread, number of the tile) for every tile of this block of threads.
template <class P, class Work>
__device__ __forceinline__ void each_tile(const P& p, const Work& work) {
  const int64_t place = threadIdx.x / kWarp * int64_t{kByteBlock} + threadIdx.x % kWarp * int64_t{kRun};
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
    work(p.tensors[low], static_cast<int64_t>(tile - p.first_tile[low]) * kTile + place, p.tiles_before + tile);
  }
}

// Element i of a thread's eight.
__device__ __forceinline__ int64_t element(int64_t first, int i) { return first + (i < kRun ? i : i - kRun + kNext); }

// Whether a warp's 256 elements are all there.
__device__ __forceinline__ bool all_there(int64_t first, int64_t numel) {
  return first - threadIdx.x % kWarp * int64_t{kRun} + kByteBlock <= numel;
}

// -- memory: runs of four as vectors where they are all there and aligned ----------------------------------------------------------

template <class T>
struct alignas(kRun * sizeof(T) < 16 ? kRun * sizeof(T) : 16) Packet {
  static constexpr int kCount = kRun * sizeof(T) < 16 ? kRun : 16 / sizeof(T);
  T v[kCount];
};

template <class T>
__device__ __forceinline__ bool is_aligned(const T* at) {
  return reinterpret_cast<uintptr_t>(at) % alignof(Packet<T>) == 0;
}

template <class T>
__device__ __forceinline__ void load8(const void* data, int64_t first, int64_t numel, T (&out)[kEach]) {
  const T* from = static_cast<const T*>(data) + first;
  if (all_there(first, numel) && is_aligned(from)) {
#pragma unroll
    for (int i = 0; i < kEach; i += Packet<T>::kCount) {
      const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(from + element(0, i));
#pragma unroll
      for (int k = 0; k < Packet<T>::kCount; ++k) out[i + k] = packet.v[k];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) out[i] = element(first, i) < numel ? from[element(0, i)] : T{};
}

template <class T>
__device__ __forceinline__ void store8(void* data, int64_t first, int64_t numel, const T (&in)[kEach]) {
  T* to = static_cast<T*>(data) + first;
  if (all_there(first, numel) && is_aligned(to)) {
#pragma unroll
    for (int i = 0; i < kEach; i += Packet<T>::kCount) {
      Packet<T> packet;
#pragma unroll
      for (int k = 0; k < Packet<T>::kCount; ++k) packet.v[k] = in[i + k];
      *reinterpret_cast<Packet<T>*>(to + element(0, i)) = packet;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (element(first, i) < numel) to[element(0, i)] = in[i];
  }
}

template <class T>
__device__ __forceinline__ void load_math(const void* data, int64_t first, int64_t numel, math_t<T> (&out)[kEach]) {
  T raw[kEach];
  load8<T>(data, first, numel, raw);
#pragma unroll
  for (int i = 0; i < kEach; ++i) out[i] = to_math(raw[i]);
}

// The rounding bits of a thread's elements. A block has those of eight consecutive elements, four of this thread and four of its
// neighbour: the one with the even number makes the block of their first runs, the other that of their second.
struct Halves {
  uint32_t words[kEach / 2];
  __device__ __forceinline__ Halves(uint64_t seed, uint32_t step, uint32_t purpose, uint32_t stream, int64_t first) {
    const bool odd = threadIdx.x % 2 != 0;
    const uint64_t block = static_cast<uint64_t>(odd ? first - kRun + kNext : first) / 8;
    const PhiloxBlock<uint32_t> x = philox_block(block, make_sequence(seed, stream, purpose, step));
    const uint32_t given0 = __shfl_xor_sync(kAllLanes, odd ? x.w0 : x.w2, 1);
    const uint32_t given1 = __shfl_xor_sync(kAllLanes, odd ? x.w1 : x.w3, 1);
    words[0] = odd ? given0 : x.w0;
    words[1] = odd ? given1 : x.w1;
    words[2] = odd ? x.w2 : given0;
    words[3] = odd ? x.w3 : given1;
  }
  __device__ __forceinline__ uint32_t operator[](int i) const { return i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xFFFFu; }
};

// -- states ------------------------------------------------------------------------------------------------------------------------

template <class S, bool kHessian, class M>
__device__ __forceinline__ void load_state(const void* data, const float* scales, int64_t first, int64_t numel, M (&out)[kEach]) {
  if constexpr (std::is_same_v<S, uint8_t>) {
    uint8_t codes[kEach];
    load8<uint8_t>(data, first, numel, codes);
    const float scale = first < numel ? scales[first / kByteBlock] : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) out[i] = kHessian ? decode_hessian(codes[i], scale) : decode_exp_avg(codes[i], scale);
  } else {
    load_math<S>(data, first, numel, out);
  }
}

__device__ __forceinline__ uint32_t largest_of_warp(uint32_t value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// shifts[i] is what the rounding of element i is shifted by. Every lane of the warp takes part.
template <bool kHessian, class Shift>
__device__ __forceinline__ void encode8(const float (&value)[kEach], const Shift& shift, uint8_t* codes, float* scales, int64_t first,
                                        int64_t numel) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t size = element(first, i) < numel ? (kHessian ? hessian_scale_bits(value[i]) : scale_bits(value[i])) : 0u;
    largest = size > largest ? size : largest;
  }
  largest = largest_of_warp(largest);
  const float scale = kHessian ? sqrt(float_of(largest)) : float_of(largest);
  if (first < numel && first % kByteBlock == 0) scales[first / kByteBlock] = scale;
  uint8_t out[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    out[i] = static_cast<uint8_t>(kHessian ? encode_hessian(value[i], scale, shift(i)) : encode_exp_avg(value[i], scale, shift(i)));
  }
  store8<uint8_t>(codes, first, numel, out);
}

template <class S, bool kHessian, class M>
__device__ __forceinline__ void store_state(void* data, float* scales, int64_t first, int64_t numel, const M (&value)[kEach], uint64_t seed,
                                            uint32_t step, uint32_t stream) {
  if constexpr (std::is_same_v<S, M>) {
    store8<S>(data, first, numel, value);
  } else {
    const Halves r16(seed, step, kHessian ? kSophiaHessian : kSophiaExpAvg, stream, first);
    if constexpr (std::is_same_v<S, uint8_t>) {
      encode8<kHessian>(value, [&](int i) { return Code<kHessian>::shift_of(r16[i]); }, static_cast<uint8_t*>(data), scales, first, numel);
    } else {
      S out[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) out[i] = Round<S>::stochastic(value[i], r16[i]);
      store8<S>(data, first, numel, out);
    }
  }
}

// -- statistics --------------------------------------------------------------------------------------------------------------------

// The sums of a block of threads, in an order that only the tile decides, to partials[tile].
__device__ __forceinline__ void add_in_block(double (&sums)[kSophiaStats], double* out) {
  __shared__ double warps[kThreads / kWarp][kSophiaStats];
#pragma unroll
  for (int k = 0; k < kSophiaStats; ++k) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) sums[k] += __shfl_xor_sync(kAllLanes, sums[k], step);
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
    for (int k = 0; k < kSophiaStats; ++k) warps[threadIdx.x / kWarp][k] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x < kSophiaStats) {
    double total = 0.0;
    for (int w = 0; w < kThreads / kWarp; ++w) total += warps[w][threadIdx.x];
    out[threadIdx.x] = total;
  }
}

struct StatsParams {
  const double* partials;
  int64_t tiles;
  double* stats;
  const float* found_inf;
};

__global__ void __launch_bounds__(kThreads) stats_kernel(const __grid_constant__ StatsParams p) {
  if (p.found_inf != nullptr && *p.found_inf != 0.0f) return;
  double sums[kSophiaStats] = {};
  for (int64_t tile = threadIdx.x; tile < p.tiles; tile += kThreads) {
    for (int k = 0; k < kSophiaStats; ++k) sums[k] += p.partials[tile * kSophiaStats + k];
  }
  __shared__ double total[kSophiaStats];
  add_in_block(sums, total);
  __syncthreads();
  if (threadIdx.x < kSophiaStats) p.stats[threadIdx.x] += total[threadIdx.x];
}

// -- the step ----------------------------------------------------------------------------------------------------------------------

template <int kDenom, class M>
__device__ __forceinline__ void clip8(const M (&m)[kEach], const M (&h)[kEach], const SophiaScalars<M>& s, M (&u)[kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) u[i] = sophia_clipped<kDenom>(m[i], h[i], s);
}

template <class M>
__device__ __forceinline__ void clip8(int denom, const M (&m)[kEach], const M (&h)[kEach], const SophiaScalars<M>& s, M (&u)[kEach]) {
  if (denom == kDenomAdd) {
    clip8<kDenomAdd>(m, h, s, u);
  } else if (denom == kDenomSign) {
    clip8<kDenomSign>(m, h, s, u);
  } else {
    clip8<kDenomMax>(m, h, s, u);
  }
}

template <class T>
__device__ __forceinline__ void round8(const math_t<T> (&theta)[kEach], const SophiaStepArgs& a, uint32_t stream, int64_t first,
                                       T (&out)[kEach]) {
  if (a.stochastic && sizeof(T) == 2) {
    const Halves r16(a.seed, a.step, kSophia, stream, first);
#pragma unroll
    for (int i = 0; i < kEach; ++i) out[i] = Round<T>::stochastic(theta[i], r16[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kEach; ++i) out[i] = Round<T>::nearest(theta[i]);
  }
}

// A step without what is_plain excludes: fewer values are alive at once, so more threads fit.
template <class T, class G, class S>
__global__ void __launch_bounds__(kThreads, kStepBlocks<T, S>)
    plain_step_kernel(const __grid_constant__ Pass<StepHead<math_t<T>>, SophiaTensor> p) {
  using M = math_t<T>;
  const SophiaStepArgs& a = p.a;
  if (a.found_inf != nullptr && *a.found_inf != 0.0f) return;
  SophiaScalars<M> s = p.s;
  if (a.inv_scale != nullptr) s.grad_scale *= *a.inv_scale;
  each_tile(p, [&](const SophiaTensor& t, int64_t first, int64_t) {
    const int64_t n = t.numel;
    M g[kEach], m[kEach], h[kEach] = {}, theta[kEach], u[kEach];
    load_math<G>(t.grad, first, n, g);
    load_state<S, false>(t.exp_avg, t.exp_avg_scale, first, n, m);
    if (a.denom != kDenomSign) load_state<S, true>(t.hessian, t.hessian_scale, first, n, h);
    load_math<T>(t.param, first, n, theta);
#pragma unroll
    for (int i = 0; i < kEach; ++i) g[i] *= s.grad_scale;
    if (a.update_hessian) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) h[i] = sophia_square(h[i], g[i], s);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) m[i] = sophia_exp_avg(m[i], g[i], s);
    clip8(a.denom, m, h, s, u);
    store_state<S, false>(t.exp_avg, t.exp_avg_scale, first, n, m, a.seed, a.step, t.stream);
    if (a.update_hessian) store_state<S, true>(t.hessian, t.hessian_scale, first, n, h, a.seed, a.step, t.stream);
#pragma unroll
    for (int i = 0; i < kEach; ++i) theta[i] = sophia_moved(theta[i], u[i], s);
    T after[kEach];
    round8<T>(theta, a, t.stream, first, after);
    store8<T>(t.param, first, n, after);
  });
}

template <class T, class G, class S>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Pass<StepHead<math_t<T>>, SophiaTensor> p) {
  using M = math_t<T>;
  const SophiaStepArgs& a = p.a;
  if (a.found_inf != nullptr && *a.found_inf != 0.0f) return;
  SophiaScalars<M> s = p.s;
  if (a.inv_scale != nullptr) s.grad_scale *= *a.inv_scale;
  const bool has_h = a.denom != kDenomSign;
  each_tile(p, [&](const SophiaTensor& t, int64_t first, int64_t tile) {
    const int64_t n = t.numel;
    M g[kEach], m[kEach], h[kEach] = {}, u[kEach], theta[kEach];
    T before[kEach], after[kEach];
    load_math<G>(t.grad, first, n, g);
    load_state<S, false>(t.exp_avg, t.exp_avg_scale, first, n, m);
    if (has_h) load_state<S, true>(t.hessian, t.hessian_scale, first, n, h);
    const bool mastered = std::is_same_v<M, float> && t.master != nullptr;
    load8<T>(t.param, first, n, before);
    if (mastered) {
      if constexpr (std::is_same_v<M, float>) load8<float>(t.master, first, n, theta);
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) theta[i] = to_math(before[i]);
    }
    uint32_t live = 0, finite = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const M scaled = g[i] * s.grad_scale;
      const bool good = is_finite(scaled), in = good || !a.skip;
      finite |= (good ? 1u : 0u) << i;
      live |= (in ? 1u : 0u) << i;
      if (a.update_hessian) h[i] = in ? sophia_square(h[i], scaled, s) : h[i];
      m[i] = in ? sophia_exp_avg(m[i], scaled, s) : m[i];
    }
    clip8(a.denom, m, h, s, u);
    store_state<S, false>(t.exp_avg, t.exp_avg_scale, first, n, m, a.seed, a.step, t.stream);
    if (a.update_hessian) store_state<S, true>(t.hessian, t.hessian_scale, first, n, h, a.seed, a.step, t.stream);
    if (t.compensation != nullptr) {
      T rest[kEach];
      load8<T>(t.compensation, first, n, rest);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        T c = rest[i];
        const T moved = sophia_kahan<T>(theta[i], u[i], c, s);
        after[i] = live >> i & 1u ? moved : before[i];
        rest[i] = live >> i & 1u ? c : rest[i];
      }
      store8<T>(t.compensation, first, n, rest);
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) theta[i] = live >> i & 1u ? sophia_moved(theta[i], u[i], s) : theta[i];
      if (mastered) {
        if constexpr (std::is_same_v<M, float>) store8<float>(t.master, first, n, theta);
      }
      round8<T>(theta, a, t.stream, first, after);
      if (a.skip) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) after[i] = live >> i & 1u ? after[i] : before[i];
      }
    }
    store8<T>(t.param, first, n, after);
    if (a.stats != nullptr) {
      double sums[kSophiaStats] = {};
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (element(first, i) >= n) continue;
        const bool in = live >> i & 1u;
        sums[0] += in && has_h && sophia_wins(m[i], h[i], s) ? 1.0 : 0.0;
        sums[1] += in && m[i] != M(0) ? 1.0 : 0.0;
        sums[2] += in ? static_cast<double>(u[i]) * static_cast<double>(u[i]) : 0.0;
        sums[3] += finite >> i & 1u ? 0.0 : 1.0;
        sums[4] += differ(after[i], before[i]) ? 1.0 : 0.0;
        sums[5] += 1.0;
      }
      add_in_block(sums, p.partials + tile * kSophiaStats);
    }
  });
}

template <class M, class G, class S>
__global__ void __launch_bounds__(kThreads) hessian_kernel(const __grid_constant__ Pass<HessianHead<M>, SophiaHessianTensor> p) {
  const SophiaHessianArgs& a = p.a;
  if (a.found_inf != nullptr && *a.found_inf != 0.0f) return;
  const M scale = a.inv_scale != nullptr ? static_cast<M>(*a.inv_scale) : M(1);
  each_tile(p, [&](const SophiaHessianTensor& t, int64_t first, int64_t) {
    M g[kEach], h[kEach], other[kEach];
    load_math<G>(t.grad, first, t.numel, g);
    load_state<S, true>(t.hessian, t.scale, first, t.numel, h);
    if (t.probe != nullptr) load_math<G>(t.probe, first, t.numel, other);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const M scaled = g[i] * scale;
      h[i] = fma(p.weight * scaled, t.probe != nullptr ? other[i] : scaled, p.keep * h[i]);
    }
    store_state<S, true>(t.hessian, t.scale, first, t.numel, h, a.seed, a.step, t.stream);
  });
}

template <bool kHessian>
__global__ void __launch_bounds__(kThreads) encode_kernel(const __grid_constant__ Pass<CodeHead, SophiaCodeArgs> p) {
  each_tile(p, [&](const SophiaCodeArgs& t, int64_t first, int64_t) {
    float value[kEach];
    load8<float>(t.values, first, t.numel, value);
    const Halves r16(t.seed, t.step, kHessian ? kSophiaHessian : kSophiaExpAvg, t.stream, first);
    encode8<kHessian>(
        value, [&](int i) { return t.stochastic ? Code<kHessian>::shift_of(r16[i]) : Code<kHessian>::kNearest; }, t.codes, t.scales, first,
        t.numel);
  });
}

template <bool kHessian>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ Pass<CodeHead, SophiaCodeArgs> p) {
  each_tile(p, [&](const SophiaCodeArgs& t, int64_t first, int64_t) {
    float value[kEach];
    load_state<uint8_t, kHessian>(t.codes, t.scales, first, t.numel, value);
    store8<float>(t.values, first, t.numel, value);
  });
}

// -- launching ---------------------------------------------------------------------------------------------------------------------

const char* said(cudaError_t status) { return status == cudaSuccess ? nullptr : cudaGetErrorString(status); }

// Several times as many blocks as the device holds at once, each walking over tiles.
// Measured on an H200, 124M elements: states of four bytes are fastest with a block for every tile (0.699 ms against 0.725 with 32 a
// multiprocessor and 0.737 with 8), narrower ones, whose blocks do more than move bytes, with 32 (8-bit: 0.723 against 0.785 and 0.752).
dim3 grid_of(uint32_t tiles, bool narrow = true) {
  if (!narrow) return dim3(std::max(1u, tiles));
  int device = 0, multiprocessors = 1;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  return dim3(std::max(1u, std::min(tiles, static_cast<uint32_t>(multiprocessors) * 32u)));
}

// Fills parameters with tensors and calls launch(params) each time they are full.
template <class Tensor, class Head, class Launch>
const char* each_launch(const Head& head, const Tensor* tensors, int64_t count, const Launch& launch) {
  using P = Pass<Head, Tensor>;
  static_assert(sizeof(P) <= kParameterBytes, "launch parameters too large");
  P p;
  static_cast<Head&>(p) = head;
  uint32_t before = 0;
  for (int64_t t = 0; t < count;) {
    p.count = 0;
    p.tiles = 0;
    p.tiles_before = before;
    for (; t < count && p.count < P::kTensors; ++t) {
      if (tensors[t].numel == 0) continue;
      p.tensors[p.count] = tensors[t];
      p.first_tile[p.count] = p.tiles;
      p.tiles += static_cast<uint32_t>((tensors[t].numel + kTile - 1) / kTile);
      ++p.count;
    }
    before += p.tiles;
    if (p.tiles == 0) continue;
    launch(p);
    if (const char* error = said(cudaGetLastError())) return error;
  }
  return nullptr;
}

// Nothing but weights, gradients and states, and no choice of elements: what plain_step_kernel does.
bool is_plain(const SophiaStepArgs& a) {
  return a.stats == nullptr && !a.skip && std::all_of(a.tensors, a.tensors + a.count, [](const SophiaTensor& t) {
           return t.master == nullptr && t.compensation == nullptr;
         });
}

template <class M, class Call>
void with_state(int state, const Call& f) {
  if constexpr (std::is_same_v<M, float>) {
    if (state == kStateHalf) return f(bfloat16{});
    if (state == kStateByte) return f(uint8_t{});
  }
  f(M{});
}

template <class Call>
void with_type(int dtype, const Call& f) {
  switch (dtype) {
    case kFloat64: return f(double{});
    case kBFloat16: return f(bfloat16{});
    case kFloat16: return f(float16{});
    default: return f(float{});
  }
}

}  // namespace
}  // namespace TF_NS

namespace tf_cuda {

using namespace TF_NS;

const char* sophia_step(const SophiaStepArgs& a, double* partials, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  int64_t tiles = 0;
  for (int64_t t = 0; t < a.count; ++t) tiles += (a.tensors[t].numel + kTile - 1) / kTile;
  const bool plain = is_plain(a);
  const char* error = nullptr;
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const StepHead<math_t<T>> head = {a, sophia_scalars<math_t<T>>(a, 1.0f), partials};
    const auto with_grad = [&](auto grad) {
      with_state<math_t<T>>(a.state, [&](auto state) {
        using G = decltype(grad);
        using S = decltype(state);
        error = each_launch(head, a.tensors, a.count, [&](const auto& p) {
          const auto kernel = plain ? &plain_step_kernel<T, G, S> : &step_kernel<T, G, S>;
          const dim3 grid = grid_of(p.tiles, sizeof(T) < 4 || sizeof(S) < 4);
          kernel<<<grid, kThreads, 0, stream>>>(p);
        });
      });
    };
    if constexpr (sizeof(T) == 2) {
      if (a.grad_dtype == kFloat32) return with_grad(float{});
    }
    with_grad(T{});
  });
  if (error != nullptr || a.stats == nullptr || tiles == 0) return error;
  const StatsParams params = {partials, tiles, a.stats, a.found_inf};
  const dim3 one(1);
  stats_kernel<<<one, kThreads, 0, stream>>>(params);
  return said(cudaGetLastError());
}

const char* sophia_hessian(const SophiaHessianArgs& a, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const char* error = nullptr;
  with_type(a.grad_dtype, [&](auto grad) {
    using G = decltype(grad);
    using M = math_t<G>;
    const HessianHead<M> head = {a, static_cast<M>(a.keep), static_cast<M>(a.weight)};
    with_state<M>(a.state, [&](auto state) {
      using S = decltype(state);
      error = each_launch(head, a.tensors, a.count, [&](const auto& p) {
        const auto kernel = &hessian_kernel<M, G, S>;
        const dim3 grid = grid_of(p.tiles, sizeof(G) < 4 || sizeof(S) < 4);
        kernel<<<grid, kThreads, 0, stream>>>(p);
      });
    });
  });
  return error;
}

const char* sophia_encode(const SophiaCodeArgs& a, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return each_launch(CodeHead{}, &a, 1, [&](const auto& p) {
    const auto kernel = a.hessian ? &encode_kernel<true> : &encode_kernel<false>;
    const dim3 grid = grid_of(p.tiles);
    kernel<<<grid, kThreads, 0, stream>>>(p);
  });
}

const char* sophia_decode(const SophiaCodeArgs& a, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return each_launch(CodeHead{}, &a, 1, [&](const auto& p) {
    const auto kernel = a.hessian ? &decode_kernel<true> : &decode_kernel<false>;
    const dim3 grid = grid_of(p.tiles);
    kernel<<<grid, kThreads, 0, stream>>>(p);
  });
}

}  // namespace tf_cuda
