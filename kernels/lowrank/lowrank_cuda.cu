// Low-rank passes on CUDA: traversal only, the math is that of lowrank.hpp.
//
// A block of 128 threads takes tiles of 8 rows by 512 columns: it draws the U of its rows into shared memory, once for each term, and a
// thread keeps 8 rows by 4 columns in registers, so that a value of V is read once for 8 rows and a value of U serves 512 columns.
#include "lowrank.hpp"
#include "lowrank_cuda.hpp"

#include <cuda_runtime.h>

#include <algorithm>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 128;
constexpr int kRows = 8;
constexpr int kWide = 4;
constexpr int kColumns = kThreads * kWide;
constexpr int kMostTerms = 64;
constexpr int kParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

struct Entry {
  LowRankMatrix w;
  int64_t first_tile;
  int64_t tiles_across;
};

struct Options {
  double decay;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  int32_t n_terms;
  int32_t count;
  bool stochastic;
  int64_t tiles;
};

struct Pass {
  static constexpr int kEntries =
      (kParameterBytes - static_cast<int>(sizeof(Options)) - kMostTerms * static_cast<int>(sizeof(LowRankTerm))) /
      static_cast<int>(sizeof(Entry));
  Options o;
  LowRankTerm terms[kMostTerms];
  Entry entries[kEntries];
};
static_assert(sizeof(Pass) <= kParameterBytes && Pass::kEntries > 0, "launch parameters too large");

__device__ __forceinline__ int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// The U of rows first .. first + rows - 1 as [rank][8]: the eight rows of one rank lie together.
__device__ __forceinline__ void load_factor(const LowRankMatrix& w, const LowRankTerm& term, int64_t first, int64_t rows, float* u) {
  const int64_t n = rows * w.rank;
  if (w.u != nullptr) {
    for (int64_t e = threadIdx.x; e < n; e += kThreads) u[(e % w.rank) * kRows + e / w.rank] = w.u[first * w.rank + e];
    return;
  }
  const Sequence s = make_sequence(term.seed, w.stream, kLowRankU, term.query);
  const int64_t base = first * w.rank;  // a multiple of 8
  for (int64_t quad = threadIdx.x; 4 * quad < n; quad += kThreads) {
    float z[4];
    factor_block(static_cast<uint64_t>(base / 4 + quad), s, z);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t e = 4 * quad + k;
      if (e < n) u[(e % w.rank) * kRows + e / w.rank] = z[k];
    }
  }
}

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T v[kWide];
};

template <class T>
__device__ __forceinline__ bool is_quad(const T* at, int64_t stride, int64_t n) {
  return stride == 1 && n >= kWide && reinterpret_cast<uintptr_t>(at) % sizeof(Quad<T>) == 0;
}

template <class T>
__device__ __forceinline__ void load_row(const T* at, int64_t stride, int64_t n, math_t<T> (&out)[kWide]) {
  if (is_quad(at, stride, n)) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(at);
#pragma unroll
    for (int c = 0; c < kWide; ++c) out[c] = to_math(quad.v[c]);
    return;
  }
#pragma unroll
  for (int c = 0; c < kWide; ++c) out[c] = c < n ? to_math(at[c * stride]) : math_t<T>(0);
}

template <class T>
__device__ __forceinline__ void store_row(T* at, int64_t stride, int64_t n, const T (&from)[kWide]) {
  if (is_quad(at, stride, n)) {
    Quad<T> quad;
#pragma unroll
    for (int c = 0; c < kWide; ++c) quad.v[c] = from[c];
    *reinterpret_cast<Quad<T>*>(at) = quad;
    return;
  }
#pragma unroll
  for (int c = 0; c < kWide; ++c) {
    if (c < n) at[c * stride] = from[c];
  }
}

__device__ __forceinline__ uint32_t rounding_half(const Sequence& s, uint64_t element, uint64_t& held, PhiloxBlock<uint32_t>& x) {
  if (element / 8 != held) {
    held = element / 8;
    x = philox_block(held, s);
  }
  const uint32_t j = static_cast<uint32_t>(element % 8) / 2;
  const uint32_t word = j == 0 ? x.w0 : j == 1 ? x.w1 : j == 2 ? x.w2 : x.w3;
  return (element & 1u) ? word >> 16 : word & 0xFFFFu;
}

template <class T>
__global__ void __launch_bounds__(kThreads) lowrank_kernel(const __grid_constant__ Pass p) {
  using M = math_t<T>;
  alignas(16) __shared__ float u[kMaxRank * kRows];
  const M decay = static_cast<M>(p.o.decay);
  int at = 0;
  for (int64_t tile = blockIdx.x; tile < p.o.tiles; tile += gridDim.x) {
    while (at + 1 < p.o.count && p.entries[at + 1].first_tile <= tile) ++at;
    const Entry& entry = p.entries[at];
    const LowRankMatrix& w = entry.w;
    const uint64_t place = static_cast<uint64_t>(tile - entry.first_tile), across = static_cast<uint64_t>(entry.tiles_across);
    const int64_t row = static_cast<int64_t>(place / across) * kRows;  // the compiler divides short numbers in 32 bits
    const int64_t rows = at_most(kRows, w.rows - row);
    const int64_t column = static_cast<int64_t>(place % across) * kColumns + threadIdx.x * kWide;
    const int64_t wide = at_most(kWide, w.columns - column);  // none for threads behind the last column
    M acc[kRows][kWide];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kWide; ++c) acc[r][c] = M(0);
      if (r < rows && wide > 0) {
        const T* from = static_cast<const T*>(w.source) + (row + r) * w.source_row_stride + column * w.source_column_stride;
        load_row(from, w.source_column_stride, wide, acc[r]);
      }
    }
    for (int k = 0; k < p.o.n_terms; ++k) {
      __syncthreads();  // the factor of the term before is no longer read
      load_factor(w, p.terms[k], row, rows, u);
      __syncthreads();
      if (k == 0) {  // not before: the weights are on their way while the factor is drawn
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int c = 0; c < kWide; ++c) acc[r][c] *= decay;
        }
      }
      M s[kRows][kWide];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kWide; ++c) s[r][c] = M(0);
      }
      if (wide > 0) {
        for (int64_t l = 0; l < w.rank; ++l) {
          float v[kWide];
          load_row(w.vt + l * w.columns + column, 1, wide, v);
          Quad<float> left[kRows / kWide];
#pragma unroll
          for (int q = 0; q < kRows / kWide; ++q) left[q] = reinterpret_cast<const Quad<float>*>(u + l * kRows)[q];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int c = 0; c < kWide; ++c) add_rank(static_cast<M>(left[r / kWide].v[r % kWide]), static_cast<M>(v[c]), s[r][c]);
          }
        }
      }
      const M coef = static_cast<M>(p.terms[k].coef);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kWide; ++c) acc[r][c] = fma(coef, s[r][c], acc[r][c]);
      }
    }
    __syncthreads();
    if (wide <= 0) continue;
    const Sequence bits = make_sequence(p.o.rounding_seed, w.stream, kRounding, p.o.rounding_query);
    uint64_t held = ~uint64_t{0};
    PhiloxBlock<uint32_t> x = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      T out[kWide];
#pragma unroll
      for (int c = 0; c < kWide; ++c) {
        if (sizeof(T) == 2 && p.o.stochastic) {
          const uint64_t element = static_cast<uint64_t>((row + r) * w.columns + column + c);
          out[c] = Round<T>::stochastic(acc[r][c], rounding_half(bits, element, held, x));
        } else {
          out[c] = Round<T>::nearest(acc[r][c]);
        }
      }
      store_row(static_cast<T*>(w.data) + (row + r) * w.row_stride + column * w.column_stride, w.column_stride, wide, out);
    }
  }
}

struct FactorPass {
  LowRankTerm terms[kMostTerms];
  FactorArgs a;
};

// Four elements per thread: a factor, or the sum of several.
template <class T, bool kSum>
__global__ void __launch_bounds__(kThreads) factor_kernel(const __grid_constant__ FactorPass p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; 4 * quad < p.a.n; quad += step) {
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = 0; k < p.a.n_terms; ++k) {
      float z[4];
      factor_block(static_cast<uint64_t>(quad), make_sequence(p.terms[k].seed, p.a.stream, p.a.purpose, p.terms[k].query), z);
      const float coef = static_cast<float>(p.terms[k].coef);
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[j] = kSum ? fma(coef, z[j], acc[j]) : z[j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (4 * quad + j < p.a.n) static_cast<T*>(p.a.out)[4 * quad + j] = Round<T>::nearest(static_cast<math_t<T>>(acc[j]));
    }
  }
}

// -- host ------------------------------------------------------------------------------------------------------------------------------

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

template <class Call>
void with_type(int dtype, const Call& f) {
  switch (dtype) {
    case kFloat64: return f(double{});
    case kBFloat16: return f(bfloat16{});
    case kFloat16: return f(float16{});
    default: return f(float{});
  }
}

const char* launch(const Pass& p, int dtype, void* stream) {
  const unsigned grid = grid_for(p.o.tiles);
  with_type(dtype, [&](auto type) { lowrank_kernel<decltype(type)><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p); });
  return launched();
}

template <bool kSum>
const char* draw(const FactorArgs& a, void* stream) {
  if (a.n <= 0) return nullptr;
  FactorPass p = {};
  std::copy(a.terms, a.terms + a.n_terms, p.terms);
  p.a = a;
  const unsigned grid = grid_for((a.n + 4 * kThreads - 1) / (4 * kThreads));
  with_type(kSum ? kFloat32 : a.dtype, [&](auto type) {
    using T = decltype(type);
    factor_kernel<T, kSum><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
  return launched();
}

}  // namespace

const char* lowrank(const LowRankArgs& a, void* stream) {
  Pass p = {};
  p.o = {a.decay, a.rounding_seed, a.rounding_query, static_cast<int32_t>(a.n_terms), 0, a.stochastic, 0};
  std::copy(a.terms, a.terms + a.n_terms, p.terms);
  for (int64_t i = 0; i < a.count; ++i) {
    const LowRankMatrix& w = a.matrices[i];
    if (w.rows == 0 || w.columns == 0) continue;
    if (p.o.count == Pass::kEntries) {
      if (const char* error = launch(p, a.dtype, stream)) return error;
      p.o.count = 0;
      p.o.tiles = 0;
    }
    const int64_t across = (w.columns + kColumns - 1) / kColumns;
    p.entries[p.o.count++] = {w, p.o.tiles, across};
    p.o.tiles += across * ((w.rows + kRows - 1) / kRows);
  }
  return p.o.count == 0 ? nullptr : launch(p, a.dtype, stream);
}

const char* lowrank_factor(const FactorArgs& a, void* stream) { return draw<false>(a, stream); }
const char* lowrank_project(const FactorArgs& a, void* stream) { return draw<true>(a, stream); }

}  // namespace TF_NS
