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

// ---- mean-squared-error water-filling, in double precision ----

// kWide lanes in registers of the instruction set: GCC makes scalar code of choices between wider ones.
typedef double Part __attribute__((vector_size(4 * kLanes)));
constexpr int64_t kPart = kLanes / 2, kParts = kWide / kPart;

struct PartSums {
  Part part[kParts] = {};

  double total() const {  // halves first, as TF_NS::total
    double each[kWide];
    __builtin_memcpy(each, part, sizeof each);
    for (int j = 0; j < 8; ++j) each[j] += each[j + 8];
    for (int j = 0; j < 4; ++j) each[j] += each[j + 4];
    return (each[0] + each[2]) + (each[1] + each[3]);
  }
};

// A row: S a, its root and 1 / a, how far a root is ahead of the weakest that gets power, and what is found: carriers with S a >= weakest
// get (ahead + rise) / (level a). What is not a number, or beyond them, makes `poison` NaN, which is 0 otherwise.
struct MseRow {
  static constexpr int kArrays = 4;
  double *product, *root, *inverse, *ahead;
  int64_t width;
  double power, level, weakest, rise, poison;

  // f(k, j) for all parts of the row, j the one of PartSums.
  template <class Each>
  void each_part(const Each& f) const {
    for (int64_t k = 0; k < width; k += kWide) {
#pragma GCC unroll 8
      for (int64_t j = 0; j < kParts; ++j) f(k + j * kPart, j);
    }
  }
  static Part get(const double* p) {
    Part out;
    __builtin_memcpy(&out, p, sizeof out);
    return out;
  }
  static void put(double* p, Part v) { __builtin_memcpy(p, &v, sizeof v); }

  // The least S a of the carriers for which allowed(k) holds; infinite if there is none.
  template <class Allowed>
  double least_of(const Allowed& allowed) const {
    const Part none = Part{} + kInfinity;
    Part least[kParts];
    for (Part& p : least) p = none;
    each_part([&](int64_t k, int64_t j) {
      const Part here = allowed(k) ? get(product + k) : none;
      least[j] = here < least[j] ? here : least[j];
    });
    double each[kWide], found = kInfinity;
    __builtin_memcpy(each, least, sizeof each);
    for (const double x : each) found = x < found ? x : found;
    return found;
  }
};

// Leaves out what is clearly below the level of the rest, round by round, rows side by side because one round is a chain of short steps.
inline void leave_out(MseRow* rows, double clearly) {
  const Part one = Part{} + 1.0;
  double limit[kTogether] = {}, before[kTogether] = {}, count[kTogether];
  for (double& c : count) c = -1.0;
  for (bool left = true; left;) {
    left = false;
#pragma GCC unroll 4
    for (int r = 0; r < kTogether; ++r) {
      const MseRow& m = rows[r];
      const Part bar = Part{} + limit[r];
      PartSums above, below, inside;
      m.each_part([&](int64_t k, int64_t j) {
        const Part root = MseRow::get(m.root + k), inverse = MseRow::get(m.inverse + k);
        above.part[j] += root > bar ? root * inverse : Part{};
        below.part[j] += root > bar ? inverse : Part{};
        inside.part[j] += root > bar ? one : Part{};
      });
      const double found = inside.total(), next = clearly * (above.total() / (m.power + below.total()));
      const bool fewer = found != 0.0 && found != count[r];
      if (found == 0.0) limit[r] = before[r];  // beyond the arithmetic: all that were left
      if (!fewer) continue;
      count[r] = found;
      before[r] = limit[r];
      limit[r] = next > limit[r] ? next : limit[r];
      left = true;
    }
  }
  for (int r = 0; r < kTogether; ++r) {
    const Part bar = Part{} + limit[r];
    rows[r].weakest = rows[r].least_of([&](int64_t k) { return MseRow::get(rows[r].root + k) > bar; });
  }
}

// See power_reference.py for both searches. The set is known by its weakest member and each round leaves fewer, so that they end whatever
// rounding does.
inline void fill_mse(MseRow& m, double clearly) {
  m.level = kInfinity;
  m.rise = 0.0;
  if (m.weakest == kInfinity) return fill(m.ahead, m.width, 0.0);
  for (;;) {
    const double start = sqrt(m.weakest);
    const Part weakest = Part{} + m.weakest, least = Part{} + start;
    PartSums above, below, forward;
    m.each_part([&](int64_t k, int64_t j) {
      const Part product = MseRow::get(m.product + k), root = MseRow::get(m.root + k), inverse = MseRow::get(m.inverse + k);
      const Part ahead = (product - weakest) / (root + least);
      MseRow::put(m.ahead + k, ahead);
      above.part[j] += product >= weakest ? root * inverse : Part{};
      below.part[j] += product >= weakest ? inverse : Part{};
      forward.part[j] += product >= weakest ? ahead * inverse : Part{};
    });
    const double over = 1.0 / (m.power + below.total());
    m.level = above.total() * over;
    m.rise = (start * m.power - forward.total()) * over;
    if (!(m.rise < 0.0)) return;
    const Part bar = Part{} - clearly * m.rise;
    const double next = m.least_of([&](int64_t k) { return MseRow::get(m.ahead + k) > bar; });
    if (!(next > m.weakest && next < kInfinity)) return;
    m.weakest = next;
  }
}

template <class T>
void begin_mse(const MseWaterArgs& a, int64_t row, MseRow& m) {
  const int64_t n = a.shape.carriers;
  load_real<T>(a.gains, row, 0, n, m.inverse);
  load_real<T>(a.weights, row, 0, n, m.product);
  fill(m.inverse + n, m.width - n, 0.0);
  fill(m.product + n, m.width - n, 0.0);
  m.power = value_at<T>(a.power, row, 0);
  PartSums poison;
  m.each_part([&](int64_t k, int64_t j) {
    const Part gain = MseRow::get(m.inverse + k), product = MseRow::get(m.product + k) * gain;
    const Part inverse = gain == Part{} ? Part{} : 1.0 / gain;
    MseRow::put(m.product + k, product);
    MseRow::put(m.inverse + k, inverse);
    poison.part[j] += product * 0.0 + inverse * 0.0;
  });
  m.poison = m.power >= 0.0 && m.power < kInfinity ? poison.total() : __builtin_nan("");
  for (int64_t k = 0; k < m.width; ++k) m.root[k] = sqrt(m.product[k]);
}

template <class T>
void end_mse(const MseWaterArgs& a, int64_t row, const MseRow& m) {
  const int64_t n = a.shape.carriers;
  const Part weakest = Part{} + m.weakest, rise = Part{} + m.rise, scale = Part{} + 1.0 / m.level, poison = Part{} + m.poison;
  m.each_part([&](int64_t k, int64_t) {
    const Part product = MseRow::get(m.product + k), p = (MseRow::get(m.ahead + k) + rise) * scale * MseRow::get(m.inverse + k);
    const Part kept = product >= weakest ? (p > Part{} ? p : Part{}) : Part{};
    MseRow::put(m.ahead + k, kept + poison);
  });
  T* const out = static_cast<T*>(a.out) + row * n;
  for (int64_t k = 0; k < n; ++k) out[k] = static_cast<T>(m.ahead[k]);
  static_cast<T*>(a.level)[row] = static_cast<T>(m.level + m.poison);
}

template <class T>
void mse_rows(const MseWaterArgs& a) {
  ask_for_large_pages(a.out, a.shape.rows * a.shape.carriers * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        const int64_t width = padded(a.shape.carriers);
        const double clearly = 1.0 - static_cast<double>(a.shape.carriers + 8) * 0x1p-52;
        Room<double> room;
        double* data = room.take(kTogether * MseRow::kArrays * width);
        MseRow rows[kTogether];
        for (MseRow& m : rows) {
          m = {data, data + width, data + 2 * width, data + 3 * width, width, 0.0, 0.0, 0.0, 0.0, 0.0};
          data += MseRow::kArrays * width;
        }
        for (int64_t row = first; row < last; row += kTogether) {
          const auto here = [&](int r) { return row + r < last ? row + r : last - 1; };  // behind the last, it again
          for (int r = 0; r < kTogether; ++r) begin_mse<T>(a, here(r), rows[r]);
          leave_out(rows, clearly);
          for (MseRow& m : rows) fill_mse(m, clearly);
          for (int r = 0; r < kTogether; ++r) end_mse<T>(a, here(r), rows[r]);
        }
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
