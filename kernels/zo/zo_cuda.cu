// Zeroth-order passes on CUDA: traversal only, the math is that of zo.hpp.
//
// Work is cut into tiles of 4,096 elements, one per block of 256 threads at a time. A warp owns 512 consecutive elements of a tile and
// walks them in vectors of 4 (float, double) or 8 (16-bit types) elements per thread, so that a warp's load or store is whole cache lines
// and a thread's is 16 bytes. One Philox block gives a thread 4 normals or 8 rounding halves; signs come 128 to a block, so a warp draws
// its 16 words of sign bits together, one per lane, and hands them around by shuffles.
//
// All a launch needs stands in its parameters (CUDA 12.1 and later allow 32,764 bytes): tensors, streams and terms. Nothing is copied to
// the device beforehand, and a captured graph holds everything.
#include "zo.hpp"
#include "zo_cuda.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kPerThread = 16;
constexpr int kWarpTile = kWarp * kPerThread;
constexpr int64_t kTile = kThreads * kPerThread;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

static_assert(kWarpTile == 16 * 32, "a warp's sign bits are one word for each of 16 lanes");

template <class T>
constexpr int kVector = sizeof(T) == 2 ? 8 : 4;
template <class T>
constexpr int kVectors = kPerThread / kVector<T>;

// -- launch parameters -----------------------------------------------------------------------------------------------------------------

constexpr int kSlots = 3;    // chain: theta, source; Adam: theta, exp_avg, exp_avg_sq
constexpr int kMaxDims = 8;  // of tensors that are not contiguous, after dimensions have been merged
constexpr int kParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

struct FlatTensor {
  void* data[kSlots];
  int64_t numel;
  uint32_t first_tile;
  uint32_t stream;
};

struct StridedTensor {
  void* data[kSlots];
  int64_t numel;
  uint32_t first_tile;
  uint32_t stream;
  int32_t ndim;
  int64_t sizes[kMaxDims];
  int64_t strides[kSlots][kMaxDims];
};

// Blocks per multiprocessor that registers must leave room for: 3 is at most 80 registers a thread, 2 is 128. No kernel spills with these
// (benchmarks/cuda_compile.py).
template <class T, class Tensor>
constexpr int kResident = std::is_same_v<Tensor, StridedTensor> ? 1
                          : sizeof(T) == 4                      ? 3
                                                                : 2;

// Vectors a thread works on at once: all of them, in registers; one after the other where speed is lost to scattered loads anyway, which
// keeps the code small.
template <class T, class Tensor>
constexpr int kUnroll = std::is_same_v<Tensor, FlatTensor> ? kVectors<T> : 1;

struct Scalars {
  const Term* device_terms;
  double decay;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  int32_t n_terms;
  int32_t z_round;
  bool stochastic;
  uint32_t tiles;
  int32_t count;
  AdamScalars<double> adam;
};

template <class Tensor>
struct Pass {
  static constexpr int kTensors = (kParameterBytes - static_cast<int>(sizeof(Scalars)) - kMaxTerms * static_cast<int>(sizeof(Term)) - 16) /
                                  static_cast<int>(sizeof(Tensor));
  Scalars s;
  Term terms[kMaxTerms];
  Tensor tensors[kTensors];
};
static_assert(sizeof(Pass<FlatTensor>) <= kParameterBytes && sizeof(Pass<StridedTensor>) <= kParameterBytes, "launch parameters too large");
static_assert(Pass<StridedTensor>::kTensors > 0, "no room for tensors");

// Where terms are read from. For the plain chain the two are compiled apart: from the parameters, a seed is known to be the same in all
// threads, and the generator's round keys stay in uniform registers. The other kernels choose at run time.
enum class Terms { kInParameters, kInMemory, kEither };

template <Terms kWhere, class P>
__device__ __forceinline__ bool terms_in_memory(const P& p) {
  return kWhere == Terms::kInMemory || (kWhere == Terms::kEither && p.s.device_terms != nullptr);
}

template <Terms kWhere, class P>
__device__ __forceinline__ Term term_at(const P& p, int k) {
  return terms_in_memory<kWhere>(p) ? p.s.device_terms[1 + k] : p.terms[k];
}

// {rounding seed, decay, rounding query}
template <Terms kWhere, class P>
__device__ __forceinline__ Term common_at(const P& p) {
  if (terms_in_memory<kWhere>(p)) return p.s.device_terms[0];
  return {p.s.rounding_seed, p.s.decay, p.s.rounding_query, 0u};
}

// -- memory ----------------------------------------------------------------------------------------------------------------------------

// Where logical element i of slot s is.
__device__ __forceinline__ int64_t offset_of(const FlatTensor&, int, int64_t i) { return i; }
// Not inlined: 64-bit divisions are long, and one copy of them in a kernel is enough.
__device__ __noinline__ int64_t offset_of(const StridedTensor& t, int slot, int64_t i) {
  int64_t offset = 0;
  for (int d = t.ndim - 1; d >= 0; --d) {
    const int64_t rest = i / t.sizes[d];
    offset += (i - rest * t.sizes[d]) * t.strides[slot][d];
    i = rest;
  }
  return offset;
}

template <class T>
struct alignas(16) Packet {
  static constexpr int kCount = 16 / sizeof(T);
  T v[kCount];
};

template <class T>
__device__ __forceinline__ bool whole_packets(const T* at) {
  return reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

// Elements i .. i + N - 1, as many as the tensor has; the rest are zero.
template <class T, int N, class Tensor>
__device__ __forceinline__ void load(const Tensor& t, int slot, int64_t i, math_t<T> (&out)[N]) {
  const T* data = static_cast<const T*>(t.data[slot]);
  if constexpr (std::is_same_v<Tensor, FlatTensor>) {
    if (i + N <= t.numel && whole_packets(data)) {
#pragma unroll
      for (int p = 0; p < N; p += Packet<T>::kCount) {
        const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(data + i + p);
#pragma unroll
        for (int k = 0; k < Packet<T>::kCount; ++k) out[p + k] = to_math(packet.v[k]);
      }
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = i + k < t.numel ? to_math(data[offset_of(t, slot, i + k)]) : math_t<T>(0);
}

template <class T, int N, class Tensor>
__device__ __forceinline__ void store(const Tensor& t, int slot, int64_t i, const T (&from)[N]) {
  T* data = static_cast<T*>(t.data[slot]);
  if constexpr (std::is_same_v<Tensor, FlatTensor>) {
    if (i + N <= t.numel && whole_packets(data)) {
#pragma unroll
      for (int p = 0; p < N; p += Packet<T>::kCount) {
        Packet<T> packet;
#pragma unroll
        for (int k = 0; k < Packet<T>::kCount; ++k) packet.v[k] = from[p + k];
        *reinterpret_cast<Packet<T>*>(data + i + p) = packet;
      }
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (i + k < t.numel) data[offset_of(t, slot, i + k)] = from[k];
  }
}

// -- generation ------------------------------------------------------------------------------------------------------------------------

// First element, relative to its warp's 512, of a lane's vector v.
template <int N>
__device__ __forceinline__ int lane_offset(int v) {
  return (v * kWarp + static_cast<int>(threadIdx.x % kWarp)) * N;
}

template <int N>
__device__ __forceinline__ void gaussian_vector(const Sequence& s, uint64_t first, float (&z)[N]) {
#pragma unroll
  for (int b = 0; b < N / 4; ++b) gaussian_block(first / 4 + b, s, z + 4 * b);
}

template <int N>
__device__ __forceinline__ void uniform_vector(const Sequence& s, uint64_t first, float (&z)[N]) {
#pragma unroll
  for (int b = 0; b < N / 4; ++b) {
    const PhiloxBlock<uint32_t> x = philox_block(first / 4 + b, s);
    z[4 * b + 0] = uniform_from_word<float>(x.w0);
    z[4 * b + 1] = uniform_from_word<float>(x.w1);
    z[4 * b + 2] = uniform_from_word<float>(x.w2);
    z[4 * b + 3] = uniform_from_word<float>(x.w3);
  }
}

// The 512 sign bits of a warp, one word in each of lanes 0 to 15 (and again in 16 to 31), in element order.
__device__ __forceinline__ uint32_t warp_signs(const Sequence& s, uint64_t warp_first) {
  const uint32_t lane = threadIdx.x % 16;
  return word_of(philox_block(warp_first / 128 + lane / 4, s), lane % 4);
}

template <int N>
__device__ __forceinline__ void sign_vector(uint32_t signs, int v, float (&z)[N]) {
  const int at = lane_offset<N>(v);
  const uint32_t word = __shfl_sync(kAllLanes, signs, at / 32) >> (at % 32);
#pragma unroll
  for (int k = 0; k < N; ++k) z[k] = float_of(0x3F800000u | (~(word >> k) << 31));
}

// Calls use(v, z) for each vector of a lane. All lanes of the warp call this together.
template <int N, int kUnrolled, class Use>
__device__ __forceinline__ void each_vector(const Sequence& s, uint32_t dist, uint64_t warp_first, const Use& use) {
  float z[N];
  if (dist == kRademacher) {
    const uint32_t signs = warp_signs(s, warp_first);
#pragma unroll kUnrolled
    for (int v = 0; v < kPerThread / N; ++v) {
      sign_vector(signs, v, z);
      use(v, z);
    }
  } else if (dist == kUniform) {
#pragma unroll kUnrolled
    for (int v = 0; v < kPerThread / N; ++v) {
      uniform_vector(s, warp_first + lane_offset<N>(v), z);
      use(v, z);
    }
  } else {
#pragma unroll kUnrolled
    for (int v = 0; v < kPerThread / N; ++v) {
      gaussian_vector(s, warp_first + lane_offset<N>(v), z);
      use(v, z);
    }
  }
}

template <int N>
__device__ __forceinline__ void round_z_vector(float (&z)[N], int z_round) {
  if (z_round == kNoRounding) return;
  if (z_round == kBFloat16) {
#pragma unroll
    for (int k = 0; k < N; ++k) z[k] = round_z(z[k], kBFloat16);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) z[k] = round_z(z[k], kFloat16);
  }
}

// acc += sum_k coef_k z_k, one fma per term, in the order of the terms.
template <Terms kWhere, int kUnrolled, class M, int N, class P>
__device__ __forceinline__ void add_terms(const P& p, uint32_t stream, uint64_t warp_first, M (&acc)[kPerThread / N][N]) {
  for (int k = 0; k < p.s.n_terms; ++k) {
    const Term term = term_at<kWhere>(p, k);
    const Sequence s = make_sequence(term.seed, stream, term.dist, term.query);
    const M coef = static_cast<M>(term.coef);
    each_vector<N, kUnrolled>(s, term.dist, warp_first, [&](int v, float (&z)[N]) {
      round_z_vector(z, p.s.z_round);
#pragma unroll
      for (int i = 0; i < N; ++i) acc[v][i] = fma(coef, static_cast<M>(z[i]), acc[v][i]);
    });
  }
}

// Rounds N values to T; `first` is the element of values[0] and a multiple of N.
template <class T, int N>
__device__ __forceinline__ void round_vector(const math_t<T> (&values)[N], bool stochastic, const Sequence& bits, uint64_t first,
                                             T (&out)[N]) {
  if constexpr (sizeof(T) == 2) {
    static_assert(N == 8, "one block of rounding bits for each vector");
    if (stochastic) {
      const PhiloxBlock<uint32_t> x = philox_block(first / 8, bits);
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = Round<T>::stochastic(values[k], half_of_word(word_of(x, k / 2), k));
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = Round<T>::nearest(values[k]);
}

// -- passes ----------------------------------------------------------------------------------------------------------------------------

// Calls work(tensor, first element of this warp) for the tiles of this block. Tiles come in rising order, so the tensor is searched for
// once and then only moves forward.
template <class P, class Work>
__device__ __forceinline__ void each_tile(const P& p, const Work& work) {
  if (blockIdx.x >= p.s.tiles) return;
  int at = 0;
  for (int end = p.s.count; end - at > 1;) {
    const int middle = (at + end) / 2;
    if (p.tensors[middle].first_tile <= blockIdx.x) {
      at = middle;
    } else {
      end = middle;
    }
  }
  for (uint32_t tile = blockIdx.x; tile < p.s.tiles; tile += gridDim.x) {
    while (at + 1 < p.s.count && p.tensors[at + 1].first_tile <= tile) ++at;
    const auto& t = p.tensors[at];
    const int64_t first = static_cast<int64_t>(tile - t.first_tile) * kTile + (threadIdx.x / kWarp) * kWarpTile;
    if (first < t.numel) work(t, first);
  }
}

template <class T, class Tensor, Terms kWhere>
__global__ void __launch_bounds__(kThreads, kWhere == Terms::kInParameters && sizeof(T) == 2 ? 3 : kResident<T, Tensor>)
    chain_kernel(const __grid_constant__ Pass<Tensor> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  const Term common = common_at<kWhere>(p);
  const M decay = static_cast<M>(common.coef);
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    M acc[kVectors<T>][N];
#pragma unroll kUnroll < T, Tensor>
    for (int v = 0; v < kVectors<T>; ++v) {
      load<T>(t, 1, warp_first + lane_offset<N>(v), acc[v]);
    }
#pragma unroll kUnroll < T, Tensor>
    for (int v = 0; v < kVectors<T>; ++v) {
#pragma unroll
      for (int k = 0; k < N; ++k) acc[v][k] *= decay;
    }
    add_terms<kWhere, kUnroll<T, Tensor>, M, N>(p, t.stream, static_cast<uint64_t>(warp_first), acc);
    const Sequence bits = make_sequence(common.seed, t.stream, kRounding, common.query);
#pragma unroll kUnroll < T, Tensor>
    for (int v = 0; v < kVectors<T>; ++v) {
      const int64_t i = warp_first + lane_offset<N>(v);
      T out[N];
      round_vector<T>(acc[v], p.s.stochastic, bits, static_cast<uint64_t>(i), out);
      store<T>(t, 0, i, out);
    }
  });
}

template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, kResident<T, Tensor>) adam_kernel(const __grid_constant__ Pass<Tensor> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  const Term common = common_at<Terms::kEither>(p);
  const AdamScalars<double>& d = p.s.adam;
  const AdamScalars<M> scalars = {M(d.beta1), M(d.beta2), M(d.one_minus_beta1), M(d.one_minus_beta2), M(d.inverse_correction),
                                  M(d.eps),   M(d.rate),  M(common.coef)};
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    M g[kVectors<T>][N];
#pragma unroll kUnroll < T, Tensor>
    for (int v = 0; v < kVectors<T>; ++v) {
#pragma unroll
      for (int k = 0; k < N; ++k) g[v][k] = M(0);
    }
    add_terms<Terms::kEither, kUnroll<T, Tensor>, M, N>(p, t.stream, static_cast<uint64_t>(warp_first), g);
    const Sequence bits = make_sequence(common.seed, t.stream, kRounding, common.query);
#pragma unroll kUnroll < T, Tensor>
    for (int v = 0; v < kVectors<T>; ++v) {
      const int64_t i = warp_first + lane_offset<N>(v);
      M theta[N], mean[N], square[N];
      load<T>(t, 0, i, theta);
      load<M>(t, 1, i, mean);
      load<M>(t, 2, i, square);
#pragma unroll
      for (int k = 0; k < N; ++k) theta[k] = adam_element(theta[k], g[v][k], mean[k], square[k], scalars);
      store<M>(t, 1, i, mean);
      store<M>(t, 2, i, square);
      T out[N];
      round_vector<T>(theta, p.s.stochastic, bits, static_cast<uint64_t>(i), out);
      store<T>(t, 0, i, out);
    }
  });
}

// Tiles are aligned to the counter, not to the output: element e of the direction is out[e - a.first].
template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs a) {
  constexpr int N = kVector<T>;
  const Sequence s = make_sequence(a.seed, a.stream, a.dist, a.query);
  const uint64_t end = a.first + static_cast<uint64_t>(a.n);
  const uint64_t start = a.first / kTile * kTile + (threadIdx.x / kWarp) * kWarpTile;
  for (uint64_t warp_first = start + blockIdx.x * kTile; warp_first < end; warp_first += gridDim.x * static_cast<uint64_t>(kTile)) {
    each_vector<N, kVectors<T>>(s, a.dist, warp_first, [&](int v, float (&z)[N]) {
      const uint64_t first = warp_first + lane_offset<N>(v);
      T* out = static_cast<T*>(a.out) + static_cast<int64_t>(first - a.first);
      const bool whole = first >= a.first && first + N <= end && whole_packets(out);
#pragma unroll
      for (int b = 0; b < N; b += Packet<T>::kCount) {
        Packet<T> packet;
#pragma unroll
        for (int k = 0; k < Packet<T>::kCount; ++k) {
          packet.v[k] = Round<T>::nearest(z[b + k]);
          const uint64_t e = first + b + k;
          if (!whole && e >= a.first && e < end) out[b + k] = packet.v[k];
        }
        if (whole) *reinterpret_cast<Packet<T>*>(out + b) = packet;
      }
    });
  }
}

__global__ void __launch_bounds__(kThreads) words_kernel(const __grid_constant__ WordsArgs a) {
  const Sequence s = make_sequence(a.seed, a.stream, a.purpose, a.query);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < a.blocks; b += step) {
    const PhiloxBlock<uint32_t> x = philox_block(a.first_block + static_cast<uint64_t>(b), s);
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) a.out[4 * b + j] = word_of(x, j);
  }
}

// One block of rounding bits, 8 elements, per thread.
template <class T>
__global__ void __launch_bounds__(kThreads) round_kernel(const __grid_constant__ RoundArgs a) {
  const Sequence s = make_sequence(a.seed, a.stream, kRounding, a.query);
  const int64_t blocks = static_cast<int64_t>((a.first % 8 + static_cast<uint64_t>(a.n) + 7) / 8);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < blocks; b += step) {
    const PhiloxBlock<uint32_t> x = philox_block(a.first / 8 + static_cast<uint64_t>(b), s);
    const int64_t at = 8 * b - static_cast<int64_t>(a.first % 8);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (at + k < 0 || at + k >= a.n) continue;
      static_cast<T*>(a.out)[at + k] = Round<T>::stochastic(a.x[at + k], half_of_word(word_of(x, k / 2), k));
    }
  }
}

// -- host ------------------------------------------------------------------------------------------------------------------------------

// Blocks for so many tiles: enough to fill the device several times over, so that the last ones to finish leave little idle.
unsigned grid_for(int64_t tiles) {
  int device = 0;
  int multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return static_cast<unsigned>(std::min<int64_t>(tiles, int64_t{32} * multiprocessors));
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// The views of one tensor: what its slots point to.
struct Row {
  const View* slot[kSlots];
  uint32_t stream;
};

bool is_flat(const Row& row) {
  return std::all_of(row.slot, row.slot + kSlots, [](const View* view) { return view->ndim == 0; });
}

bool fill(FlatTensor&, const Row&) { return true; }

// Merges dimensions that lie behind each other in every slot. False when more than kMaxDims are left.
bool fill(StridedTensor& t, const Row& row) {
  const View* shaped = *std::find_if(row.slot, row.slot + kSlots, [](const View* view) { return view->ndim != 0; });
  int64_t inner = 1;  // elements in the dimensions after d: the stride of a contiguous view
  t.ndim = 0;         // filled from the innermost dimension, turned around below
  for (int d = shaped->ndim - 1; d >= 0; --d) {
    const int64_t size = shaped->sizes[d];
    int64_t stride[kSlots];
    bool merges = t.ndim > 0;
    for (int s = 0; s < kSlots; ++s) {
      stride[s] = row.slot[s]->ndim == 0 ? inner : row.slot[s]->strides[d];
      merges = merges && stride[s] == t.strides[s][t.ndim - 1] * t.sizes[t.ndim - 1];
    }
    inner *= size;
    if (size == 1) continue;
    if (merges) {
      t.sizes[t.ndim - 1] *= size;
      continue;
    }
    if (t.ndim == kMaxDims) return false;
    t.sizes[t.ndim] = size;
    for (int s = 0; s < kSlots; ++s) t.strides[s][t.ndim] = stride[s];
    ++t.ndim;
  }
  std::reverse(t.sizes, t.sizes + t.ndim);
  for (int s = 0; s < kSlots; ++s) std::reverse(t.strides[s], t.strides[s] + t.ndim);
  return true;
}

// Launches over the tensors that are contiguous (FlatTensor) or not (StridedTensor), as many launches as the parameters need room for.
template <class Tensor, class RowAt, class Launch>
const char* each_launch(const ChainArgs& a, const Scalars& scalars, const RowAt& row_at, const Launch& launch) {
  Pass<Tensor> p;
  p.s = scalars;
  if (scalars.device_terms == nullptr) std::copy(a.terms, a.terms + a.n_terms, p.terms);
  int64_t tiles = 0;
  const auto flush = [&]() -> const char* {
    if (p.s.count == 0) return nullptr;
    p.s.tiles = static_cast<uint32_t>(tiles);
    launch(p, grid_for(tiles));
    p.s.count = 0;
    tiles = 0;
    return launched();
  };
  for (int64_t i = 0; i < a.count; ++i) {
    const Row row = row_at(i);
    const int64_t numel = row.slot[0]->numel;
    if (numel == 0 || is_flat(row) != std::is_same_v<Tensor, FlatTensor>) continue;
    const int64_t here = (numel + kTile - 1) / kTile;
    if (p.s.count == Pass<Tensor>::kTensors || tiles + here > int64_t{0x7FFFFFFF}) {
      if (const char* error = flush()) return error;
    }
    Tensor& t = p.tensors[p.s.count++];
    for (int s = 0; s < kSlots; ++s) t.data[s] = row.slot[s]->data;
    t.numel = numel;
    t.first_tile = static_cast<uint32_t>(tiles);
    t.stream = row.stream;
    fill(t, row);
    tiles += here;
  }
  return flush();
}

template <class RowAt, class Launch>
const char* run_pass(const ChainArgs& a, const Scalars& scalars, const RowAt& row_at, const Launch& launch) {
  // What can be wrong is found before anything is written.
  if (a.n_terms > kMaxTerms && scalars.device_terms == nullptr) return "at most 64 terms";
  StridedTensor scratch;
  for (int64_t i = 0; i < a.count; ++i) {
    const Row row = row_at(i);
    if (!is_flat(row) && !fill(scratch, row)) return "a tensor has more than 8 dimensions that cannot be merged; pass a contiguous copy";
  }
  if (const char* error = each_launch<FlatTensor>(a, scalars, row_at, launch)) return error;
  return each_launch<StridedTensor>(a, scalars, row_at, launch);
}

Scalars scalars_of(const ChainArgs& a, const Term* device_terms) {
  Scalars s = {};
  s.device_terms = device_terms;
  s.decay = a.decay;
  s.rounding_seed = a.rounding_seed;
  s.rounding_query = a.rounding_query;
  s.n_terms = static_cast<int32_t>(a.n_terms);
  s.z_round = a.z_round;
  s.stochastic = a.stochastic;
  return s;
}

template <class Call>
void with_dtype(int dtype, const Call& f) {
  switch (dtype) {
    case kFloat64: return f(double{});
    case kBFloat16: return f(bfloat16{});
    case kFloat16: return f(float16{});
    default: return f(float{});
  }
}

}  // namespace

const char* zo_chain(const ChainArgs& a, const Term* device_terms, void* stream) {
  const auto row_at = [&](int64_t i) -> Row { return {{&a.params[i], &a.sources[i], &a.sources[i]}, a.streams[i]}; };
  return run_pass(a, scalars_of(a, device_terms), row_at, [&](const auto& p, unsigned grid) {
    with_dtype(a.dtype, [&](auto type) {
      using T = decltype(type);
      using Tensor = std::remove_const_t<std::remove_reference_t<decltype(p.tensors[0])>>;
      if constexpr (std::is_same_v<Tensor, StridedTensor>) {
        chain_kernel<T, Tensor, Terms::kEither><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      } else if (device_terms != nullptr) {
        chain_kernel<T, Tensor, Terms::kInMemory><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      } else {
        chain_kernel<T, Tensor, Terms::kInParameters><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      }
    });
  });
}

const char* zo_adam(const AdamArgs& a, const Term* device_terms, void* stream) {
  Scalars scalars = scalars_of(a.chain, device_terms);
  scalars.adam = adam_scalars<double>(a);
  const auto row_at = [&](int64_t i) -> Row { return {{&a.chain.params[i], &a.exp_avgs[i], &a.exp_avg_sqs[i]}, a.chain.streams[i]}; };
  return run_pass(a.chain, scalars, row_at, [&](const auto& p, unsigned grid) {
    with_dtype(a.chain.dtype, [&](auto type) {
      using T = decltype(type);
      using Tensor = std::remove_const_t<std::remove_reference_t<decltype(p.tensors[0])>>;
      adam_kernel<T, Tensor><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    });
  });
}

const char* zo_sample(const SampleArgs& a, void* stream) {
  if (a.n <= 0) return nullptr;
  const int64_t tiles = static_cast<int64_t>((a.first % kTile + static_cast<uint64_t>(a.n) + kTile - 1) / kTile);
  const unsigned grid = grid_for(tiles);
  with_dtype(a.dtype, [&](auto type) { sample_kernel<decltype(type)><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); });
  return launched();
}

const char* zo_words(const WordsArgs& a, void* stream) {
  if (a.blocks <= 0) return nullptr;
  const unsigned grid = grid_for((a.blocks + kThreads - 1) / kThreads);
  words_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* zo_stochastic_round(const RoundArgs& a, void* stream) {
  if (a.n <= 0) return nullptr;
  const unsigned grid = grid_for((a.n / 8 + kThreads + 1) / kThreads);
  with_dtype(a.dtype, [&](auto type) { round_kernel<decltype(type)><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); });
  return launched();
}

int zo_tensors_per_launch() { return Pass<FlatTensor>::kTensors; }

}  // namespace TF_NS
