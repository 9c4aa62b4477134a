// What follows the matrix products on CUDA: a warp looks at one row's products, measures what they leave open in float64, and decides.
//
// The products are PyTorch's (distance_device.py), which reach the device's rate of multiplications. A row's products are read from the
// second-level cache twice, few pairs are measured again, so these kernels take a small part of the products' time.
#include "distance_cuda.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

namespace TF_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr float kInfinity = __builtin_inff();
constexpr float kTaken = -1.0f;
constexpr int kMostPool = 1024;

// The squared distance as distance_reference.py defines it; every lane gets it.
template <class T>
__device__ float exact_distance(const T* a, const float* b, int64_t d, bool scaled, double a_scale, double b_scale) {
  double sum = 0.0;
  for (int64_t k = static_cast<int64_t>(threadIdx.x) % 32; k < d; k += 32) {
    double x = static_cast<double>(to_math(a[k])), y = static_cast<double>(b[k]);
    if (scaled) {
      x *= a_scale;
      y *= b_scale;
    }
    const double difference = x - y;
    sum += difference * difference;
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAll, sum, distance);
  return static_cast<float>(sum);
}

template <class T>
__device__ float exact_of(const MeetRows& a, int64_t r, int64_t c) {
  const bool scaled = a.row_scale != nullptr;
  return exact_distance(static_cast<const T*>(a.x) + r * a.d, a.others + c * a.d, a.d, scaled, scaled ? a.row_scale[r] : 1.0,
                        scaled ? a.other_scale[c] : 1.0);
}

// ---- the k nearest --------------------------------------------------------------------------------------------------------------

// The k-th smallest upper bound, in the measure (1 + E) |b|^2 - 2 ab.
__device__ float kth_bound(const MeetRows& a, const float* products, float share, int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float reached = -kInfinity;
  int64_t at = -1;
  for (int t = 0; t < k; ++t) {
    float best = kInfinity;
    int64_t where = a.m;
    for (int64_t c = lane; c < a.m; c += 32) {
      const float upper = fma(products[c], -2.0f, a.norms[c] * (1.0f + share));
      const bool later = upper > reached || (upper == reached && c > at);
      if (later && upper < best) {
        best = upper;
        where = c;
      }
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kAll, best, distance);
      const int64_t other_at = __shfl_xor_sync(kAll, where, distance);
      if (other < best || (other == best && other_at < where)) {
        best = other;
        where = other_at;
      }
    }
    reached = best;
    at = where;
  }
  return reached;
}

template <class T>
__global__ void __launch_bounds__(kThreads) look_kernel(LookLaunch a) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (r >= a.rows.n) return;
  const float* products = a.rows.products + r * a.rows.m;
  const float share = a.rows.errors[r];
  float limit = kInfinity;
  if (a.k <= a.rows.m) limit = kth_bound(a.rows, products, share, a.k) + 2.0f * share * a.rows.row_norms[r];
  float value = kInfinity;  // lane j holds the j-th nearest
  int32_t index = -1;
  for (int64_t base = 0; base < a.rows.m; base += 32) {
    const int64_t c = base + lane;
    const bool open = c < a.rows.m && fma(products[c], -2.0f, a.rows.norms[c] * (1.0f - share)) <= limit;
    for (unsigned set = __ballot_sync(kAll, open); set != 0; set &= set - 1) {
      const int64_t candidate = base + __ffs(static_cast<int>(set)) - 1;
      const float found = exact_of<T>(a.rows, r, candidate);
      const int place = __popc(__ballot_sync(kAll, value <= found));
      const float value_before = __shfl_up_sync(kAll, value, 1);
      const int32_t index_before = __shfl_up_sync(kAll, index, 1);
      if (lane == place) {
        value = found;
        index = static_cast<int32_t>(candidate);
      } else if (lane > place) {
        value = value_before;
        index = index_before;
      }
    }
  }
  if (lane < a.k) {
    a.index[r * a.k + lane] = index;
    a.nearest[r * a.k + lane] = value;
  }
}

// ---- distances to what was picked -----------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) cover_kernel(CoverLaunch a) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (r >= a.rows.n) return;
  const float* products = a.rows.products + r * a.rows.m;
  const float below = 1.0f - a.rows.errors[r], own = a.rows.row_norms[r];
  float reach = a.distance[r];
  if (reach == kTaken) return;
  int64_t nearest = -1;
  for (int64_t base = 0; base < a.rows.m; base += 32) {
    const int64_t t = base + lane;
    const float low = t < a.rows.m ? fma(products[t], -2.0f, (a.rows.norms[t] + own) * below) : kInfinity;
    float mine = reach;
    for (unsigned set = __ballot_sync(kAll, low < reach); set != 0; set &= set - 1) {
      const int bit = __ffs(static_cast<int>(set)) - 1;
      if (!(__shfl_sync(kAll, low, bit) < reach)) continue;
      const float found = exact_of<T>(a.rows, r, base + bit);
      if (!(found < reach)) continue;
      if (a.out != nullptr) {
        mine = lane == bit ? found : mine;
      } else {
        reach = found;
        nearest = base + bit;
      }
    }
    if (a.out != nullptr && t < a.rows.m) a.out[t * a.out_pitch + r] = mine;
  }
  if (lane == 0 && nearest >= 0) {
    a.distance[r] = reach;
    a.owner[r] = static_cast<int32_t>(a.numbers[nearest]);
  }
}

// ---- the pool of k-center ---------------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) pool_kernel(PoolLaunch a) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t i = pair / a.size, j = pair % a.size;
  if (i >= a.size || j < i) return;
  const T* rows = static_cast<const T*>(a.x);
  double sum = 0.0;
  for (int64_t k = lane; k < a.d; k += 32) {
    double x = static_cast<double>(to_math(rows[i * a.d + k])), y = static_cast<double>(to_math(rows[j * a.d + k]));
    if (a.scale != nullptr) {
      x *= a.scale[i];
      y *= a.scale[j];
    }
    const double difference = x - y;
    sum += difference * difference;
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAll, sum, distance);
  if (lane == 0) a.out[i * a.size + j] = a.out[j * a.size + i] = static_cast<float>(sum);
}

// What is chosen first has the largest key: the larger distance, of equals the smaller row. Distances are not negative.
__device__ unsigned long long key_of(float value, int64_t row) {
  return value < 0.0f ? 0ull : static_cast<unsigned long long>(bits_of(value)) << 32 | (0xFFFFFFFFull - static_cast<unsigned long long>(row));
}

// One block plays the greedy choice through within the pool, for as long as no row outside of it could be farther (kcenter_cpu.cpp).
__global__ void __launch_bounds__(kThreads) choose_kernel(ChooseLaunch a) {
  __shared__ float value[kMostPool];
  __shared__ unsigned long long best[2];
  __shared__ int winner;
  const int thread = static_cast<int>(threadIdx.x);
  for (int p = thread; p < a.size; p += kThreads) value[p] = a.distance[p];
  if (thread == 0) best[0] = best[1] = 0;
  __syncthreads();
  const unsigned long long last = a.complete ? 0ull : key_of(a.distance[a.size - 1], a.rows[a.size - 1]);
  int count = 0;
  for (; count < a.most; ++count) {
    unsigned long long mine = 0;
    int at = -1;
    for (int p = thread; p < a.size; p += kThreads) {
      const unsigned long long key = key_of(value[p], a.rows[p]);
      if (key > mine) {
        mine = key;
        at = p;
      }
    }
    if (mine != 0) atomicMax(&best[count % 2], mine);
    __syncthreads();
    const unsigned long long top = best[count % 2];
    if (top == 0 || top < last) break;
    if (mine == top) winner = at;
    if (thread == 0) best[(count + 1) % 2] = 0;
    __syncthreads();
    const int chosen = winner;
    if (thread == 0) {
      a.chosen[count] = a.rows[chosen];
      a.value[count] = value[chosen];
    }
    __syncthreads();
    for (int p = thread; p < a.size; p += kThreads) {
      const float now = a.between[static_cast<int64_t>(chosen) * a.size + p];
      if (p == chosen) {
        value[p] = kTaken;
      } else if (now < value[p]) {
        value[p] = now;
      }
    }
    __syncthreads();
  }
  if (thread == 0) *a.count = count;
}

// ---- sums of clusters -------------------------------------------------------------------------------------------------------------------

// A block owns one cluster and a stretch of columns; a thread adds its column in the order of rows.
template <class T>
__global__ void __launch_bounds__(kThreads) sums_kernel(SumLaunch a) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t cluster = blockIdx.y;
  if (column >= a.d) return;
  const T* x = static_cast<const T*>(a.x);
  double total = a.sums[cluster * a.d + column];
  for (int64_t i = a.starts[cluster]; i < a.starts[cluster + 1]; ++i) total += static_cast<double>(to_math(x[a.order[i] * a.d + column]));
  a.sums[cluster * a.d + column] = total;
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

dim3 warps_for(int64_t count) { return dim3(static_cast<unsigned>((count + kWarps - 1) / kWarps)); }

}  // namespace

const char* distance_look(const LookLaunch& a, void* stream) {
  const dim3 grid = warps_for(a.rows.n);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (a.rows.dtype == kBFloat16) {
    look_kernel<bfloat16><<<grid, kThreads, 0, queue>>>(a);
  } else if (a.rows.dtype == kFloat16) {
    look_kernel<float16><<<grid, kThreads, 0, queue>>>(a);
  } else {
    look_kernel<float><<<grid, kThreads, 0, queue>>>(a);
  }
  return launched();
}

const char* distance_cover(const CoverLaunch& a, void* stream) {
  const dim3 grid = warps_for(a.rows.n);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (a.rows.dtype == kBFloat16) {
    cover_kernel<bfloat16><<<grid, kThreads, 0, queue>>>(a);
  } else if (a.rows.dtype == kFloat16) {
    cover_kernel<float16><<<grid, kThreads, 0, queue>>>(a);
  } else {
    cover_kernel<float><<<grid, kThreads, 0, queue>>>(a);
  }
  return launched();
}

const char* distance_pool(const PoolLaunch& a, void* stream) {
  const dim3 grid = warps_for(a.size * a.size);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (a.dtype == kBFloat16) {
    pool_kernel<bfloat16><<<grid, kThreads, 0, queue>>>(a);
  } else if (a.dtype == kFloat16) {
    pool_kernel<float16><<<grid, kThreads, 0, queue>>>(a);
  } else {
    pool_kernel<float><<<grid, kThreads, 0, queue>>>(a);
  }
  return launched();
}

const char* distance_choose(const ChooseLaunch& a, void* stream) {
  if (a.size < 1 || a.size > kMostPool) return "the pool holds 1 to 1024 rows";
  const dim3 grid(1);
  choose_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launched();
}

const char* distance_sums(const SumLaunch& a, void* stream) {
  if (a.clusters > 65535) return "at most 65535 clusters at a time";
  const dim3 grid(static_cast<unsigned>((a.d + kThreads - 1) / kThreads), static_cast<unsigned>(a.clusters));
  const auto queue = static_cast<cudaStream_t>(stream);
  if (a.dtype == kBFloat16) {
    sums_kernel<bfloat16><<<grid, kThreads, 0, queue>>>(a);
  } else if (a.dtype == kFloat16) {
    sums_kernel<float16><<<grid, kThreads, 0, queue>>>(a);
  } else {
    sums_kernel<float><<<grid, kThreads, 0, queue>>>(a);
  }
  return launched();
}

}  // namespace TF_NS
