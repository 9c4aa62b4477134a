// Water-filling, its mean-squared-error form, and normalisation on CUDA. Threads that share a row hold it in registers, so that it comes
// from memory once and the rounds of the active set (Michelot 1986) take sums across lanes only: memory is the bound up to 64 carriers,
// where 8 lanes share a row. Rows that no block's registers hold are read again in each round.
#include "power_cuda.hpp"
#include "power_group.hpp"

namespace TF_NS {
namespace {

template <class Args>
struct WaterLaunch {
  Args a;
  bool wide;
};

// ---- water-filling ----------------------------------------------------------------------------------------------------------------

// Costs y: -x, or 1 / g where g > 0 takes part; NaN stays.
template <class T>
__device__ T cost_of(T x, bool inverse) {
  if (!inverse) return -x;
  return x > 0 ? T(1) / x : (x == x ? static_cast<T>(kInfinity) : x);  // NOLINT(misc-redundant-expression): not a number
}

// The level above the costs y (less the least of them): sum (level - y)_+ = mass. each(f) gives this lane's costs.
template <class G, class T, class Each>
__device__ T level_of(T mass, int64_t carriers, const Each& each) {
  T level = mass, count = static_cast<T>(carriers + 1);
  for (bool left = true;;) {  // a row that has settled finds the same sums again
    T sum = 0, inside = 0;
    each([&](T y) {
      sum += y <= level ? y : T(0);
      inside += y <= level ? T(1) : T(0);
    });
    sum = G::total(sum);
    inside = G::total(inside);
    if (left) {
      left = inside < count;
      if (left) {
        count = inside;
        level = (mass + sum) / count;
      }
    }
    if (!G::any(left)) return level;
  }
}

// What has no level: then `known` is false, and every power is `power`.
template <class T>
struct WaterRow {
  T low, level, power, theta;
  bool known;
};

template <class G, class T, class Each>
__device__ WaterRow<T> water_row(T mass, int64_t carriers, const Each& each) {
  const T inf = static_cast<T>(kInfinity), nan = static_cast<T>(__builtin_nan(""));
  T least = inf, poison = 0;
  each([&](T y) {
    least = y < least ? y : least;
    poison += y == y ? T(0) : y;  // NOLINT(misc-redundant-expression): not a number
  });
  WaterRow<T> row;
  row.low = -G::largest(-least);
  const T bad = G::total(poison);
  const bool unknown = !(mass >= 0) || bad != bad || row.low == -inf;  // NOLINT(misc-redundant-expression)
  row.known = !unknown && row.low < inf;
  const T shift = row.known ? row.low : T(0);
  row.level = level_of<G>(row.known ? mass : T(0), carriers, [&](const auto& f) { each([&](T y) { f(row.known ? y - shift : T(0)); }); });
  row.power = unknown ? nan : T(0);
  row.theta = row.known ? -(row.level + row.low) : unknown ? nan : -inf;
  return row;
}

template <class T>
__device__ T power_at(const WaterRow<T>& row, T y) {
  const T above = y - row.low;
  return row.known ? (above < row.level ? row.level - above : T(0)) : row.power;
}

template <class T, class G>
__global__ void __launch_bounds__(G::kThreads) water_kernel(WaterLaunch<WaterArgs> p) {
  constexpr int held = 8;
  const WaterArgs& a = p.a;
  const int64_t carriers = a.shape.carriers;
  bool real;
  const int64_t row = row_of<G>(a.shape.rows, real);
  T y[held];
  const T nothing = a.inverse ? T(0) : -static_cast<T>(kInfinity);
  load_real<G>(real_at<T>(a.x, row, 0), a.x.carrier, carriers, p.wide, nothing, y);
#pragma unroll
  for (int j = 0; j < held; ++j) y[j] = cost_of(y[j], a.inverse);
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int j = 0; j < held; ++j) f(y[j]);
  };
  const WaterRow<T> found = water_row<G>(value_at<T>(a.mass, row, 0), carriers, each);
  if (!real) return;
#pragma unroll
  for (int j = 0; j < held; ++j) y[j] = power_at(found, y[j]);
  store_real<G>(static_cast<T*>(a.power) + row * carriers, carriers, p.wide, y);
  if (G::lane() == 0) static_cast<T*>(a.theta)[row] = found.theta;
}

template <class T>
__global__ void __launch_bounds__(kWholeThreads, 1) long_water_kernel(WaterLaunch<WaterArgs> p) {
  const WaterArgs& a = p.a;
  const int64_t carriers = a.shape.carriers, row = blockIdx.x;
  const T* const x = real_at<T>(a.x, row, 0);
  const auto each = [&](const auto& f) {
    for (int64_t k = Whole::lane(); k < carriers; k += Whole::kLanes) f(cost_of(x[k * a.x.carrier], a.inverse));
  };
  const WaterRow<T> found = water_row<Whole>(value_at<T>(a.mass, row, 0), carriers, each);
  T* const to = static_cast<T*>(a.power) + row * carriers;
  for (int64_t k = Whole::lane(); k < carriers; k += Whole::kLanes) to[k] = power_at(found, cost_of(x[k * a.x.carrier], a.inverse));
  if (Whole::lane() == 0) static_cast<T*>(a.theta)[row] = found.theta;
}

// ---- mean-squared-error water-filling, in double precision ------------------------------------------------------------------------

// Carriers with S a >= weakest get (sqrt(S a) - sqrt(weakest) + rise) / (level a). What is not a number, or beyond them, makes `poison`
// NaN, which is 0 otherwise.
struct MseFill {
  double level, weakest, rise, poison;
  // How far the root of S a is ahead of the weakest one's.
  __device__ double ahead(double product, double root) const { return (product - weakest) / (root + sqrt(weakest)); }
};

// sqrt(S a) / c over the carriers that get power: the two searches of power_reference.py. The set is known by its weakest member, and each
// round leaves fewer, so that they end whatever rounding does. each(f) gives this lane's (S a, its root, a).
template <class G, class Each>
__device__ MseFill mse_level(double power, int64_t carriers, const Each& each) {
  const double clearly = 1.0 - static_cast<double>(carriers + 8) * 0x1p-52;
  MseFill found = {kInfinity, kInfinity, 0.0, 0.0};
  each([&](double product, double, double gain) {
    found.weakest = product > 0.0 && product < found.weakest ? product : found.weakest;
    found.poison += product * 0.0 + inverse_of(gain) * 0.0;
  });
  found.poison = G::total(found.poison);
  if (!(power >= 0.0 && power < kInfinity)) found.poison = __builtin_nan("");
  found.weakest = -G::largest(-found.weakest);
  bool left = found.weakest < kInfinity;
  for (bool closely = false; G::any(left);) {
    double above = 0.0, below = 0.0, ahead = 0.0;
    each([&](double product, double root, double gain) {
      if (!(left && product >= found.weakest)) return;
      const double inverse = inverse_of(gain);
      above += root * inverse;
      below += inverse;
      if (closely) ahead += found.ahead(product, root) * inverse;
    });
    above = G::total(above);
    below = power + G::total(below);
    ahead = G::total(ahead);
    const double rise = (sqrt(found.weakest) * power - ahead) / below;
    if (left) found.level = above / below;
    if (left && closely) found.rise = rise;
    const double limit = clearly * (closely ? -rise : found.level);
    double next = kInfinity;
    each([&](double product, double root, double) {
      const bool stays = left && product >= found.weakest && (closely ? found.ahead(product, root) : root) > limit;
      next = stays && product < next ? product : next;
    });
    next = -G::largest(-next);
    const bool fewer = left && next > found.weakest && next < kInfinity && (!closely || rise < 0.0);
    if (fewer) found.weakest = next;
    left = left && fewer;
    // Rows side by side change to the second search together.
    if (!closely && !G::any(left)) {
      closely = true;
      left = found.weakest < kInfinity;
    }
  }
  return found;
}

__device__ double mse_power_at(double product, double root, double gain, const MseFill& found) {
  const double p = (found.ahead(product, root) + found.rise) / found.level * inverse_of(gain);
  return (product >= found.weakest && p > 0.0 ? p : 0.0) + found.poison;
}

template <class T, class G>
__global__ void __launch_bounds__(G::kThreads) mse_water_kernel(WaterLaunch<MseWaterArgs> p) {
  constexpr int held = 4;
  const MseWaterArgs& a = p.a;
  const int64_t carriers = a.shape.carriers;
  bool real;
  const int64_t row = row_of<G>(a.shape.rows, real);
  T gain[held], weight[held];
  load_real<G>(real_at<T>(a.gains, row, 0), a.gains.carrier, carriers, p.wide, T(0), gain);
  load_real<G>(real_at<T>(a.weights, row, 0), a.weights.carrier, carriers, p.wide, T(0), weight);
  double product[held], root[held];
#pragma unroll
  for (int j = 0; j < held; ++j) {
    product[j] = static_cast<double>(weight[j]) * static_cast<double>(gain[j]);
    root[j] = sqrt(product[j]);
  }
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int j = 0; j < held; ++j) f(product[j], root[j], static_cast<double>(gain[j]));
  };
  const MseFill found = mse_level<G>(value_at<T>(a.power, row, 0), carriers, each);
  if (!real) return;
#pragma unroll
  for (int j = 0; j < held; ++j) weight[j] = static_cast<T>(mse_power_at(product[j], root[j], gain[j], found));
  store_real<G>(static_cast<T*>(a.out) + row * carriers, carriers, p.wide, weight);
  if (G::lane() == 0) static_cast<T*>(a.level)[row] = static_cast<T>(found.level + found.poison);
}

template <class T>
__global__ void __launch_bounds__(kWholeThreads, 1) long_mse_water_kernel(WaterLaunch<MseWaterArgs> p) {
  const MseWaterArgs& a = p.a;
  const int64_t carriers = a.shape.carriers, row = blockIdx.x;
  const T* const gains = real_at<T>(a.gains, row, 0);
  const T* const weights = real_at<T>(a.weights, row, 0);
  const auto gain = [&](int64_t k) { return static_cast<double>(gains[k * a.gains.carrier]); };
  const auto product = [&](int64_t k) { return static_cast<double>(weights[k * a.weights.carrier]) * gain(k); };
  const auto each = [&](const auto& f) {
    for (int64_t k = Whole::lane(); k < carriers; k += Whole::kLanes) f(product(k), sqrt(product(k)), gain(k));
  };
  const MseFill found = mse_level<Whole>(value_at<T>(a.power, row, 0), carriers, each);
  T* const to = static_cast<T*>(a.out) + row * carriers;
  for (int64_t k = Whole::lane(); k < carriers; k += Whole::kLanes) {
    to[k] = static_cast<T>(mse_power_at(product(k), sqrt(product(k)), gain(k), found));
  }
  if (Whole::lane() == 0) static_cast<T*>(a.level)[row] = static_cast<T>(found.level + found.poison);
}

// ---- normalisation, in double precision --------------------------------------------------------------------------------------------

struct Scaled {
  double scale, by;
};

// each(f) gives this lane's parts, of `carriers` numbers in all; a part v becomes (v scale) by.
template <class G, class Each>
__device__ Scaled normalizer(double power, double carriers, const Each& each) {
  double top = 0.0, poison = 0.0, square = 0.0;
  each([&](double v) {
    top = size_of(v) > top ? size_of(v) : top;
    poison += v * 0.0;
  });
  const double most = G::largest(top) + G::total(poison), scale = most > 0.0 ? 1.0 / most : (most == 0.0 ? 0.0 : most);
  each([&](double v) { square += (v * scale) * (v * scale); });
  const double length = sqrt(G::total(square));
  return {scale, length == 0.0 ? 0.0 : sqrt(power * carriers) / length};
}

template <class T, class G>
__global__ void __launch_bounds__(G::kThreads) normalize_kernel(WaterLaunch<NormalizeArgs> p) {
  constexpr int held = 4;
  const NormalizeArgs& a = p.a;
  const int64_t carriers = a.shape.carriers;
  bool real;
  const int64_t row = row_of<G>(a.shape.rows, real);
  const double power = value_at<T>(a.power, row, 0), count = a.mean ? static_cast<double>(carriers) : 1.0;
  T re[held], im[held] = {};
  if (a.is_complex) {
    load_complex<G>(complex_at<T>(a.x, row, 0), a.x.carrier, carriers, p.wide, re, im);
  } else {
    load_real<G>(real_at<T>(a.x, row, 0), a.x.carrier, carriers, p.wide, T(0), re);
  }
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int j = 0; j < held; ++j) {
      f(static_cast<double>(re[j]));
      f(static_cast<double>(im[j]));
    }
  };
  const Scaled found = normalizer<G>(power, count, each);
  if (!real) return;
#pragma unroll
  for (int j = 0; j < held; ++j) {
    re[j] = static_cast<T>(re[j] * found.scale * found.by);
    im[j] = static_cast<T>(im[j] * found.scale * found.by);
  }
  if (a.is_complex) {
    store_complex<G>(static_cast<Pair<T>*>(a.out) + row * carriers, carriers, p.wide, re, im);
  } else {
    store_real<G>(static_cast<T*>(a.out) + row * carriers, carriers, p.wide, re);
  }
}

template <class T>
__global__ void __launch_bounds__(kWholeThreads, 1) long_normalize_kernel(WaterLaunch<NormalizeArgs> p) {
  const NormalizeArgs& a = p.a;
  const int64_t parts = a.is_complex ? 2 : 1, row = blockIdx.x, carriers = a.shape.carriers;
  const T* const from = static_cast<const T*>(a.x.data) + parts * row * a.x.row;
  const double power = value_at<T>(a.power, row, 0), count = a.mean ? static_cast<double>(carriers) : 1.0;
  const auto value = [&](int64_t i) { return static_cast<double>(from[i / parts * parts * a.x.carrier + i % parts]); };
  const auto each = [&](const auto& f) {
    for (int64_t i = Whole::lane(); i < parts * carriers; i += Whole::kLanes) f(value(i));
  };
  const Scaled found = normalizer<Whole>(power, count, each);
  T* const to = static_cast<T*>(a.out) + row * parts * carriers;
  for (int64_t i = Whole::lane(); i < parts * carriers; i += Whole::kLanes) to[i] = static_cast<T>(value(i) * found.scale * found.by);
}

// ---- launches -----------------------------------------------------------------------------------------------------------------------

template <class T, class G>
const char* in_registers(const WaterLaunch<WaterArgs>& p, const dim3& grid, cudaStream_t queue) {
  constexpr int kThreads = G::kThreads;
  water_kernel<T, G><<<grid, kThreads, 0, queue>>>(p);
  return launched();
}
template <class T, class G>
const char* in_registers(const WaterLaunch<MseWaterArgs>& p, const dim3& grid, cudaStream_t queue) {
  constexpr int kThreads = G::kThreads;
  mse_water_kernel<T, G><<<grid, kThreads, 0, queue>>>(p);
  return launched();
}
template <class T, class G>
const char* in_registers(const WaterLaunch<NormalizeArgs>& p, const dim3& grid, cudaStream_t queue) {
  constexpr int kThreads = G::kThreads;
  normalize_kernel<T, G><<<grid, kThreads, 0, queue>>>(p);
  return launched();
}

template <class T>
const char* from_memory(const WaterLaunch<WaterArgs>& p, const dim3& grid, cudaStream_t queue) {
  long_water_kernel<T><<<grid, kWholeThreads, 0, queue>>>(p);
  return launched();
}
template <class T>
const char* from_memory(const WaterLaunch<MseWaterArgs>& p, const dim3& grid, cudaStream_t queue) {
  long_mse_water_kernel<T><<<grid, kWholeThreads, 0, queue>>>(p);
  return launched();
}
template <class T>
const char* from_memory(const WaterLaunch<NormalizeArgs>& p, const dim3& grid, cudaStream_t queue) {
  long_normalize_kernel<T><<<grid, kWholeThreads, 0, queue>>>(p);
  return launched();
}

template <class T, class Args>
const char* launch(const Args& a, bool wide, int64_t held, void* stream) {
  const WaterLaunch<Args> p = {a, wide};
  const auto queue = static_cast<cudaStream_t>(stream);
  dim3 grid;
  if (a.shape.carriers > held * kWholeThreads) {
    return grid_for<Whole>(a.shape.rows, grid) ? from_memory<T>(p, grid, queue) : kTooMany;
  }
  return with_lanes((a.shape.carriers + held - 1) / held, [&](auto group) {
    using G = decltype(group);
    return grid_for<G>(a.shape.rows, grid) ? in_registers<T, G>(p, grid, queue) : kTooMany;
  });
}

template <class Args>
const char* launch(const Args& a, bool wide, int64_t held, void* stream) {
  return a.shape.dtype == kFloat64 ? launch<double>(a, wide, held, stream) : launch<float>(a, wide, held, stream);
}

}  // namespace

const char* power_water(const WaterArgs& a, void* stream) { return launch(a, is_wide(a.x, a.shape.carriers, 4), 8, stream); }

const char* power_mse_water(const MseWaterArgs& a, void* stream) {
  const int64_t carriers = a.shape.carriers;
  return launch(a, is_wide(a.gains, carriers, 4) && is_wide(a.weights, carriers, 4), 4, stream);
}

const char* power_normalize(const NormalizeArgs& a, void* stream) {
  return launch(a, is_wide(a.x, a.shape.carriers, a.is_complex ? 2 : 4), 4, stream);
}

}  // namespace TF_NS
