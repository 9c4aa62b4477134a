// Rows of logits on CUDA: one thread block per row, one warp per block of 2048 entries, which it reads into registers, searches for the
// maximum and sums about it. Bound by memory on a data-centre device: one read of the logits. A row may start at any element, so lanes read
// single entries, 32 to 64 of them at a time. Rows without cap and temperature have kernels of their own, a third shorter.
//
// Lanes sum in float32, and are joined in double. The integer weights of the label draw are summed exactly, so the labels are those of
// every other backend.
#include "rows_cuda.hpp"

#include "rows.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

#include <cmath>
#include <type_traits>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int64_t kNowhere = INT64_MAX;

template <class T>
__device__ T* row_of(const Rows& rows, int64_t r) {
  return static_cast<T*>(rows.data) + (r / rows.inner) * rows.outer_stride + (r % rows.inner) * rows.inner_stride;
}

// x = cap(z) / temperature.
__device__ float exponent(float z, const RowShape& shape) {
  if (shape.softcap != 0.0f) z = shape.softcap * tanhf(z / shape.softcap);
  return shape.inverse_temperature != 1.0f ? z * shape.inverse_temperature : z;
}

template <class T, bool kShaped>
struct Row {
  const T* z;
  RowShape shape;
  __device__ float operator[](int64_t i) const {
    const float x = to_math(z[i]);
    if constexpr (kShaped) return exponent(x, shape);
    return x;
  }
};

template <bool kShaped, class T = float>
__device__ Row<T, kShaped> row_at(const Rows& rows, const RowShape& shape, int64_t r) {
  return {row_of<const T>(rows, r), shape};
}

// A row with `amount` added to one entry.
template <class X>
struct Changed {
  X row;
  int64_t entry;  // or -1
  float amount;
  __device__ float operator[](int64_t i) const { return i == entry ? row[i] + amount : row[i]; }
};

// Entries first + lane + j * 32 of a row, -inf behind its end.
template <int kCount, class X>
__device__ __forceinline__ void load_lane(const X& row, int64_t first, int64_t size, float (&x)[kCount]) {
  const int64_t at = first + threadIdx.x % kWarp;
  if (first + kCount * kWarp <= size) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[j] = row[at + j * kWarp];
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[j] = at + j * kWarp < size ? row[at + j * kWarp] : -INFINITY;
  }
}

__device__ float warp_max(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(kAll, x, distance));
  return x;
}
template <class T>
__device__ T warp_sum(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}
__device__ int64_t warp_min(int64_t x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const int64_t other = __shfl_xor_sync(kAll, static_cast<long long>(x), distance);
    x = other < x ? other : x;
  }
  return x;
}

// A lane's share of RowSums.
struct LaneSums {
  float max, s, a, b;
};

__device__ void move_to(LaneSums& l, float max) {
  if (l.max == max) return;
  const float shift = l.max - max;
  const float c = exp_nonpositive(shift);
  const bool gone = c == 0.0f;  // the shift may be so large that its square overflows
  l.b = gone ? 0.0f : c * (l.b + shift * (2.0f * l.a + shift * l.s));
  l.a = gone ? 0.0f : c * (l.a + shift * l.s);
  l.s = gone ? (l.s == l.s ? 0.0f : l.s) : c * l.s;
  l.max = max;
}

// The largest of what the warp holds; NaN is passed over.
template <int kCount>
__device__ __forceinline__ float held_max(const float (&x)[kCount]) {
  float top = kNoLogit;
#pragma unroll
  for (int j = 0; j < kCount; ++j) top = ::fmaxf(top, x[j]);
  return warp_max(top);
}

__device__ RowSums widen(const LaneSums& l) {
  return {l.max, static_cast<double>(l.s), static_cast<double>(l.a), static_cast<double>(l.b)};
}

__device__ RowSums warp_join(RowSums mine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const RowSums other = {__shfl_xor_sync(kAll, mine.max, distance), __shfl_xor_sync(kAll, mine.s, distance),
                           __shfl_xor_sync(kAll, mine.a, distance), __shfl_xor_sync(kAll, mine.b, distance)};
    mine = row_sums_join(mine, other);
  }
  return mine;
}

// What all threads of the block have seen, in every thread of the first warp.
__device__ RowSums block_join(const LaneSums& mine) {
  __shared__ RowSums warps[kWarps];
  const RowSums joined = warp_join(widen(mine));
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = joined;
  __syncthreads();
  RowSums out = warps[0];
  for (int w = 1; w < kWarps; ++w) out = row_sums_join(out, warps[w]);
  __syncthreads();
  return out;
}

__device__ int64_t block_min(int64_t mine) {
  __shared__ int64_t warps[kWarps];
  const int64_t joined = warp_min(mine);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = joined;
  __syncthreads();
  int64_t out = warps[0];
  for (int w = 1; w < kWarps; ++w) out = warps[w] < out ? warps[w] : out;
  __syncthreads();
  return out;
}

__device__ double block_sum(double mine) {
  __shared__ double warps[kWarps];
  const double joined = warp_sum(mine);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = joined;
  __syncthreads();
  double out = 0.0;
  for (int w = 0; w < kWarps; ++w) out += warps[w];
  __syncthreads();
  return out;
}

__device__ int64_t end_of(int64_t first, int64_t vocabulary) { return first + kRowBlock < vocabulary ? first + kRowBlock : vocabulary; }

// The sums of a row by all its warps; moments only where they are wanted.
template <bool moments, class X>
__device__ LaneSums lane_sums(const X& row, int64_t vocabulary) {
  constexpr int kHeld = 32;
  LaneSums l = {kNoLogit, 0.0f, 0.0f, 0.0f};
  for (int64_t first = threadIdx.x / kWarp * int64_t{kHeld * kWarp}; first < vocabulary; first += kWarps * kHeld * kWarp) {
    float x[kHeld];
    load_lane(row, first, vocabulary, x);
    move_to(l, larger(l.max, held_max(x)));
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const float d = x[j] - l.max;
      const float e = exp_nonpositive(d);
      l.s += e;
      if (moments) {
        const float finite = larger(-128.0f, d);
        l.a += e * finite;
        l.b += e * finite * finite;
      }
    }
  }
  return l;
}

template <class T, bool kShaped>
__global__ void __launch_bounds__(kThreads) forward_kernel(const RowForwardArgs a) {
  const int64_t r = blockIdx.x;
  const int64_t target = a.targets[r], size = a.shape.vocabulary;
  const bool stats = a.argmax != nullptr, writes = threadIdx.x == 0;
  if (target < 0) {
    if (writes) {
      a.logp[r] = a.lse[r] = 0.0;
      if (stats) {
        a.argmax[r] = 0;
        a.mean_logit[r] = a.mean_logp[r] = a.mean_logp2[r] = 0.0;
      }
    }
    return;
  }
  const auto row = row_at<kShaped, T>(a.logits, a.shape, r);
  const RowSums sums = block_join(stats ? lane_sums<true>(row, size) : lane_sums<false>(row, size));
  const double lse = row_lse(sums);
  if (writes) {
    a.lse[r] = lse;
    a.logp[r] = static_cast<double>(row[target]) - lse;
  }
  if (!stats) return;
  int64_t largest = kNowhere, nan = kNowhere;
  double total = 0.0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const float x = row[i];
    total += static_cast<double>(x);
    if (x == sums.max && i < largest) largest = i;
    if (x != x && i < nan) nan = i;
  }
  largest = block_min(largest);
  nan = block_min(nan);
  total = block_sum(total);
  if (!writes) return;
  const double log_s = ::log(sums.s), first = sums.a / sums.s, second = sums.b / sums.s;
  a.argmax[r] = nan != kNowhere ? nan : largest != kNowhere ? largest : 0;
  a.mean_logit[r] = total / static_cast<double>(size);
  a.mean_logp[r] = first - log_s;
  a.mean_logp2[r] = second - 2.0 * log_s * first + log_s * log_s;
}

// `out` may be the logits, so a thread reads all its entries before it writes one.
template <class T, bool kShaped>
__global__ void __launch_bounds__(kThreads) softmax_kernel(const RowSoftmaxArgs a) {
  constexpr int kHeld = kRowBlock / kThreads;
  const int64_t r = blockIdx.x, target = a.targets[r], size = a.shape.vocabulary;
  const int64_t first = blockIdx.y * kRowBlock + threadIdx.x;
  T* out = row_of<T>(a.out, r);
  const auto row = row_at<kShaped, T>(a.logits, a.shape, r);
  const TwoFloats lse = two_floats(a.lse[r]);
  const float coef = static_cast<float>(a.coef[r]), at_target = static_cast<float>(a.at_target[r]);
  float x[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) x[j] = target >= 0 && first + j * kThreads < size ? row[first + j * kThreads] : 0.0f;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int64_t i = first + j * kThreads;
    if (i >= size) continue;
    float value = 0.0f;
    if (target >= 0) {
      value = i == target ? at_target : coef * exp_nonpositive((x[j] - lse.high) - lse.low);
      if constexpr (kShaped) {
        if (a.shape.softcap != 0.0f) {
          const float t = x[j] / (a.shape.softcap * a.shape.inverse_temperature);
          value *= 1.0f - t * t;
        }
        value *= a.shape.inverse_temperature;
      }
    }
    out[i] = Round<T>::nearest(value);
  }
}

__device__ int64_t weight_of(float d) { return static_cast<int64_t>(static_cast<int32_t>(exp_exact(d) * kWeightOne + 0.5f)); }

// What a row is drawn from: its blocks' largest entries and sums of weights, and the block that was chosen.
struct Draw {
  float tops[tf_cuda::kMostBlocks];
  int64_t counts[tf_cuda::kMostBlocks];  // -1: there is NaN or +inf
  double parts[tf_cuda::kMostBlocks];
  int64_t chosen;
  double left, here;
};

template <class X>
__device__ void count_blocks(const X& row, int64_t size, int64_t blocks, Draw& draw) {
  for (int64_t k = threadIdx.x / kWarp; k < blocks; k += kWarps) {
    float x[kRowBlock / kWarp];
    load_lane(row, k * kRowBlock, size, x);
    const float max = held_max(x);
    int64_t sum = 0;
    int bad = 0;
#pragma unroll
    for (int j = 0; j < kRowBlock / kWarp; ++j) {
      const float d = x[j] - max;
      bad |= d != d;  // NaN, or inf - inf
      sum += weight_of(d);
    }
    sum = warp_sum(static_cast<long long>(sum));
    bad = warp_sum(bad);
    if (threadIdx.x % kWarp == 0) {
      draw.tops[k] = max;
      draw.counts[k] = bad != 0 ? -1 : sum;
    }
  }
}

// By the first warp: products by its lanes, sums one after the other, as every backend adds them.
__device__ void choose_block(const RowSampleArgs& a, int64_t r, int64_t blocks, double u, Draw& draw) {
  const int lane = threadIdx.x % kWarp;
  float top = kNoLogit;
  int bad = u >= 0.0 ? 0 : 1;
  for (int64_t k = lane; k < blocks && u >= 0.0; k += kWarp) {
    top = larger(top, draw.tops[k]);
    if (draw.counts[k] < 0) bad = 1;
  }
  top = warp_max(top);
  bad = warp_sum(bad);
  for (int64_t k = lane; k < blocks && bad == 0; k += kWarp) {
    draw.parts[k] = static_cast<double>(draw.counts[k]) * static_cast<double>(exp_exact(draw.tops[k] - top));
  }
  __syncwarp();
  if (lane != 0) return;
  const double nothing = u >= 0.0 ? ::nan("") : 0.0;
  a.tokens[r] = -1;
  a.logp[r] = a.lse[r] = nothing;
  draw.chosen = -1;
  double total = 0.0;
  for (int64_t k = 0; k < blocks && bad == 0; ++k) total += draw.parts[k];
  if (!(total > 0.0)) return;
  const double threshold = u * total;
  double end = 0.0;
  for (int64_t k = 0; k < blocks; ++k) {
    const double before = end;
    end = before + draw.parts[k];
    draw.chosen = k;
    draw.left = threshold - before;
    if (end > threshold) break;
  }
  draw.here = static_cast<double>(exp_exact(draw.tops[draw.chosen] - top));
  a.lse[r] = static_cast<double>(top) + ::log(total / static_cast<double>(kWeightOne));
}

// Of all threads' values the sum of those before this thread.
__device__ int64_t sum_before(int64_t mine) {
  __shared__ int64_t warps[kWarps];
  const int lane = threadIdx.x % kWarp;
  int64_t sum = mine;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t before = __shfl_sync(kAll, static_cast<long long>(sum), lane >= distance ? lane - distance : lane);
    if (lane >= distance) sum += before;
  }
  if (lane == kWarp - 1) warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  int64_t earlier = 0;
  for (int w = 0; w < static_cast<int>(threadIdx.x / kWarp); ++w) earlier += warps[w];
  return earlier + sum - mine;
}

template <class T, bool kShaped>
__global__ void __launch_bounds__(kThreads) sample_kernel(const RowSampleArgs a) {
  __shared__ Draw draw;
  const int64_t r = blockIdx.x, size = a.shape.vocabulary;
  const int64_t blocks = (size + kRowBlock - 1) / kRowBlock;
  const double u = a.uniforms[r];
  const auto row = row_at<kShaped, T>(a.logits, a.shape, r);
  if (u >= 0.0) count_blocks(row, size, blocks, draw);
  __syncthreads();
  if (threadIdx.x < kWarp) choose_block(a, r, blocks, u, draw);
  __syncthreads();
  if (draw.chosen < 0) return;
  // Each thread has a few entries of the block: the sum of those before, then the first whose sum passes `left`.
  constexpr int kHeld = kRowBlock / kThreads;
  const int64_t from = draw.chosen * kRowBlock + static_cast<int64_t>(threadIdx.x) * kHeld;
  const float max = draw.tops[draw.chosen];
  int64_t weights[kHeld];
  int64_t mine = 0, last = -1;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    weights[j] = from + j < size ? weight_of(row[from + j] - max) : 0;
    mine += weights[j];
    if (weights[j] > 0) last = from + j;
  }
  int64_t sum = sum_before(mine);
  int64_t hit = kNowhere;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    sum += weights[j];
    if (hit == kNowhere && weights[j] > 0 && static_cast<double>(sum) * draw.here > draw.left) hit = from + j;
  }
  hit = block_min(hit);
  last = -block_min(-last);
  if (threadIdx.x == 0) {
    const int64_t token = hit != kNowhere ? hit : last;
    a.tokens[r] = token;
    a.logp[r] = static_cast<double>(row[token]) - a.lse[r];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) ceu_kernel(const RowCeuArgs a) {
  const int64_t r = blockIdx.x, target = a.targets[r];
  if (target < 0) {
    if (threadIdx.x == 0) a.loss[r] = a.rest[r] = a.logp[r] = 0.0;
    return;
  }
  const auto row = row_at<true, T>(a.logits, a.shape, r);
  const Changed<Row<T, true>> without = {row, target, -INFINITY};
  const RowSums others = block_join(lane_sums<true>(without, a.shape.vocabulary));
  if (threadIdx.x != 0) return;
  const double x = static_cast<double>(row[target]), rest = row_lse(others);
  const double high = x > rest ? x : rest;
  const double lse = high + ::log1p(::exp((x > rest ? rest : x) - high));
  a.rest[r] = rest;
  a.logp[r] = x - lse;
  a.loss[r] = (lse - static_cast<double>(others.max)) - others.a / others.s;
}

// ---- two rows at a time ---------------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) divergence_kernel(const RowDivergenceArgs a) {
  const int64_t r = blockIdx.x, target = a.targets[r];
  if (target < 0) {
    if (threadIdx.x == 0) a.loss[r] = a.lse[r] = a.ref_lse[r] = 0.0;
    return;
  }
  const RowShape plain = {a.vocabulary, kFloat32, 0.0f, 1.0f};
  const auto x = row_at<false>(a.logits, plain, r);
  const Changed<Row<float, false>> y = {row_at<false>(a.ref_logits, plain, r), a.beta != 0.0f ? target : -1, -a.beta};
  const RowSums p = block_join(lane_sums<false>(x, a.vocabulary));
  const RowSums q = block_join(lane_sums<false>(y, a.vocabulary));
  const float max = a.kind == kReverseKl ? p.max : q.max;
  double mine = 0.0;
  for (int64_t first = 0; first < a.vocabulary; first += kRowBlock) {
    float sum = 0.0f;
    for (int64_t i = first + threadIdx.x; i < end_of(first, a.vocabulary); i += kThreads) {
      const float e = exp_nonpositive((a.kind == kReverseKl ? x[i] : y[i]) - max);
      const float gap = a.kind == kForwardKl ? y[i] - x[i] : a.kind == kReverseKl ? x[i] - y[i] : -x[i];
      sum += e == 0.0f ? 0.0f : e * gap;
    }
    mine += static_cast<double>(sum);
  }
  const double gap = block_sum(mine);
  if (threadIdx.x != 0) return;
  const double lse = row_lse(p), ref_lse = row_lse(q);
  const double mean = gap / (a.kind == kReverseKl ? p.s : q.s);
  a.lse[r] = lse;
  a.ref_lse[r] = ref_lse;
  a.loss[r] = a.kind == kForwardKl ? mean + (lse - ref_lse) : a.kind == kReverseKl ? mean + (ref_lse - lse) : mean + lse;
}

__global__ void __launch_bounds__(kThreads) divergence_backward_kernel(const RowDivergenceArgs a) {
  const int64_t r = blockIdx.x, target = a.targets[r];
  const int64_t first = blockIdx.y * kRowBlock, end = end_of(first, a.vocabulary);
  float* out = row_of<float>(a.out, r);
  const float* x = row_of<const float>(a.logits, r);
  const float* y = row_of<const float>(a.ref_logits, r);
  const TwoFloats lse = two_floats(a.lse[r]), ref_lse = two_floats(a.ref_lse[r]);
  const float grad = static_cast<float>(a.grad[r]), loss = static_cast<float>(a.loss[r]);
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) {
    const float log_p = (x[i] - lse.high) - lse.low;
    const float log_q = ((i == target ? y[i] - a.beta : y[i]) - ref_lse.high) - ref_lse.low;
    const float p = exp_nonpositive(log_p);
    float slope = p - exp_nonpositive(log_q);
    if (a.kind == kReverseKl) slope = p == 0.0f ? 0.0f : p * ((log_p - log_q) - loss);
    out[i] = target < 0 ? 0.0f : grad * slope;
  }
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// Calls f with a value of the type of the logits and with whether they are capped or tempered.
template <class Call>
void with_row(const RowShape& shape, const Call& f) {
  const auto with_type = [&](auto type) {
    if (shape.softcap != 0.0f || shape.inverse_temperature != 1.0f) return f(type, std::true_type{});
    f(type, std::false_type{});
  };
  switch (shape.dtype) {
    case kBFloat16: return with_type(bfloat16{});
    case kFloat16: return with_type(float16{});
    default: return with_type(float{});
  }
}

dim3 row_grid(const Rows& rows) { return dim3(static_cast<unsigned>(rows.rows)); }
dim3 block_grid(const Rows& rows, int64_t vocabulary) {
  return dim3(static_cast<unsigned>(rows.rows), static_cast<unsigned>((vocabulary + kRowBlock - 1) / kRowBlock));
}

}  // namespace

const char* row_forward(const RowForwardArgs& a, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const dim3 grid = row_grid(a.logits);
  with_row(a.shape, [&](auto type, auto shaped) {
    const auto kernel = &forward_kernel<decltype(type), shaped.value>;
    kernel<<<grid, kThreads, 0, stream>>>(a);
  });
  return launched();
}

const char* row_softmax(const RowSoftmaxArgs& a, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const dim3 grid = block_grid(a.logits, a.shape.vocabulary);
  with_row(a.shape, [&](auto type, auto shaped) {
    const auto kernel = &softmax_kernel<decltype(type), shaped.value>;
    kernel<<<grid, kThreads, 0, stream>>>(a);
  });
  return launched();
}

const char* row_sample(const RowSampleArgs& a, void* stream_handle) {
  if (a.shape.vocabulary > kMostBlocks * kRowBlock) return "a vocabulary of at most 2097152 was expected";
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const dim3 grid = row_grid(a.logits);
  with_row(a.shape, [&](auto type, auto shaped) {
    const auto kernel = &sample_kernel<decltype(type), shaped.value>;
    kernel<<<grid, kThreads, 0, stream>>>(a);
  });
  return launched();
}

const char* row_ceu(const RowCeuArgs& a, void* stream) {
  const dim3 grid = row_grid(a.logits);
  switch (a.shape.dtype) {
    case kBFloat16: ceu_kernel<bfloat16><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    case kFloat16: ceu_kernel<float16><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    default: ceu_kernel<float><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
  }
  return launched();
}

const char* row_divergence(const RowDivergenceArgs& a, bool backward, void* stream) {
  if (backward) {
    const dim3 grid = block_grid(a.logits, a.vocabulary);
    divergence_backward_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  } else {
    const dim3 grid = row_grid(a.logits);
    divergence_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  }
  return launched();
}

}  // namespace TF_NS
