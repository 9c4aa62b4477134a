// Perturbed weights on CUDA: traversal only, the math is that of dual.hpp.
//
// A thread makes the z of four elements, counted from a multiple of four, and writes W + c z for every output: both signs, or all copies of
// a query, come from one generation. The products are the library's (linear.py).
#include "dual.hpp"
#include "dual_cuda.hpp"

#include <cuda_runtime.h>

#include <algorithm>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 256;

struct Fill {
  PerturbedWeight w;
  int64_t first, n;  // elements; those of the outputs start at 0
  int32_t n_outs;
  PerturbedOut outs[kMaxCopies];
};

struct Embed {
  PerturbedWeight w;
  int64_t tokens;
  int64_t quads;  // per token: whole quads that cover a row wherever it starts
  int32_t n_outs;
  PerturbedOut outs[kMaxCopies];
};
static_assert(sizeof(Embed) <= 4096 && sizeof(Fill) <= 4096, "launch parameters too large");

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

template <class T>
__device__ __forceinline__ bool is_whole(const T* at) {
  return reinterpret_cast<uintptr_t>(at) % sizeof(Quad<T>) == 0;
}

// Elements e .. e + 3 of the weight, those within [begin, end); the rest are zero.
template <class T>
__device__ __forceinline__ void load_quad(const PerturbedWeight& w, int64_t e, int64_t begin, int64_t end, T (&out)[4]) {
  const T* data = static_cast<const T*>(w.data);
  const bool dense = w.column_stride == 1 && w.row_stride == w.columns;
  if (dense && e >= begin && e + 4 <= end && is_whole(data + e)) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(data + e);
#pragma unroll
    for (int k = 0; k < 4; ++k) out[k] = quad.v[k];
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    out[k] = T{};
    if (e + k < begin || e + k >= end) continue;
    const int64_t row = (e + k) / w.columns;
    out[k] = data[row * w.row_stride + (e + k - row * w.columns) * w.column_stride];
  }
}

template <class T, class O>
__device__ __forceinline__ void write_quad(const T (&w)[4], const float (&z)[4], double coef, O* out, int64_t e, int64_t begin,
                                           int64_t end) {
  const math_t<T> c = static_cast<math_t<T>>(coef);
  Quad<O> quad;
#pragma unroll
  for (int k = 0; k < 4; ++k) quad.v[k] = perturbed<T, O>(w[k], z[k], c);
  O* at = out + (e - begin);
  if (e >= begin && e + 4 <= end && is_whole(at)) {
    *reinterpret_cast<Quad<O>*>(at) = quad;
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (e + k >= begin && e + k < end) at[k] = quad.v[k];
  }
}

__device__ __forceinline__ void direction(const PerturbedWeight& w, int64_t e, float (&z)[4]) {
  direction_quad(make_sequence(w.seed, w.stream, w.dist, w.query), w.dist, static_cast<uint64_t>(e), z);
#pragma unroll
  for (int k = 0; k < 4; ++k) z[k] = round_z(z[k], w.z_round);
}

template <class T, class O>
__global__ void __launch_bounds__(kThreads) fill_kernel(const __grid_constant__ Fill p) {
  const int64_t end = p.first + p.n;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t quad = p.first / 4 + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; 4 * quad < end; quad += step) {
    const int64_t e = 4 * quad;
    float z[4];
    T w[4];
    direction(p.w, e, z);
    load_quad(p.w, e, p.first, end, w);
    for (int g = 0; g < p.n_outs; ++g) write_quad(w, z, p.outs[g].coef, static_cast<O*>(p.outs[g].data), e, p.first, end);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ Embed p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t total = p.tokens * p.quads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t token = i / p.quads;
    int64_t drawn = -1;
    float z[4];
    T w[4];
    for (int g = 0; g < p.n_outs; ++g) {
      const int64_t row = p.outs[g].ids[token];
      const int64_t begin = row * p.w.columns;
      const int64_t end = begin + p.w.columns;
      const int64_t e = 4 * (begin / 4 + i % p.quads);
      if (e >= end) continue;
      if (row != drawn) {
        direction(p.w, e, z);
        load_quad(p.w, e, begin, end, w);
        drawn = row;
      }
      write_quad(w, z, p.outs[g].coef, static_cast<T*>(p.outs[g].data) + token * p.w.columns, e, begin, end);
    }
  }
}

// -- host ------------------------------------------------------------------------------------------------------------------------------

unsigned grid_for(int64_t quads) {
  int device = 0;
  int multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return static_cast<unsigned>(std::min<int64_t>((quads + kThreads - 1) / kThreads, int64_t{32} * multiprocessors));
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

template <class T, class O>
void launch_fill(const Fill& p, unsigned grid, void* stream) {
  fill_kernel<T, O><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
}

}  // namespace

const char* dual_fill(const FillArgs& a, void* stream) {
  Fill p = {a.weight, a.row * a.weight.columns, a.rows * a.weight.columns, 0, {}};
  if (p.n <= 0) return nullptr;
  const unsigned grid = grid_for(p.n / 4 + 2);
  for (int64_t g = 0; g < a.n_outs; g += kMaxCopies) {
    p.n_outs = static_cast<int32_t>(std::min<int64_t>(kMaxCopies, a.n_outs - g));
    std::copy(a.outs + g, a.outs + g + p.n_outs, p.outs);
    with_type(a.weight.dtype, [&](auto type) {
      using T = decltype(type);
      if (a.out_dtype == a.weight.dtype) return launch_fill<T, T>(p, grid, stream);
      if constexpr (sizeof(T) == 2) launch_fill<T, float>(p, grid, stream);
    });
    if (const char* error = launched()) return error;
  }
  return nullptr;
}

const char* dual_embed(const EmbedArgs& a, void* stream) {
  if (a.tokens <= 0 || a.weight.columns <= 0) return nullptr;
  Embed p = {a.weight, a.tokens, a.weight.columns / 4 + 2, 0, {}};
  const unsigned grid = grid_for(p.tokens * p.quads);
  for (int64_t g = 0; g < a.n_outs; g += kMaxCopies) {
    p.n_outs = static_cast<int32_t>(std::min<int64_t>(kMaxCopies, a.n_outs - g));
    std::copy(a.outs + g, a.outs + g + p.n_outs, p.outs);
    with_type(a.weight.dtype, [&](auto type) {
      using T = decltype(type);
      embed_kernel<T><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    });
    if (const char* error = launched()) return error;
  }
  return nullptr;
}

}  // namespace TF_NS
