// Projection on the simplex, Adam before it, and sampling on CUDA. A block has a row, which after the first pass comes from the caches
// (200 KB for a vocabulary of 49,408); the threshold is found by the steps of attack.hpp, each a pass over the row. Four numbers are added
// in their own type, those sums in double. Adam runs over all rows with the whole device, in a launch before.
#include "attack_block.hpp"
#include "attack_cuda.hpp"

namespace TF_NS {
namespace {

template <class T>
__global__ void __launch_bounds__(kRowThreads) project_kernel(SimplexProjectArgs a) {
  const int64_t n = a.columns;
  const T* const x = static_cast<const T*>(a.p) + blockIdx.x * n;
  T* const out = static_cast<T*>(a.out) + blockIdx.x * n;
  const T lowest = static_cast<T>(-INFINITY);
  T top = lowest, four = 0;
  double mass = 0.0;
  int bad = 0;
  each_of_row(
      x, n,
      [&](T v) {
        top = v > top ? v : top;
        bad |= v < -lowest ? 0 : 1;  // not a number, or infinite
        four += v > lowest ? v : T(0);
      },
      [&] {
        mass += static_cast<double>(four);
        four = 0;
      });
  top = block_most<kRowThreads>(top);
  mass = block_sum<kRowThreads>(mass);
  const bool good = block_sum<kRowThreads>(bad) == 0 && top > lowest;
  T level = 0;
  if (good) {  // the same in all threads
    level = simplex_threshold<T>((mass - a.radius) / static_cast<double>(n), static_cast<double>(top) - a.radius, a.radius, [&](T limit) {
      Above found = {0.0, 0.0};
      T sum = 0;
      int count = 0;
      each_of_row(
          x, n,
          [&](T v) {
            sum += v > limit ? v - limit : T(0);
            count += v > limit ? 1 : 0;
          },
          [&] {
            found.sum += static_cast<double>(sum);
            sum = 0;
          });
      found.sum = block_sum<kRowThreads>(found.sum);
      found.count = static_cast<double>(block_sum<kRowThreads>(count));
      return found;
    });
  }
  const int64_t fours = fits_four(x) && fits_four(out) ? n / kFour : 0;
  const auto moved = [&](T v) { return good ? (v > level ? v - level : T(0)) : static_cast<T>(NAN); };
  for (int64_t k = threadIdx.x; k < fours; k += kRowThreads) {
    Four<T> all = reinterpret_cast<const Four<T>*>(x)[k];
    for (int i = 0; i < kFour; ++i) all.v[i] = moved(all.v[i]);
    reinterpret_cast<Four<T>*>(out)[k] = all;
  }
  for (int64_t k = fours * kFour + threadIdx.x; k < n; k += kRowThreads) out[k] = moved(x[k]);
}

constexpr int kThreads = 256;

// A thread has four columns of one row.
__global__ void __launch_bounds__(kThreads) adam_kernel(SteAdamArgs a) {
  const AdamNumbers numbers = adam_numbers(a);
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kFour;
  if (first >= a.columns) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const int64_t at = row * a.columns + first;
    const bool four =
        first + kFour <= a.columns && fits_four(a.gradient + at) && fits_four(a.p + at) && fits_four(a.m + at) && fits_four(a.v + at);
    const int count = static_cast<int>(a.columns - first < kFour ? a.columns - first : kFour);
    Four<float> g, p, m, v;
    if (four) {
      g = *reinterpret_cast<const Four<float>*>(a.gradient + at);
      p = *reinterpret_cast<const Four<float>*>(a.p + at);
      m = *reinterpret_cast<const Four<float>*>(a.m + at);
      v = *reinterpret_cast<const Four<float>*>(a.v + at);
    } else {
      for (int i = 0; i < count; ++i) {
        g.v[i] = a.gradient[at + i];
        p.v[i] = a.p[at + i];
        m.v[i] = a.m[at + i];
        v.v[i] = a.v[at + i];
      }
    }
    for (int i = 0; i < kFour; ++i) {
      if (i >= count) break;
      p.v[i] = adam_step(numbers, g.v[i], p.v[i], m.v[i], v.v[i]);
      if (a.banned != nullptr && a.banned[first + i] != 0) p.v[i] = -INFINITY;
    }
    if (four) {
      *reinterpret_cast<Four<float>*>(a.p + at) = p;
      *reinterpret_cast<Four<float>*>(a.m + at) = m;
      *reinterpret_cast<Four<float>*>(a.v + at) = v;
    } else {
      for (int i = 0; i < count; ++i) {
        a.p[at + i] = p.v[i];
        a.m[at + i] = m.v[i];
        a.v[at + i] = v.v[i];
      }
    }
  }
}

// ---- sampling --------------------------------------------------------------------------------------------------------------------

// Inclusive sum over the lanes of a warp.
__device__ __forceinline__ double running_sum(double x, int lane) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const double before = __shfl_up_sync(kAll, x, distance);
    if (lane >= distance) x += before;
  }
  return x;
}

// The row in kWarp * kWarp runs; sums of runs, then the run in which the sum passes the point, then the number. The end is one warp's.
template <class T>
__global__ void __launch_bounds__(kRowThreads) sample_kernel(DrawArgs a) {
  __shared__ double sums[kWarp * kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t n = a.columns, run = (n + kWarp * kWarp * kWarp - 1) / (kWarp * kWarp * kWarp) * kWarp;
  const T* const x = static_cast<const T*>(a.p) + blockIdx.x * n;
  for (int r = warp; r < kWarp * kWarp; r += kRowThreads / kWarp) {
    double mine = 0.0;
    for (int64_t k = r * run + lane; k < (r + 1) * run && k < n; k += kWarp) mine += static_cast<double>(x[k]);
    mine = warp_sum(mine);
    if (lane == 0) sums[r] = mine;
  }
  __syncthreads();
  if (warp != 0) return;
  double group = 0.0;
  for (int r = 0; r < kWarp; ++r) group += sums[lane * kWarp + r];
  const double groups = running_sum(group, lane);
  const double all = __shfl_sync(kAll, groups, kWarp - 1);
  if (!(all > 0.0) || all == static_cast<double>(INFINITY)) {
    if (lane == 0) a.out[blockIdx.x] = -1;
    return;
  }
  const double point = a.u[blockIdx.x] * all;
  unsigned past = __ballot_sync(kAll, groups > point);
  const int in_group = past != 0u ? __ffs(static_cast<int>(past)) - 1 : kWarp - 1;
  double before = __shfl_sync(kAll, groups - group, in_group);
  const double own = sums[in_group * kWarp + lane];
  const double runs = before + running_sum(own, lane);
  past = __ballot_sync(kAll, runs > point);
  const int in_run = past != 0u ? __ffs(static_cast<int>(past)) - 1 : kWarp - 1;
  before = __shfl_sync(kAll, runs - own, in_run);
  // From there on: the first number above 0 with which the sum passes the point. Rounding may let it be reached, not passed: then the last.
  const int64_t start = (in_group * kWarp + in_run) * run;
  int64_t last = -1;
  for (int64_t k = start; k < n; k += kWarp) {
    const double value = k + lane < n ? static_cast<double>(x[k + lane]) : 0.0;
    const double passed = before + running_sum(value, lane);
    const unsigned hit = __ballot_sync(kAll, value > 0.0 && passed > point), positive = __ballot_sync(kAll, value > 0.0);
    if (hit != 0u) {
      if (lane == 0) a.out[blockIdx.x] = k + __ffs(static_cast<int>(hit)) - 1;
      return;
    }
    if (positive != 0u) last = k + kWarp - 1 - __clz(static_cast<int>(positive));
    before = __shfl_sync(kAll, passed, kWarp - 1);
  }
  for (int64_t k = (start + kWarp - 1) / kWarp * kWarp - kWarp; k >= 0 && last < 0; k -= kWarp) {
    const unsigned positive = __ballot_sync(kAll, k + lane < n && x[k + lane] > T(0));
    if (positive != 0u) last = k + kWarp - 1 - __clz(static_cast<int>(positive));
  }
  if (lane == 0) a.out[blockIdx.x] = last;
}

const char* project(const SimplexProjectArgs& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.rows));
  return with_real(a.dtype, [&](auto type) {
    const auto kernel = &project_kernel<decltype(type)>;
    kernel<<<grid, kRowThreads, 0, stream>>>(a);
    return launched();
  });
}

}  // namespace
}  // namespace TF_NS

namespace tf_cuda {

const char* simplex_project(const tenfold::SimplexProjectArgs& a, void* stream) { return project(a, static_cast<cudaStream_t>(stream)); }

const char* ste_adam_simplex(const tenfold::SteAdamArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int64_t tiles = (a.columns + kThreads * kFour - 1) / (kThreads * kFour);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(a.rows < 65535 ? a.rows : 65535));
  adam_kernel<<<grid, kThreads, 0, on>>>(a);
  const char* const error = launched();
  return error != nullptr ? error : project({a.p, a.p, a.rows, a.columns, kFloat32, 1.0, 0}, on);
}

const char* sample_rows(const tenfold::DrawArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const dim3 grid(static_cast<unsigned>(a.rows));
  return with_real(a.dtype, [&](auto type) {
    const auto kernel = &sample_kernel<decltype(type)>;
    kernel<<<grid, kRowThreads, 0, on>>>(a);
    return launched();
  });
}

}  // namespace tf_cuda
