// Zeroth-order passes on CUDA: traversal only, the math is that of zo.hpp.
#include "zo_cuda_tiles.hpp"

namespace TF_NS {
namespace {

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

// The chain with a mask, or with terms of dist gauss16: the same values, compiled apart so that the plain chain keeps its registers.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, kResident<T, Tensor>) masked_chain_kernel(const __grid_constant__ Pass<Tensor, MaskedHead> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  constexpr int kUnrolled = kUnroll<T, Tensor>;
  const M decay = static_cast<M>(p.s.decay);
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    const uint32_t moves = moving<T, kUnrolled>(p.mask, t, 1, warp_first);
    M acc[kVectors<T>][N];
#pragma unroll kUnrolled
    for (int v = 0; v < kVectors<T>; ++v) load<T>(t, 1, warp_first + lane_offset<N>(v), acc[v]);
#pragma unroll kUnrolled
    for (int v = 0; v < kVectors<T>; ++v) {
#pragma unroll
      for (int k = 0; k < N; ++k) acc[v][k] *= decay;
    }
    each_term<kUnrolled, N>(p, t.stream, static_cast<uint64_t>(warp_first), [&](int k, int v, const float (&z)[N]) {
      const M coef = static_cast<M>(p.terms[k].coef);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (moves_at<N>(moves, v, i)) acc[v][i] = fma(coef, static_cast<M>(z[i]), acc[v][i]);
      }
    });
    const Sequence bits = make_sequence(p.s.rounding_seed, t.stream, kRounding, p.s.rounding_query);
#pragma unroll kUnrolled
    for (int v = 0; v < kVectors<T>; ++v) {
      const int64_t i = warp_first + lane_offset<N>(v);
      T out[N];
      round_vector<T>(acc[v], p.s.stochastic, bits, static_cast<uint64_t>(i), out);
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
    each_vector<N, kVectors<T>, true>(s, a.dist, warp_first, [&](int v, float (&z)[N]) {
      const uint64_t first = warp_first + lane_offset<N>(v);
      T* out = static_cast<T*>(a.out) + static_cast<int64_t>(first - a.first);
      const bool whole = first >= a.first && first + N <= end && whole_packets<Packet<T>>(out);
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

}  // namespace

namespace {

const char* plain_chain(const ChainArgs& a, const Term* device_terms, void* stream) {
  ChainHead head = {};
  if (!fill_head(head, a, device_terms)) return kTooManyTerms;
  const auto row_at = [&](int64_t i) -> Row { return {{&a.params[i], &a.sources[i], &a.sources[i]}, a.streams[i]}; };
  return run_pass<FlatTensor, StridedTensor>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    with_dtype(a.dtype, [&](auto type) {
      using T = decltype(type);
      using Tensor = tensor_of<decltype(p)>;
      if constexpr (!Tensor::kFlat) {
        chain_kernel<T, Tensor, Terms::kEither><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      } else if (device_terms != nullptr) {
        chain_kernel<T, Tensor, Terms::kInMemory><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      } else {
        chain_kernel<T, Tensor, Terms::kInParameters><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      }
    });
  });
}

const char* masked_chain(const ChainArgs& a, void* stream) {
  MaskedHead head = {};
  if (!fill_head(head, a)) return kTooManyTerms;
  const auto row_at = [&](int64_t i) -> Row { return {{&a.params[i], &a.sources[i], &a.sources[i]}, a.streams[i], mask_word(a.mask, i)}; };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    with_dtype(a.dtype, [&](auto type) {
      using Tensor = tensor_of<decltype(p)>;
      masked_chain_kernel<decltype(type), Tensor><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    });
  });
}

}  // namespace

const char* zo_chain(const ChainArgs& a, const Term* device_terms, void* stream) {
  const bool gauss16 =
      std::any_of(a.terms, a.terms + (device_terms == nullptr ? a.n_terms : 0), [](const Term& t) { return t.dist == kGauss16; });
  if (a.mask.kind == kNoMask && !gauss16) return plain_chain(a, device_terms, stream);
  if (device_terms != nullptr) return "terms in device memory take no mask";
  return masked_chain(a, stream);
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
