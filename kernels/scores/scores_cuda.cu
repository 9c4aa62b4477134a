// Scores, cross-entropies and votes of rows of logits on CUDA: a warp owns a row and holds 512 of its logits in registers at a time, 16
// bytes per lane and load. Each lane sums about the largest logit that it has seen, so that nothing waits for other lanes before the end of
// the row. Bound by memory: 50,000 rows of 1000 float32 logits are 200 MB. Only where the label is not the likeliest class, and somebody
// wants to know which one is, the row is looked at once more, in the cache.
//
// The exponential is the device's ex2.approx of x / ln 2: about 12 instructions per logit in all. What is done once per row (logarithms,
// square roots, stores) is done by one lane per row, for four rows together. A row is summed in one order whatever the grid; histograms
// are sums of integers.
#include "scores_cuda.hpp"

#include "scores.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHeld = 16;         // logits per lane and chunk
constexpr float kPad = -1.7e38f;  // stands where there is no logit; a logit below counts as -inf
constexpr int kRowsOfWarp = 4;    // rows a warp does one after the other
constexpr int kNowhere = 0x7FFFFFFF;
constexpr unsigned kAll = 0xFFFFFFFFu;

struct alignas(16) Sixteen {
  uint32_t word[4];
};

template <class T>
__device__ T warp_sum(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}
template <class T>
__device__ T warp_min(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kAll, x, distance);
    x = other < x ? other : x;
  }
  return x;
}
// One instruction each; a NaN loses against a number.
__device__ float higher_of(float a, float b) { return ::fmaxf(a, b); }
__device__ float lower_of(float a, float b) { return ::fminf(a, b); }
__device__ float warp_max(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x = higher_of(x, __shfl_xor_sync(kAll, x, distance));
  return x;
}

__device__ float exp_device(float x) {
  const float t = x * 1.44269504f;
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(t));
  return y;
#else
  return std::exp2(t);
#endif
}

// The i-th of the logits in 16 bytes.
__device__ float logit_of(const Sixteen& from, int i, float) { return float_of(from.word[i]); }
__device__ float logit_of(const Sixteen& from, int i, bfloat16) {
  return float_of(i % 2 == 0 ? from.word[i / 2] << 16 : from.word[i / 2] & 0xFFFF0000u);
}
__device__ float logit_of(const Sixteen& from, int i, float16) {
  return to_math(float16{static_cast<uint16_t>(from.word[i / 2] >> (i % 2 * 16))});
}

// How a row lies in 16-byte pieces: `head` logits before the first whole one, `pieces`, and `tail` logits behind.
template <class T>
struct Layout {
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T));
  static constexpr int kLoads = kHeld / kEach;
  static constexpr int kChunk = kWarp * kLoads;  // pieces that a warp holds at a time
  const T* row;
  int size, head, pieces, tail;

  __device__ Layout(const T* at, int n) : row(at), size(n) {
    const int offset = static_cast<int>(reinterpret_cast<uintptr_t>(at) % 16) / static_cast<int>(sizeof(T));
    head = offset == 0 ? 0 : kEach - offset;
    if (head > n) head = n;
    pieces = (n - head) / kEach;
    tail = n - head - pieces * kEach;
  }
  // Place in the row of the one logit of the ragged ends that belongs to this lane, or -1.
  __device__ int end_place(int lane) const {
    if (lane < head) return lane;
    return lane >= 8 && lane < 8 + tail ? size - tail + lane - 8 : -1;
  }
  __device__ int place(int first, int lane, int slot) const {
    return head + (first + lane + kWarp * (slot / kEach)) * kEach + slot % kEach;
  }
  // The slot of this lane that holds class `label`, or -1.
  __device__ int slot_of(int first, int lane, int label) const {
    if (label < head || label >= size - tail) return -1;
    const int piece = (label - head) / kEach - first;
    if (piece < 0 || piece >= kChunk || piece % kWarp != lane) return -1;
    return piece / kWarp * kEach + (label - head) % kEach;
  }
  // Logits of pieces first .. first + kChunk - 1, `pad` where there are none.
  __device__ void load(int first, int lane, float x[kHeld], float pad = kPad) const {
    Sixteen raw[kLoads];
    const Sixteen* from = reinterpret_cast<const Sixteen*>(row + head);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int piece = first + lane + kWarp * u;
      if (piece < pieces) raw[u] = from[piece];
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const bool there = first + lane + kWarp * u < pieces;
#pragma unroll
      for (int i = 0; i < kEach; ++i) x[u * kEach + i] = there ? logit_of(raw[u], i, T{}) : pad;
    }
  }
};

// What one lane has seen of a row: as OtherSums, and `finite`, which is NaN where a logit was not.
struct LaneSums {
  float max, second, s, a, q, finite;
};

// A NaN or +inf spoils the sum, -inf becomes a logit that counts for nothing.
__device__ float mended(float x, LaneSums& l) {
  if (x - x == 0.0f) return x;
  l.finite = x - x;
  if (!(x < 0.0f)) l.s = l.finite;
  return kPad;
}

// Adds a chunk of logits, all finite. What was there is brought to the new maximum (Milakov and Gimelshein, arXiv 1805.02867).
template <bool second, bool sums>
__device__ void push(LaneSums& l, const float x[kHeld]) {
  float top = l.max;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (second) l.second = higher_of(l.second, lower_of(top, x[i]));
    top = higher_of(top, x[i]);
  }
  const float shift = higher_of(l.max - top, kLeastExponent);
  const float c = exp_device(shift);
  if (sums) {
    l.a = c * multiply_add(shift, l.s, l.a);
    l.q = c * c * l.q;
  }
  l.s = c * l.s;
  l.max = top;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const float d = x[i] - top;
    const float e = exp_device(d);
    l.s += e;
    if (sums) {
      l.a = multiply_add(e, d, l.a);
      l.q = multiply_add(e, e, l.q);
    }
  }
}

// All lanes' sums, the same for every lane.
template <bool second, bool sums>
__device__ OtherSums joined(LaneSums l) {
  const bool nothing = l.max <= kPad;
  OtherSums out = other_none();
  const float top = warp_max(l.max);
  if (second) {
    float first = l.max, next = l.second;
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const float other_first = __shfl_xor_sync(kAll, first, distance), other_next = __shfl_xor_sync(kAll, next, distance);
      next = higher_of(lower_of(first, other_first), higher_of(next, other_next));
      first = higher_of(first, other_first);
    }
    if (next > kPad) out.second = next;
  }
  const float shift = higher_of(l.max - top, kLeastExponent);
  const float c = nothing && l.s == l.s ? 0.0f : exp_device(shift);
  out.s = warp_sum(c * l.s);
  if (sums) {
    out.a = warp_sum(c * multiply_add(shift, l.s, l.a));
    out.q = warp_sum(c * c * l.q);
  }
  if (top > kPad) out.max = top;
  return out;
}

struct Found {
  OtherSums sums;  // over all classes but the label
  float finite;    // NaN where a logit is not finite
};

// The same for every lane. `a`, `q` and the second largest only where they are wanted.
template <class T, bool second, bool sums>
__device__ Found search_row(const T* row, int n, int label) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Layout<T> layout(row, n);
  LaneSums l = {kPad, kPad, 0.0f, 0.0f, 0.0f, 0.0f};
  const int end = layout.end_place(lane);
  if (end >= 0) {
    const float x = mended(to_math(row[end]), l);
    if (end != label && x > kPad) {
      l.max = x;
      l.s += 1.0f;
      l.q = 1.0f;
    }
  }
#pragma unroll 1
  for (int first = 0; first < layout.pieces; first += Layout<T>::kChunk) {
    float x[kHeld];
    layout.load(first, lane, x);
    float finite = 0.0f;
    const int hole = layout.slot_of(first, lane, label);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) finite = multiply_add(x[i], 0.0f, finite);
    if (finite != finite) {  // rare
#pragma unroll
      for (int i = 0; i < kHeld; ++i) x[i] = mended(x[i], l);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i == hole) x[i] = kPad;
    }
    push<second, sums>(l, x);
  }
  return {joined<second, sums>(l), warp_sum(l.finite)};
}

// The lowest class whose logit is `value`, the same for every lane: a second look at the row, which is in the cache.
template <class T>
__device__ int find_class(const T* row, int n, float value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Layout<T> layout(row, n);
  const int end = layout.end_place(lane);
  int lowest = end >= 0 && to_math(row[end]) == value ? end : kNowhere;
#pragma unroll 1
  for (int first = 0; first < layout.pieces; first += Layout<T>::kChunk) {
    float x[kHeld];
    layout.load(first, lane, x);
    int slot = kHeld;
#pragma unroll
    for (int i = kHeld; i-- > 0;) {
      if (x[i] == value) slot = i;
    }
    const int at = layout.place(first, lane, slot);
    if (slot < kHeld && at < lowest) lowest = at;
  }
  return warp_min(lowest);
}

template <class T>
__device__ const T* row_of(const Matrix& m, int64_t r) {
  return static_cast<const T*>(m.data) + r * m.stride;
}

// What a lane keeps of the row that it will write.
struct Kept {
  OtherSums sums;
  float own;
  int index;
  bool valid, infinite;
};

template <class T, bool second, bool sums>
__device__ Kept keep_row(const Matrix& logits, const int64_t* labels, int64_t r, bool index) {
  const T* row = row_of<T>(logits, r);
  const int n = static_cast<int>(logits.columns);
  const int64_t label = labels[r];
  const bool valid = label >= 0 && label < n;
  const float own = valid ? to_math(row[label]) : -INFINITY;
  const Found found = search_row<T, second, sums>(row, n, valid ? static_cast<int>(label) : -1);
  const bool infinite = !(found.finite == found.finite) || (valid && !(own - own == 0.0f));
  int at = kNowhere;
  if (index && found.sums.max > kNoLogit && !(own > found.sums.max)) at = find_class(row, n, found.sums.max);
  return {found.sums, own, at, valid, infinite};
}

__device__ void lower_to(int64_t* at, int64_t row) { atomicMin(reinterpret_cast<long long*>(at), static_cast<long long>(row)); }
__device__ void count(int64_t* at) { atomicAdd(reinterpret_cast<unsigned long long*>(at), 1ull); }

__device__ int64_t first_row_of_warp() { return (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * kRowsOfWarp; }

template <class T, bool second>
__global__ void __launch_bounds__(kThreads, 3) score_kernel(const ScoreArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = first_row_of_warp();
  const bool index = a.histogram != nullptr || a.correct != nullptr;
  Kept mine = {};
#pragma unroll 1
  for (int i = 0; i < kRowsOfWarp && first + i < a.logits.rows; ++i) {
    const Kept kept = keep_row<T, second, true>(a.logits, a.labels, first + i, index);
    if (lane == i) mine = kept;
  }
  const int64_t r = first + lane;
  if (lane >= kRowsOfWarp || r >= a.logits.rows) return;
  const RowScore s = score_of(mine.sums, mine.own);
  const int64_t label = a.labels[r];
  if (mine.infinite) lower_to(a.bad, r);
  if (!mine.valid) lower_to(a.bad + 1, r);
  int64_t choice = label;
  if (mine.index != kNowhere && !(mine.valid && mine.own > mine.sums.max)) {
    choice = mine.index;  // with a tie, the label's own class may be it
  }
  if (a.histogram != nullptr && !s.hopeless) count(a.histogram + choice);
  write_scores(a, r, s, mine.valid, choice == label);
}

template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const CrossEntropyArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = first_row_of_warp();
  Kept mine = {};
#pragma unroll 1
  for (int i = 0; i < kRowsOfWarp && first + i < a.logits.rows; ++i) {
    const Kept kept = keep_row<T, false, false>(a.logits, a.labels, first + i, false);
    if (lane == i) mine = kept;
  }
  const int64_t r = first + lane;
  if (lane >= kRowsOfWarp || r >= a.logits.rows) return;
  const RowScore s = score_of(mine.sums, mine.own);
  a.loss[r] = mine.valid && !s.hopeless ? s.loss : not_a_number();
  a.top[r] = s.top;
  a.log_total[r] = s.hopeless ? not_a_number() : s.log_total;
}

// d loss / d logit of one entry.
__device__ float slope(float x, float top, float log_total, float grad, bool at_label) {
  const float d = (x - top) - log_total;
  const float p = d < kLeastExponent ? 0.0f : exp_device(d);
  return grad == 0.0f ? 0.0f : grad * (at_label ? ::expm1f(d) : p);
}

__device__ Sixteen packed(const float* x, float) { return {{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])}}; }
template <class T>
__device__ Sixteen packed(const float* x, T) {
  Sixteen out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = Round<T>::nearest(x[2 * i]).bits, high = Round<T>::nearest(x[2 * i + 1]).bits;
    out.word[i] = low | high << 16;
  }
  return out;
}

// A block owns kThreads pieces of 16 bytes of a row; `wide` says that rows of both begin on such a piece.
template <class T, bool wide>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(const CrossEntropyArgs a) {
  constexpr int kEach = Layout<T>::kEach;
  const int64_t r = blockIdx.x;
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kEach, n = a.logits.columns;
  if (first >= n) return;
  const T* z = row_of<T>(a.logits, r);
  T* out = static_cast<T*>(a.out) + r * a.out_stride;
  const float grad = a.grad[r], top = a.top[r], log_total = a.log_total[r];
  const int64_t label = a.labels[r];
  if (wide && first + kEach <= n) {
    const Sixteen raw = *reinterpret_cast<const Sixteen*>(z + first);
    float y[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) y[i] = slope(logit_of(raw, i, T{}), top, log_total, grad, first + i == label);
    *reinterpret_cast<Sixteen*>(out + first) = packed(y, T{});
    return;
  }
  for (int64_t i = first; i < n && i < first + kEach; ++i) {
    out[i] = Round<T>::nearest(slope(to_math(z[i]), top, log_total, grad, i == label));
  }
}

__global__ void __launch_bounds__(kThreads) dynamics_kernel(const DynamicsArgs a) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r < a.rows) observe(a, r);
}

template <class T>
__global__ void __launch_bounds__(kThreads) vote_kernel(const VoteArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, n = static_cast<int>(a.logits.columns);
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (r >= a.logits.rows) return;
  const Layout<T> layout(row_of<T>(a.logits, r), n);
  const int end = layout.end_place(lane);
  const float ragged = end >= 0 ? to_math(layout.row[end]) : -INFINITY;
  float best = -INFINITY;
  int index = kNowhere, nan = ragged != ragged ? 1 : 0;
  if (lane < layout.head && ragged > best) {
    best = ragged;
    index = end;
  }
#pragma unroll 1
  for (int first = 0; first < layout.pieces; first += Layout<T>::kChunk) {
    float x[kHeld];
    layout.load(first, lane, x, -INFINITY);
    int slot = -1;
    float finite = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      finite = multiply_add(x[i], 0.0f, finite);
      if (x[i] > best) {
        best = x[i];
        slot = i;
      }
    }
    if (slot >= 0) index = layout.place(first, lane, slot);
    if (finite != finite) {  // NaN, or an infinity, which is allowed and is where there is no logit
#pragma unroll
      for (int i = 0; i < kHeld; ++i) nan |= x[i] != x[i] ? 1 : 0;
    }
  }
  if (lane >= layout.head && ragged > best) {
    best = ragged;
    index = end;
  }
  const float top = warp_max(best);
  index = warp_min(best == top ? index : kNowhere);
  nan = warp_sum(nan);
  if (lane != 0) return;
  if (nan != 0 || index == kNowhere) return lower_to(a.bad, r);
  count(a.histogram + index);
  if (a.matrix != nullptr) count(a.matrix + a.targets[r] * n + index);
}

// ---- factored gradients -----------------------------------------------------------------------------------------------------------------

// Inner product of two rows of floats, in double, by a warp.
__device__ double warp_dot(const float* x, const float* y, int64_t n, int lane) {
  double sum = 0.0;
  for (int64_t i = lane; i < n; i += kWarp) sum = ::fma(static_cast<double>(x[i]), static_cast<double>(y[i]), sum);
  return warp_sum(sum);
}

__global__ void __launch_bounds__(kThreads) column_kernel(const tf_cuda::ColumnArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, pick = *a.pick;
  if (r >= a.errors.rows) return;
  const double e = warp_dot(row_of<float>(a.errors, r), row_of<float>(a.errors, pick), a.errors.columns, lane);
  const double h = warp_dot(row_of<float>(a.hidden, r), row_of<float>(a.hidden, pick), a.hidden.columns, lane);
  if (lane == 0) a.out[r] = e * (h + a.bias);
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

dim3 grid_of(int64_t work, int64_t each) { return dim3(static_cast<unsigned>((work + each - 1) / each)); }

template <class T>
void launch_score(const ScoreArgs& a, cudaStream_t stream) {
  const dim3 grid = grid_of(a.logits.rows, kWarps * kRowsOfWarp);
  if (a.margin != nullptr) {
    score_kernel<T, true><<<grid, kThreads, 0, stream>>>(a);
  } else {
    score_kernel<T, false><<<grid, kThreads, 0, stream>>>(a);
  }
}

template <class T>
void launch_backward(const CrossEntropyArgs& a, cudaStream_t stream) {
  const int64_t each = int64_t{kThreads} * Layout<T>::kEach, size = sizeof(T);
  const dim3 grid(static_cast<unsigned>(a.logits.rows), static_cast<unsigned>((a.logits.columns + each - 1) / each));
  const auto whole = [&](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size % 16 == 0;
  };
  if (whole(a.logits.data, a.logits.stride) && whole(a.out, a.out_stride)) {
    cross_entropy_backward_kernel<T, true><<<grid, kThreads, 0, stream>>>(a);
  } else {
    cross_entropy_backward_kernel<T, false><<<grid, kThreads, 0, stream>>>(a);
  }
}

template <class Call>
const char* with_logits(int dtype, const Call& call) {
  switch (dtype) {
    case kBFloat16: call(bfloat16{}); break;
    case kFloat16: call(float16{}); break;
    default: call(float{}); break;
  }
  return launched();
}

const char* kTooWide = "fewer than 2^31 - 4096 classes were expected";
bool too_wide(const Matrix& m) { return m.columns >= int64_t{0x7FFFFFFF} - 4096; }

}  // namespace

const char* score_rows(const ScoreArgs& a, void* stream) {
  if (too_wide(a.logits)) return kTooWide;
  return with_logits(a.logits.dtype, [&](auto type) { launch_score<decltype(type)>(a, static_cast<cudaStream_t>(stream)); });
}

const char* cross_entropy_rows(const CrossEntropyArgs& a, void* stream) {
  if (too_wide(a.logits)) return kTooWide;
  const dim3 grid = grid_of(a.logits.rows, kWarps * kRowsOfWarp);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.logits.dtype) {
    case kBFloat16: cross_entropy_kernel<bfloat16><<<grid, kThreads, 0, on>>>(a); break;
    case kFloat16: cross_entropy_kernel<float16><<<grid, kThreads, 0, on>>>(a); break;
    default: cross_entropy_kernel<float><<<grid, kThreads, 0, on>>>(a); break;
  }
  return launched();
}

const char* cross_entropy_rows_backward(const CrossEntropyArgs& a, void* stream) {
  if (too_wide(a.logits)) return kTooWide;
  return with_logits(a.logits.dtype, [&](auto type) { launch_backward<decltype(type)>(a, static_cast<cudaStream_t>(stream)); });
}

const char* dynamics_scatter(const DynamicsArgs& a, void* stream) {
  const dim3 grid = grid_of(a.rows, kThreads);
  dynamics_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* class_vote(const VoteArgs& a, void* stream) {
  if (too_wide(a.logits)) return kTooWide;
  const dim3 grid = grid_of(a.logits.rows, kWarps);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a.logits.dtype) {
    case kBFloat16: vote_kernel<bfloat16><<<grid, kThreads, 0, on>>>(a); break;
    case kFloat16: vote_kernel<float16><<<grid, kThreads, 0, on>>>(a); break;
    default: vote_kernel<float><<<grid, kThreads, 0, on>>>(a); break;
  }
  return launched();
}

const char* fgrad_column(const tf_cuda::ColumnArgs& a, void* stream) {
  const dim3 grid = grid_of(a.errors.rows, kWarps);
  column_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

}  // namespace TF_NS
