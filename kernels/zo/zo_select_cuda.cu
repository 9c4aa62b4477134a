// Passes on CUDA that read and count: sums of a direction, histograms for order statistics of magnitudes, counts and bits of small weights.
#include "zo_cuda_tiles.hpp"

namespace TF_NS {
namespace {

// -- sums of a direction ---------------------------------------------------------------------------------------------------------------

constexpr int kPiece = 2048;  // elements in one sum, as on the CPU
constexpr int kPieces = static_cast<int>(kTile) / kPiece;
constexpr int kLanes = 8;  // interleaved partial sums of a piece (reduce.hpp)

// Elements lead .. numel - 1, counted from element `start` of a direction, a multiple of kPiece. Slot 0 takes the sums, piece by piece;
// slot 1 is what a magnitude mask looks at.
template <class Base>
struct Span : Masked<Base> {
  uint64_t start;
  int64_t lead;
};

template <class Base>
bool fill(Span<Base>& t, const Row& row) {
  t.lead = static_cast<int64_t>(row.first % kPiece);
  t.start = row.first - row.first % kPiece;
  return fill(static_cast<Masked<Base>&>(t), row);
}

struct SumHead {
  Scalars s;
  Term term;
  MaskScalars mask;
};

// The partial sum of one lane: elements lane, lane + 8, ... of a piece's n.
__device__ __forceinline__ Moments lane_sum(const float* z, int n, int lane) {
  Moments sum = {0.0, 0.0};
  for (int i = lane; i < n; i += kLanes) {
    const double x = static_cast<double>(z[i]);
    sum.sum += x;
    sum.sum_of_squares += x * x;
  }
  return sum;
}

template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, Tensor::kFlat ? 4 : 2) sums_kernel(const __grid_constant__ Pass<Tensor, SumHead> p) {
  constexpr int N = kVector<T>;
  __shared__ float z[kPieces][kPiece + kLanes];  // apart by so much that the lanes of both pieces read different banks
  each_tile<true>(p, [&](const Tensor& t, int64_t warp_first) {
    const Sequence s = make_sequence(p.term.seed, t.stream, p.term.dist, p.term.query);
    const uint64_t at = t.start + static_cast<uint64_t>(warp_first);
    const uint32_t moves = moving<T, kUnroll<T, Tensor>>(p.mask, t, 1, static_cast<int64_t>(at));
    const int in_tile = static_cast<int>(threadIdx.x / kWarp) * kWarpTile;
    each_vector<N, kUnroll<T, Tensor>, true>(s, p.term.dist, at, [&](int v, float (&x)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const int i = in_tile + lane_offset<N>(v) + k;
        z[i / kPiece][i % kPiece] = moves >> (v * N + k) & 1u ? x[k] : 0.0f;
      }
    });
    __syncthreads();
    const int piece = static_cast<int>(threadIdx.x) / kLanes;
    const int64_t tile_first = warp_first - in_tile;
    const int64_t first = tile_first + piece * kPiece;
    if (threadIdx.x < kWarp) {
      const bool here = piece < kPieces && first < t.numel;
      const int skip = here && first < t.lead ? static_cast<int>(t.lead - first) : 0;
      const int n = here ? static_cast<int>(t.numel - first < kPiece ? t.numel - first : kPiece) : 0;
      Moments sum = {0.0, 0.0};
      if (here) sum = lane_sum(z[piece] + skip, n - skip, static_cast<int>(threadIdx.x) % kLanes);
      for (int step = 1; step < kLanes; step *= 2) {  // the tree of piece_sum
        sum.sum += __shfl_xor_sync(kAllLanes, sum.sum, step);
        sum.sum_of_squares += __shfl_xor_sync(kAllLanes, sum.sum_of_squares, step);
      }
      if (here && threadIdx.x % kLanes == 0) static_cast<Moments*>(t.data[0])[first / kPiece] = sum;
    }
    __syncthreads();
  });
}

// -- order statistics ------------------------------------------------------------------------------------------------------------------

constexpr int kBins = 1 << kDigitBits;
constexpr int kCopies = 4;  // of the histogram in shared memory, so that warps meet less

// |x| as an integer of the same order, NaN last: the bits of the float, or those of the double.
__device__ __forceinline__ uint64_t magnitude_key(double x, bool) { return bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFu; }
__device__ __forceinline__ uint64_t magnitude_key(float x, bool wide) {
  return wide ? magnitude_key(static_cast<double>(x), true) : bits_of(x) & 0x7FFFFFFFu;
}

struct HistogramHead {
  Scalars s;
  uint64_t prefix;
  int64_t* bins;
  int32_t shift;
  bool wide;
};

// Counts the digit above bit `shift` of the magnitudes whose bits above that digit are `prefix`.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads) histogram_kernel(const __grid_constant__ Pass<Tensor, HistogramHead> p) {
  constexpr int N = kVector<T>;
  __shared__ uint32_t counts[kCopies][kBins];
  for (int i = threadIdx.x; i < kCopies * kBins; i += kThreads) counts[i / kBins][i % kBins] = 0;
  __syncthreads();
  uint32_t* const mine = counts[threadIdx.x / kWarp % kCopies];
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
#pragma unroll 1
    for (int v = 0; v < kVectors<T>; ++v) {
      const int64_t i = warp_first + lane_offset<N>(v);
      math_t<T> x[N];
      load<T>(t, 0, i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const uint64_t key = magnitude_key(x[k], p.wide) >> p.shift;
        if (i + k < t.numel && key >> kDigitBits == p.prefix) atomicAdd(&mine[key % kBins], 1u);
      }
    }
  });
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    uint64_t sum = 0;
    for (int c = 0; c < kCopies; ++c) sum += counts[c][i];
    if (sum != 0) atomicAdd(reinterpret_cast<unsigned long long*>(&p.bins[i]), static_cast<unsigned long long>(sum));
  }
}

// -- small weights ---------------------------------------------------------------------------------------------------------------------

struct CountHead {
  Scalars s;
  int64_t* counts;
};

// counts[t.stream] += elements of the tensor whose magnitude is at most the threshold in t.mask.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Pass<Tensor, CountHead> p) {
  constexpr int N = kVector<T>;
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    const auto threshold = static_cast<math_t<T>>(bit_cast<double>(t.mask));
    int count = 0;
#pragma unroll 1
    for (int v = 0; v < kVectors<T>; ++v) {
      const int64_t i = warp_first + lane_offset<N>(v);
      math_t<T> x[N];
      load<T>(t, 0, i, x);
#pragma unroll
      for (int k = 0; k < N; ++k) count += i + k < t.numel && is_within(x[k], threshold) ? 1 : 0;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) count += __shfl_xor_sync(kAllLanes, count, step);
    if (threadIdx.x % kWarp == 0 && count != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&p.counts[t.stream]), static_cast<unsigned long long>(count));
    }
  });
}

struct BitsHead {
  Scalars s;
};

// Slots: weights, bytes of bits. A thread makes whole bytes: 8 elements at a time whatever their type.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, Tensor::kFlat ? 4 : 1) bits_kernel(const __grid_constant__ Pass<Tensor, BitsHead> p) {
  constexpr int N = 8;
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    const auto threshold = static_cast<math_t<T>>(bit_cast<double>(t.mask));
#pragma unroll 1
    for (int v = 0; v < kPerThread / N; ++v) {
      const int64_t i = warp_first + lane_offset<N>(v);
      if (i >= t.numel) continue;
      math_t<T> x[N];
      load<T>(t, 0, i, x);
      uint32_t byte = 0;
#pragma unroll
      for (int k = 0; k < N; ++k) byte |= (i + k < t.numel && is_within(x[k], threshold) ? 1u : 0u) << k;
      static_cast<uint8_t*>(t.data[1])[i / 8] = static_cast<uint8_t>(byte);
    }
  });
}

}  // namespace

const char* zo_piece_sums(const PieceSumArgs& a, void* stream) {
  SumHead head = {};
  head.term = {a.seed, 1.0, a.query, a.dist};
  head.mask = mask_scalars(a.mask);
  const bool looks = a.mask.kind == kMagnitudeMask;
  const auto row_at = [&](int64_t i) -> Row {
    return {{&a.out[i], looks ? &a.tensors[i] : &a.out[i], &a.out[i]}, a.streams[i], mask_word(a.mask, i), a.firsts[i]};
  };
  return run_pass<Span<FlatTensor>, Span<StridedTensor>>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(looks ? a.dtype : kFloat32,
               [&](auto type) { sums_kernel<decltype(type), Tensor><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p); });
  });
}

const char* zo_count_digits(const DigitArgs& a, void* stream) {
  HistogramHead head = {};
  head.prefix = a.prefix;
  head.bins = a.counts;
  head.shift = a.shift;
  head.wide = a.wide;
  const auto row_at = [&](int64_t i) -> Row { return {{&a.tensors[i], &a.tensors[i], &a.tensors[i]}, 0}; };
  return run_pass<FlatTensor, StridedTensor>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.dtype,
               [&](auto type) { histogram_kernel<decltype(type), Tensor><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p); });
  });
}

const char* zo_count_within(const WithinArgs& a, void* stream) {
  CountHead head = {};
  head.counts = a.counts;
  const auto row_at = [&](int64_t i) -> Row {
    return {{&a.tensors[i], &a.tensors[i], &a.tensors[i]}, static_cast<uint32_t>(i), bit_cast<uint64_t>(a.thresholds[i])};
  };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.dtype,
               [&](auto type) { count_kernel<decltype(type), Tensor><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p); });
  });
}

const char* zo_magnitude_bits(const WithinArgs& a, void* stream) {
  const BitsHead head = {};
  View bits;  // of the tensor that row_at was last asked for
  const auto row_at = [&](int64_t i) -> Row {
    bits = {a.bits[i], a.tensors[i].numel, 0, nullptr, nullptr};
    return {{&a.tensors[i], &bits, &bits}, 0, bit_cast<uint64_t>(a.thresholds[i])};
  };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.dtype,
               [&](auto type) { bits_kernel<decltype(type), Tensor><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p); });
  });
}

}  // namespace TF_NS
