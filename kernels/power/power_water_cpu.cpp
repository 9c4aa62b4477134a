// Water-filling, its mean-squared-error form, and normalisation on the CPU. A row is read once and its level is found in the first-level
// cache: carriers below the level of the rest leave until none does (Michelot 1986), no sorting.
#include <cmath>

#include "power_lanes.hpp"

#include "../core/pages.hpp"
#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kGrain = 256;

// y [width] is -x or 1/g less the least of them, inf for what takes no part; the level above it: sum (level - y)_+ = mass. The least alone
// would take it to `mass`, so that the level is not above that.
template <class T>
T level_of(const T* y, int64_t width, T mass) {
  using L = Lanes<T>;
  const L one = L{} + T(1);
  T level = mass, count = static_cast<T>(width + 1);
  for (;;) {
    const L limit = L{} + level;
    L sum = {}, inside = {};
    for (int64_t k = 0; k < width; k += kWide) {
      const L v = at(y + k);
      sum += v <= limit ? v : L{};
      inside += v <= limit ? one : L{};
    }
    const T found = total<T>(inside);
    if (!(found < count)) return level;
    count = found;
    level = (mass + total<T>(sum)) / count;
  }
}

template <class T>
void water_row(const WaterArgs& a, int64_t row, T* y) {
  using L = Lanes<T>;
  const int64_t n = a.shape.carriers, width = padded(n);
  const T inf = static_cast<T>(__builtin_inf()), nan = static_cast<T>(__builtin_nan(""));
  T* const out = static_cast<T*>(a.power) + row * n;
  T& theta = static_cast<T*>(a.theta)[row];
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
  const T low = -largest<T>(-least), mass = value_at<T>(a.mass, row, 0);
  const T bad = total<T>(poison);
  if (!(mass >= 0) || std::isnan(bad) || low == -inf) {
    fill(out, n, nan);
    theta = nan;
    return;
  }
  if (low == inf) {
    fill(out, n, T(0));
    theta = -inf;
    return;
  }
  for (int64_t k = 0; k < width; k += kWide) put(y + k, at(y + k) - low);
  const T level = level_of(y, width, mass);
  for (int64_t k = 0; k < n; ++k) out[k] = y[k] < level ? level - y[k] : T(0);
  theta = -(level + low);
}

template <class T>
void water_rows(const WaterArgs& a) {
  ask_for_large_pages(a.power, a.shape.rows * a.shape.carriers * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        Room<T> room;
        T* const y = room.take(padded(a.shape.carriers));
        for (int64_t row = first; row < last; ++row) water_row(a, row, y);
      },
      kGrain);
}

template <class T>
void mse_row(const MseWaterArgs& a, int64_t row, double* room) {
  const int64_t n = a.shape.carriers, width = padded(n);
  double *gain = room, *root = room + width, *inverse = root + width;
  T* const out = static_cast<T*>(a.out) + row * n;
  load_real<T>(a.gains, row, 0, n, gain);
  load_real<T>(a.weights, row, 0, n, root);
  double top = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    root[k] = sqrt(root[k] * gain[k]);
    inverse[k] = gain[k] == 0.0 ? 0.0 : 1.0 / gain[k];
    top = root[k] > top ? root[k] : top;
  }
  const double power = value_at<T>(a.power, row, 0);
  double level = __builtin_inf();
  for (int64_t count = -1;;) {
    int64_t inside = 0;
    double above = 0.0, below = power;
    for (int64_t k = 0; k < n; ++k) {
      if (!(root[k] > 0.0 && (count < 0 || root[k] > level || root[k] == top))) continue;
      ++inside;
      above += root[k] * inverse[k];
      below += inverse[k];
    }
    if (inside == 0 || inside == count) break;
    count = inside;
    level = above / below;
  }
  for (int64_t k = 0; k < n; ++k) {
    const double p = (root[k] / level - 1.0) * inverse[k];
    out[k] = static_cast<T>(std::isnan(root[k]) ? root[k] : (p > 0.0 ? p : 0.0));
  }
  static_cast<T*>(a.level)[row] = static_cast<T>(level);
}

template <class T>
void mse_rows(const MseWaterArgs& a) {
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        Room<double> room;
        double* const at_row = room.take(3 * padded(a.shape.carriers));
        for (int64_t row = first; row < last; ++row) mse_row<T>(a, row, at_row);
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
