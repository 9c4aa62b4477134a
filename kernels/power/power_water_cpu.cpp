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
  // Above `limit`, the largest level so far, are the carriers that get power: rounding may lower the level again, and a set that grew
  // with it would come back for ever.
  double level = __builtin_inf(), limit = 0.0;
  const auto active = [&](double r) { return r > 0.0 && (r > limit || r == top); };
  for (int64_t count = -1;;) {
    int64_t inside = 0;
    double above = 0.0, below = power;
    for (int64_t k = 0; k < n; ++k) {
      if (!active(root[k])) continue;
      ++inside;
      above += root[k] * inverse[k];
      below += inverse[k];
    }
    if (inside == 0 || inside == count) break;
    count = inside;
    level = above / below;
    limit = level > limit ? level : limit;
  }
  for (int64_t k = 0; k < n; ++k) {
    const double p = (root[k] / level - 1.0) * inverse[k];
    out[k] = static_cast<T>(std::isnan(root[k]) ? root[k] : (active(root[k]) && p > 0.0 ? p : 0.0));
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
