// Scores, cross-entropies and votes of rows of logits on CUDA: a warp owns a row and holds 1024 of its logits in registers at a time, read
// 16 bytes per lane and load, 8 loads (4 for the half types) before the first is used. So the maximum and the sums about it take one read,
// and the logits of a label that was missed are searched where they are. Bound by memory: 50,000 rows of 1000 float32 logits are 200 MB.
//
// The exponential is the device's ex2.approx of x / ln 2, x >= -87: about 15 instructions per logit in all, half of what the arithmetic
// units do while the bytes arrive. What is done once per row (logarithms, square roots, stores) is done by one lane per row, for four rows
// together. A row is summed in one order whatever the grid; histograms are sums of integers.
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
constexpr int kHeld = 32;       // logits per lane and chunk, besides one of the ragged ends
constexpr int kRowsOfWarp = 4;  // rows a warp does one after the other
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
__device__ float warp_max(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(kAll, x, distance));
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
  const T* row;
  int size, head, pieces, tail;

  __device__ Layout(const T* at, int n) : row(at), size(n) {
    const int offset = static_cast<int>(reinterpret_cast<uintptr_t>(at) % 16) / static_cast<int>(sizeof(T));
    head = offset == 0 ? 0 : kEach - offset;
    if (head > n) head = n;
    pieces = (n - head) / kEach;
    tail = n - head - pieces * kEach;
  }
  // Place of slot `slot` of `lane` in the row; slot kHeld is the ragged ends', eight lanes for either.
  __device__ int place(int first, int lane, int slot) const {
    if (slot == kHeld) return lane < 8 ? lane : size - tail + lane - 8;
    return head + (first + lane + kWarp * (slot / kEach)) * kEach + slot % kEach;
  }
  // The slot of this lane that holds class `label`, or -1.
  __device__ int slot_of(int first, int lane, int label) const {
    if (label < 0) return -1;
    if (label < head) return first == 0 && lane == label ? kHeld : -1;
    if (label >= size - tail) return first == 0 && lane == 8 + label - (size - tail) ? kHeld : -1;
    const int piece = (label - head) / kEach - first;
    if (piece < 0 || piece >= kWarp * kLoads || piece % kWarp != lane) return -1;
    return piece / kWarp * kEach + (label - head) % kEach;
  }
  // Logits of pieces first .. first + 32 * kLoads - 1, kNoLogit where there are none. With the first pieces come the ragged ends.
  __device__ void load(int first, int lane, float x[kHeld + 1]) const {
    Sixteen raw[kLoads];
    const Sixteen* from = reinterpret_cast<const Sixteen*>(row + head);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int piece = first + lane + kWarp * u;
      if (piece < pieces) raw[u] = from[piece];
    }
    x[kHeld] = kNoLogit;
    if (first == 0 && (lane < head || (lane >= 8 && lane < 8 + tail))) x[kHeld] = to_math(row[place(0, lane, kHeld)]);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const bool there = first + lane + kWarp * u < pieces;
#pragma unroll
      for (int i = 0; i < kEach; ++i) x[u * kEach + i] = there ? logit_of(raw[u], i, T{}) : kNoLogit;
    }
  }
};

struct Found {
  OtherSums sums;  // over all classes but the label
  int index;       // the lowest class of sums.max, where that is not below the label's logit
  float finite;    // NaN where a logit is not finite
};

// The same for every lane. Index and second largest only where they are wanted.
template <class T, bool second, bool sums, bool index>
__device__ Found search_row(const T* row, int n, int label, float own) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Layout<T> layout(row, n);
  Found out = {other_none(), kNowhere, 0.0f};
  for (int first = 0; first == 0 || first < layout.pieces; first += kWarp * Layout<T>::kLoads) {
    float x[kHeld + 1];
    layout.load(first, lane, x);
    const int hole = layout.slot_of(first, lane, label);
    float top = kNoLogit, next = kNoLogit;
#pragma unroll
    for (int i = 0; i <= kHeld; ++i) {
      out.finite = multiply_add(x[i], 0.0f, out.finite);
      if (i == hole) x[i] = kNoLogit;
      if (second) next = larger(next, smaller(top, x[i]));
      top = larger(top, x[i]);
    }
    OtherSums here = other_none();
    here.max = warp_max(top);
    if (second) {
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const float other_top = __shfl_xor_sync(kAll, top, distance), other_next = __shfl_xor_sync(kAll, next, distance);
        next = larger(smaller(top, other_top), larger(next, other_next));
        top = larger(top, other_top);
      }
      here.second = next;
    }
    if (here.max != kNoLogit) {
      float s = 0.0f, a = 0.0f, q = 0.0f;
#pragma unroll
      for (int i = 0; i <= kHeld; ++i) {
        const float d = larger(x[i] - here.max, kLeastExponent);
        const float e = exp_device(d);
        s += e;
        if (sums) {
          a = multiply_add(e, d, a);
          q = multiply_add(e, e, q);
        }
      }
      here.s = warp_sum(s);
      if (sums) {
        here.a = warp_sum(a);
        here.q = warp_sum(q);
      }
    }
    if (index && here.max > out.sums.max && !(own > here.max)) {
      int lowest = kNowhere;
#pragma unroll
      for (int i = 0; i <= kHeld; ++i) {
        const int at = layout.place(first, lane, i);
        if (x[i] == here.max && at < lowest) lowest = at;
      }
      out.index = warp_min(lowest);
    }
    out.sums = first == 0 ? here : other_join(out.sums, here);
  }
  out.finite = warp_sum(out.finite);
  return out;
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

template <class T, bool second, bool sums, bool index>
__device__ Kept keep_row(const Matrix& logits, const int64_t* labels, int64_t r) {
  const T* row = row_of<T>(logits, r);
  const int n = static_cast<int>(logits.columns);
  const int64_t label = labels[r];
  const bool valid = label >= 0 && label < n;
  const float own = valid ? to_math(row[label]) : kNoLogit;
  const Found found = search_row<T, second, sums, index>(row, n, valid ? static_cast<int>(label) : -1, own);
  const bool infinite = !(found.finite == found.finite) || (valid && !(own - own == 0.0f));
  return {found.sums, own, found.index, valid, infinite};
}

__device__ void lower_to(int64_t* at, int64_t row) { atomicMin(reinterpret_cast<long long*>(at), static_cast<long long>(row)); }
__device__ void count(int64_t* at) { atomicAdd(reinterpret_cast<unsigned long long*>(at), 1ull); }

__device__ int64_t first_row_of_warp() { return (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * kRowsOfWarp; }

template <class T, bool second, bool index>
__global__ void __launch_bounds__(kThreads) score_kernel(const ScoreArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = first_row_of_warp();
  Kept mine = {};
  for (int i = 0; i < kRowsOfWarp && first + i < a.logits.rows; ++i) {
    const Kept kept = keep_row<T, second, true, index>(a.logits, a.labels, first + i);
    if (lane == i) mine = kept;
  }
  const int64_t r = first + lane;
  if (lane >= kRowsOfWarp || r >= a.logits.rows) return;
  const RowScore s = score_of(mine.sums, mine.own);
  const int64_t label = a.labels[r];
  if (mine.infinite) lower_to(a.bad, r);
  if (!mine.valid) lower_to(a.bad + 1, r);
  int64_t choice = label;
  if (!(mine.valid && mine.own > mine.sums.max)) {
    choice = mine.index;
    if (mine.valid && mine.own == mine.sums.max && label < choice) choice = label;
  }
  if (a.histogram != nullptr && !s.hopeless) count(a.histogram + choice);
  write_scores(a, r, s, mine.valid, choice == label);
}

template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const CrossEntropyArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = first_row_of_warp();
  Kept mine = {};
  for (int i = 0; i < kRowsOfWarp && first + i < a.logits.rows; ++i) {
    const Kept kept = keep_row<T, false, false, false>(a.logits, a.labels, first + i);
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
  float best = kNoLogit;
  int index = kNowhere, nan = 0;
  for (int first = 0; first == 0 || first < layout.pieces; first += kWarp * Layout<T>::kLoads) {
    float x[kHeld + 1];
    layout.load(first, lane, x);
#pragma unroll
    for (int i = 0; i <= kHeld; ++i) {  // places rise with i, but for the ragged ends
      nan |= x[i] != x[i] ? 1 : 0;
      const int at = layout.place(first, lane, i);
      if (x[i] > best || (x[i] == best && x[i] > kNoLogit && at < index)) {
        best = x[i];
        index = at;
      }
    }
  }
  const float top = warp_max(best);
  index = warp_min(best == top ? index : kNowhere);
  nan = warp_sum(nan);
  if (lane != 0) return;
  if (nan != 0 || top == kNoLogit) return lower_to(a.bad, r);
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
  const bool index = a.histogram != nullptr || a.correct != nullptr;
  if (a.margin != nullptr) {
    if (index) {
      score_kernel<T, true, true><<<grid, kThreads, 0, stream>>>(a);
    } else {
      score_kernel<T, true, false><<<grid, kThreads, 0, stream>>>(a);
    }
  } else if (index) {
    score_kernel<T, false, true><<<grid, kThreads, 0, stream>>>(a);
  } else {
    score_kernel<T, false, false><<<grid, kThreads, 0, stream>>>(a);
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
