// Water-filling, its mean-squared-error form, and normalisation on the CPU. A row is read once and its level is found in the first-level
// cache: carriers below the level of the rest leave until none does (Michelot 1986), no sorting.
#include <cmath>

#include "power_lanes.hpp"
#include "power_scalar.hpp"

#include "../core/pages.hpp"
#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kGrain = 256;

// A row's level is a chain of short steps (sums across lanes, a division, a branch), so several rows are found at a time.
constexpr int kTogether = 4;

// What a row is found from and written with; a row that has no level gets `power` everywhere.
template <class T>
struct WaterRow {
  T low, mass, level, power, theta;
  bool known;
};

// Each y [width] is -x or 1/g less the least of them, inf for what takes no part; the level above it: sum (level - y)_+ = mass. The least
// alone would take it to `mass`, so that the level is not above that. A row that has settled finds the same sums again.
template <class T>
void find_levels(const T* y, int64_t width, WaterRow<T>* rows) {
  using L = Lanes<T>;
  const L one = L{} + T(1);
  T count[kTogether];
  for (int r = 0; r < kTogether; ++r) {
    rows[r].level = rows[r].mass;
    count[r] = static_cast<T>(width + 1);
  }
  for (bool left = true; left;) {
    left = false;
    T sums[kTogether], found[kTogether];
#pragma GCC unroll 4
    for (int r = 0; r < kTogether; ++r) {
      const L limit = L{} + rows[r].level;
      L sum = {}, inside = {};
      for (int64_t k = 0; k < width; k += kWide) {
        const L v = at(y + r * width + k);
        sum += v <= limit ? v : L{};
        inside += v <= limit ? one : L{};
      }
      sums[r] = total<T>(sum);
      found[r] = total<T>(inside);
    }
    for (int r = 0; r < kTogether; ++r) {
      const bool fewer = found[r] < count[r];
      const T level = (rows[r].mass + sums[r]) / found[r];
      left = left || fewer;
      count[r] = fewer ? found[r] : count[r];
      rows[r].level = fewer ? level : rows[r].level;
    }
  }
}

// y of a row, and what is known of it before its level is.
template <class T>
WaterRow<T> begin_row(const WaterArgs& a, int64_t row, int64_t width, T* y) {
  using L = Lanes<T>;
  const int64_t n = a.shape.carriers;
  const T inf = static_cast<T>(__builtin_inf()), nan = static_cast<T>(__builtin_nan(""));
  load_real<T>(a.x, row, 0, n, y);
  fill(y + n, width - n, a.inverse ? T(0) : -inf);
  L least = L{} + inf, poison = {};
  for (int64_t k = 0; k < width; k += kWide) {
    const L v = at(y + k);
    const L cost = a.inverse ? (v > L{} ? T(1) / v : L{} + inf) : -v;
    put(y + k, cost);
    least = cost < least ? cost : least;
    poison += v == v ? L{} : v;  // NOLINT(misc-redundant-expression): not a number
  }
  const T low = -largest<T>(-least), mass = value_at<T>(a.mass, row, 0), bad = total<T>(poison);
  if (!(mass >= 0) || std::isnan(bad) || low == -inf) {
    fill(y, width, T(0));
    return {T(0), T(0), T(0), nan, nan, false};
  }
  if (low == inf) {
    fill(y, width, T(0));
    return {T(0), T(0), T(0), T(0), -inf, false};
  }
  for (int64_t k = 0; k < width; k += kWide) put(y + k, at(y + k) - low);
  return {low, mass, mass, T(0), T(0), true};
}

template <class T>
void end_row(const WaterArgs& a, int64_t row, const WaterRow<T>& found, const T* y) {
  using L = Lanes<T>;
  const int64_t n = a.shape.carriers;
  T* const out = static_cast<T*>(a.power) + row * n;
  static_cast<T*>(a.theta)[row] = found.known ? -(found.level + found.low) : found.theta;
  if (!found.known) return fill(out, n, found.power);
  const L level = L{} + found.level;
  for (int64_t k = 0; k < n; k += kWide) {
    const L v = at(y + k), p = v < level ? level - v : L{};
    __builtin_memcpy(out + k, &p, n - k >= kWide ? sizeof p : static_cast<size_t>(n - k) * sizeof(T));
  }
}

template <class T>
void water_rows(const WaterArgs& a) {
  ask_for_large_pages(a.power, a.shape.rows * a.shape.carriers * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        const int64_t width = padded(a.shape.carriers);
        Room<T> room;
        T* const y = room.take(kTogether * width);
        WaterRow<T> found[kTogether];
        for (int64_t row = first; row < last; row += kTogether) {
          const auto here = [&](int r) { return row + r < last ? row + r : last - 1; };  // behind the last, it again
          for (int r = 0; r < kTogether; ++r) found[r] = begin_row(a, here(r), width, y + r * width);
          find_levels(y, width, found);
          for (int r = 0; r < kTogether; ++r) end_row(a, here(r), found[r], y + r * width);
        }
      },
      kGrain);
}

// What the rounds of a row work on: S a, its root and 1 / a, and how far a root is ahead of the weakest one that takes part.
struct MseRoom {
  double *product, *root, *inverse, *ahead;
  int64_t width;

  static constexpr int kArrays = 4;
};

// Over the carriers with S a >= weakest: sums of sqrt(S a) / a, 1 / a and ahead / a.
struct MseSums {
  double above = 0.0, below = 0.0, ahead = 0.0, count = 0.0;
};

inline MseSums mse_sums(const MseRoom& m, double weakest) {
  using L = Lanes<double>;
  const L bar = L{} + weakest, one = L{} + 1.0;
  L above = {}, below = {}, ahead = {}, count = {};
  for (int64_t k = 0; k < m.width; k += kWide) {
    const L product = at(m.product + k), inverse = at(m.inverse + k);
    above += product >= bar ? at(m.root + k) * inverse : L{};
    below += product >= bar ? inverse : L{};
    ahead += product >= bar ? at(m.ahead + k) * inverse : L{};
    count += product >= bar ? one : L{};
  }
  return {total<double>(above), total<double>(below), total<double>(ahead), total<double>(count)};
}

// The least S a that is not below `weakest` and for which value[k] > limit; infinite if there is none.
inline double next_weakest(const MseRoom& m, const double* value, double limit, double weakest) {
  using L = Lanes<double>;
  const L bar = L{} + limit, before = L{} + weakest, none = L{} + kInfinity;
  L least = none;
  for (int64_t k = 0; k < m.width; k += kWide) {
    const L product = at(m.product + k);
    const L here = product >= before ? (at(value + k) > bar ? product : none) : none;
    least = here < least ? here : least;
  }
  return -largest<double>(-least);
}

inline void measure_from(const MseRoom& m, double weakest) {
  using L = Lanes<double>;
  const L product = L{} + weakest, root = L{} + sqrt(weakest);
  for (int64_t k = 0; k < m.width; k += kWide) put(m.ahead + k, (at(m.product + k) - product) / (at(m.root + k) + root));
}

// See power_reference.py for the two searches. The set is known by its weakest member, and each round leaves fewer, so that they end
// whatever rounding does.
inline void mse_find(const MseRoom& m, double power, int64_t carriers, double& level, double& weakest, double& rise) {
  const double clearly = 1.0 - static_cast<double>(carriers + 8) * 0x1p-52;
  weakest = next_weakest(m, m.root, 0.0, 0.0);
  level = kInfinity;
  fill(m.ahead, m.width, 0.0);
  if (weakest == kInfinity) return;
  for (;;) {
    const MseSums sums = mse_sums(m, weakest);
    const double next = next_weakest(m, m.root, clearly * (sums.above / (power + sums.below)), weakest);
    if (!(next > weakest && next < kInfinity)) break;
    weakest = next;
  }
  for (;;) {
    measure_from(m, weakest);
    const MseSums sums = mse_sums(m, weakest);
    level = sums.above / (power + sums.below);
    rise = (sqrt(weakest) * power - sums.ahead) / (power + sums.below);
    if (!(rise < 0.0)) return;
    const double next = next_weakest(m, m.ahead, -rise, weakest);
    if (!(next > weakest && next < kInfinity)) return;
    weakest = next;
  }
}

template <class T>
void mse_row(const MseWaterArgs& a, int64_t row, const MseRoom& m) {
  using L = Lanes<double>;
  const int64_t n = a.shape.carriers;
  double* const gain = m.inverse;
  load_real<T>(a.gains, row, 0, n, gain);
  load_real<T>(a.weights, row, 0, n, m.product);
  fill(gain + n, m.width - n, 0.0);
  fill(m.product + n, m.width - n, 0.0);
  for (int64_t k = 0; k < m.width; k += kWide) {
    const L g = at(gain + k), product = at(m.product + k) * g;
    put(m.product + k, product);
    put(m.inverse + k, g == L{} ? L{} : 1.0 / g);
  }
  for (int64_t k = 0; k < m.width; ++k) m.root[k] = sqrt(m.product[k]);
  double level, weakest, rise = 0.0;
  mse_find(m, value_at<T>(a.power, row, 0), n, level, weakest, rise);
  T* const out = static_cast<T*>(a.out) + row * n;
  const double scale = 1.0 / level;
  for (int64_t k = 0; k < m.width; k += kWide) {
    const L product = at(m.product + k), p = (at(m.ahead + k) + rise) * scale * at(m.inverse + k);
    const L kept = product >= L{} + weakest ? (p > L{} ? p : L{}) : L{};
    const L known = product == product ? kept : product;  // NOLINT(misc-redundant-expression): not a number
    const auto narrow = __builtin_convertvector(known, Lanes<T>);
    __builtin_memcpy(out + k, &narrow, n - k >= kWide ? sizeof narrow : static_cast<size_t>(n - k) * sizeof(T));
  }
  static_cast<T*>(a.level)[row] = static_cast<T>(level);
}

template <class T>
void mse_rows(const MseWaterArgs& a) {
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        Room<double> room;
        const int64_t width = padded(a.shape.carriers);
        double* const data = room.take(MseRoom::kArrays * width);
        const MseRoom m = {data, data + width, data + 2 * width, data + 3 * width, width};
        for (int64_t row = first; row < last; ++row) mse_row<T>(a, row, m);
      },
      kGrain);
}

template <class T>
void normalize_row(const NormalizeArgs& a, int64_t row, double* values) {
  const int64_t n = a.shape.carriers, parts = a.is_complex ? 2 * n : n;
  T* const out = static_cast<T*>(a.out) + row * parts;
  if (a.is_complex) {
    load_complex<T>(a.x, row, 0, n, values, values + padded(n));
    fill(values + n, padded(n) - n, 0.0);
  } else {
    load_real<T>(a.x, row, 0, n, values);
  }
  const int64_t used = a.is_complex ? padded(n) + n : n;
  fill(values + used, padded(used) - used, 0.0);
  Lanes<double> top = {}, poison = {};
  for (int64_t k = 0; k < padded(used); k += kWide) {
    const Lanes<double> v = at(values + k), size = v < 0.0 ? -v : v;
    top = size > top ? size : top;
    poison += v * 0.0;
  }
  const double most = largest<double>(top) + total<double>(poison), scale = most > 0.0 ? 1.0 / most : (most == 0.0 ? 0.0 : most);
  Lanes<double> square = {};
  for (int64_t k = 0; k < padded(used); k += kWide) {
    const Lanes<double> v = at(values + k) * scale;
    put(values + k, v);
    square += v * v;
  }
  const double length = sqrt(total<double>(square)), power = value_at<T>(a.power, row, 0);
  const double wanted = sqrt(a.mean ? power * static_cast<double>(n) : power), by = length == 0.0 ? 0.0 : wanted / length;
  if (!a.is_complex) {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<T>(values[k] * by);
    return;
  }
  const double* const im = values + padded(n);
  for (int64_t k = 0; k < n; ++k) {
    out[2 * k] = static_cast<T>(values[k] * by);
    out[2 * k + 1] = static_cast<T>(im[k] * by);
  }
}

template <class T>
void normalize_rows(const NormalizeArgs& a) {
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        Room<double> room;
        double* const values = room.take(2 * padded(a.shape.carriers));
        for (int64_t row = first; row < last; ++row) normalize_row<T>(a, row, values);
      },
      kGrain);
}

}  // namespace

void water_power(const WaterArgs& a) { a.shape.dtype == kFloat64 ? water_rows<double>(a) : water_rows<float>(a); }
void mse_water_power(const MseWaterArgs& a) { a.shape.dtype == kFloat64 ? mse_rows<double>(a) : mse_rows<float>(a); }
void normalize_power(const NormalizeArgs& a) { a.shape.dtype == kFloat64 ? normalize_rows<double>(a) : normalize_rows<float>(a); }

}  // namespace TF_NS
