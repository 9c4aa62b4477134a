// The nearest word embedding on CUDA, in two launches. First all products: a warp has four words and eight queries, so a word comes from
// memory once for eight queries, and blocks for the next eight queries follow at once and find it in the second-level cache; bound by
// reading the table. Then a block per query finds the best score and compares all words near it again in double.
#include "attack_block.hpp"
#include "attack_cuda.hpp"

namespace TF_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kQueries = 8;
constexpr int kWords = 4;  // of a warp: queries times words are its lanes
static_assert(kQueries * kWords == kWarp, "a lane for each product");
constexpr int kBlockWords = kThreads / kWarp * kWords;

struct Products {
  NearestArgs a;
  float *products, *weights;
  int64_t groups;  // of queries
};

// Lane i gets the sum of x[i] over all lanes: halves are exchanged, 31 shuffles instead of 160.
template <int half>
__device__ __forceinline__ float lane_sums(float (&x)[kWarp], int lane) {
  const bool upper = (lane & half) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float keep = upper ? x[i + half] : x[i], give = upper ? x[i] : x[i + half];
    x[i] = keep + __shfl_xor_sync(kAll, give, half);
  }
  if constexpr (half > 1) return lane_sums<half / 2>(x, lane);
  return x[0];
}

template <class W, bool kWide>
__device__ __forceinline__ void load(const W* p, int64_t d, int64_t width, float (&x)[kFour]) {
  if (kWide) {
    const Four<W> all = *reinterpret_cast<const Four<W>*>(p + d);
    for (int i = 0; i < kFour; ++i) x[i] = to_math(all.v[i]);
  } else {
    for (int i = 0; i < kFour; ++i) x[i] = d + i < width ? to_math(p[d + i]) : 0.0f;
  }
}

// kWide: rows are whole fours, and aligned to them.
template <class W, bool kWide>
__global__ void __launch_bounds__(kThreads) products_kernel(Products p) {
  const NearestArgs& a = p.a;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t query = blockIdx.x % p.groups * kQueries, word = blockIdx.x / p.groups * kBlockWords + warp * kWords;
  if (word >= a.columns) return;
  const W* words[kWords];
  for (int j = 0; j < kWords; ++j) {
    const int64_t at = word + j < a.columns ? word + j : a.columns - 1;
    words[j] = static_cast<const W*>(a.table) + at * a.width;
  }
  float sums[kWarp] = {}, squares[kWords] = {};
  for (int64_t d = lane * kFour; d < a.width; d += kWarp * kFour) {
    float x[kWords][kFour];
#pragma unroll
    for (int j = 0; j < kWords; ++j) load<W, kWide>(words[j], d, a.width, x[j]);
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      for (int i = 0; i < kFour; ++i) squares[j] = fma(x[j][i], x[j][i], squares[j]);
    }
#pragma unroll
    for (int r = 0; r < kQueries; ++r) {
      const int64_t row = query + r < a.rows ? query + r : a.rows - 1;  // a last group that is not full does one again
      float q[kFour];
      load<float, kWide>(a.q + row * a.width, d, a.width, q);
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        for (int i = 0; i < kFour; ++i) sums[j * kQueries + r] = fma(q[i], x[j][i], sums[j * kQueries + r]);
      }
    }
  }
  const float mine = lane_sums<kWarp / 2>(sums, lane);
  const int64_t row = query + lane % kQueries, column = word + lane / kQueries;
  if (row < a.rows && column < a.columns) p.products[row * a.columns + column] = mine;
  if (a.inv_norm != nullptr || query != 0) return;
#pragma unroll
  for (int j = 0; j < kWords; ++j) {
    const float square = warp_sum(squares[j]);
    if (lane == j && word + j < a.columns) p.weights[word + j] = word_weight(square, a.cosine);
  }
}

// The product and |w|^2 in double by a warp, in every lane.
template <class W>
__device__ __forceinline__ double exact_of(const NearestArgs& a, const float* q, double square, int64_t at, int lane) {
  const W* const w = static_cast<const W*>(a.table) + at * a.width;
  double product = 0.0, own = 0.0;
  for (int64_t d = lane; d < a.width; d += kWarp) {
    const double x = static_cast<double>(to_math(w[d]));
    product += static_cast<double>(q[d]) * x;
    own += x * x;
  }
  return exact_score(warp_sum(product), warp_sum(own), square, a.cosine);
}

template <class W>
__global__ void __launch_bounds__(kRowThreads) pick_kernel(Products p) {
  const NearestArgs& a = p.a;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t row = blockIdx.x;
  const float* const q = a.q + row * a.width;
  const float* const products = p.products + row * a.columns;
  const float* const weights = a.inv_norm != nullptr ? a.inv_norm : p.weights;
  double square = 0.0;
  for (int64_t d = threadIdx.x; d < a.width; d += kRowThreads) square += static_cast<double>(q[d]) * static_cast<double>(q[d]);
  square = block_sum<kRowThreads>(square);
  const Scale scale = scale_by(square, a.cosine);
  const auto allowed = [&](int64_t k) { return a.mask == nullptr || a.mask[k] != 0; };
  float best = -INFINITY;
  int any = 0;
  for (int64_t k = threadIdx.x; k < a.columns; k += kRowThreads) {
    if (!allowed(k)) continue;
    const float score = scale(products[k], weights[k]);
    any |= score >= -INFINITY && square < static_cast<double>(INFINITY) ? 1 : 0;  // a number
    best = score > best ? score : best;
  }
  best = block_most<kRowThreads>(best);
  any = block_sum<kRowThreads>(any);
  const float bound = near_bound(best, square, a.width, a.cosine);
  // Each warp compares its words near the best; a lane has a word, the warp takes the found ones in turn.
  double exact = static_cast<double>(-INFINITY);
  int64_t at = -1;
  for (int64_t first = int64_t{warp} * kWarp; first < a.columns && any != 0; first += kRowThreads) {
    const int64_t k = first + lane;
    unsigned near = __ballot_sync(kAll, k < a.columns && allowed(k) && scale(products[k], weights[k]) >= bound);
    for (; near != 0u; near &= near - 1u) {
      const int64_t word = first + __ffs(static_cast<int>(near)) - 1;
      const double found = exact_of<W>(a, q, square, word, lane);
      if (at < 0 || found > exact) {  // a warp's words rise
        exact = found;
        at = word;
      }
    }
  }
  __shared__ double scores[kRowThreads / kWarp];
  __shared__ int64_t places[kRowThreads / kWarp];
  if (lane == 0) {
    scores[warp] = exact;
    places[warp] = at;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kRowThreads / kWarp; ++w) {
    if (places[w] >= 0 && (at < 0 || scores[w] > exact || (scores[w] == exact && places[w] < at))) {
      exact = scores[w];
      at = places[w];
    }
  }
  a.ids[row] = at;
  a.scores[row] = at < 0 ? NAN : static_cast<float>(exact);
}

template <class W>
const char* nearest(const Products& p, cudaStream_t stream) {
  const NearestArgs& a = p.a;
  const bool wide = a.width % kFour == 0 && reinterpret_cast<uintptr_t>(a.table) % sizeof(Four<W>) == 0 &&
                    reinterpret_cast<uintptr_t>(a.q) % sizeof(Four<float>) == 0;
  const auto products = wide ? &products_kernel<W, true> : &products_kernel<W, false>;
  const auto pick = &pick_kernel<W>;
  const int64_t blocks = (a.columns + kBlockWords - 1) / kBlockWords * p.groups;
  if (blocks > 0x7FFFFFFF) return "too many words and queries for one call";
  dim3 grid(static_cast<unsigned>(blocks));
  products<<<grid, kThreads, 0, stream>>>(p);
  const char* const error = launched();
  if (error != nullptr) return error;
  grid = dim3(static_cast<unsigned>(a.rows));
  pick<<<grid, kRowThreads, 0, stream>>>(p);
  return launched();
}

}  // namespace
}  // namespace TF_NS

namespace tf_cuda {

const char* nearest_token(const tenfold::NearestArgs& a, float* products, float* weights, void* stream) {
  const Products p = {a, products, weights, (a.rows + kQueries - 1) / kQueries};
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.dtype == kBFloat16) return nearest<bfloat16>(p, on);
  if (a.dtype == kFloat16) return nearest<float16>(p, on);
  return nearest<float>(p, on);
}

}  // namespace tf_cuda
