// Projection on the simplex, the fused step of Adam before it, and sampling, on the CPU.
//
// The threshold of a row rises from a bound below it by Newton's method: sum over x > theta of (x - theta) - radius, divided by their
// number, until that number does not change (Michelot 1986). A row of a vocabulary, 200 KB, stays in the second-level cache for its few
// passes. Lanes are the same number on every instruction set and nothing is fused, so all give the same bits; sums of 1024 numbers are
// added in double.
#include "attack.hpp"
#include "token_dots.hpp"

#include "../power/power_lanes.hpp"

#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kPiece = 1024;

template <class T>
Lanes<T> read(const T* x) {
  Lanes<T> v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

// The last numbers of a row, filled up with `rest`.
template <class T>
Lanes<T> read_some(const T* x, int64_t n, T rest) {
  Lanes<T> v = Lanes<T>{} + rest;
  __builtin_memcpy(&v, x, static_cast<size_t>(n) * sizeof(T));
  return v;
}

// visit(lanes) over a row, flush() behind every piece.
template <class T, class Visit, class Flush>
TF_HD void pieces_of_row(const T* x, int64_t n, T rest, const Visit& visit, const Flush& flush) {
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t end = first + kPiece < n ? first + kPiece : n;
    int64_t k = first;
    for (; k + 2 * kWide <= end; k += 2 * kWide) {
      visit(read(x + k), 0);
      visit(read(x + k + kWide), 1);
    }
    for (; k + kWide <= end; k += kWide) visit(read(x + k), 0);
    if (k < end) visit(read_some(x + k, end - k, rest), 0);
    flush();
  }
}

// Of the numbers above theta: the sum of x - theta, and how many.
template <class T>
Above above(const T* x, int64_t n, T theta) {
  using L = Lanes<T>;
  const L limit = L{} + theta, one = L{} + T(1);
  L sum[2] = {}, count[2] = {};
  Above found = {0.0, 0.0};
  pieces_of_row(
      x, n, static_cast<T>(-__builtin_inf()),
      [&](L v, int j) __attribute__((always_inline)) {
        const auto in = v > limit;
        sum[j] += in ? v - limit : L{};
        count[j] += in ? one : L{};
      },
      [&]() __attribute__((always_inline)) {
        found.sum += static_cast<double>(total<T>(sum[0] + sum[1]));
        found.count += static_cast<double>(total<T>(count[0] + count[1]));
        sum[0] = sum[1] = count[0] = count[1] = L{};
      });
  return found;
}

template <class T>
void project_row(const T* x, T* out, int64_t n, double radius) {
  using L = Lanes<T>;
  const T inf = static_cast<T>(__builtin_inf());
  L top[2] = {L{} - inf, L{} - inf}, sum[2] = {}, poison = {};
  double mass = 0.0;
  pieces_of_row(
      x, n, -inf,
      [&](L v, int j) __attribute__((always_inline)) {
        top[j] = v > top[j] ? v : top[j];
        const auto none = v == L{} - inf;
        const L kept = none ? L{} : v;
        sum[j] += kept;
        poison += kept * T(0);  // not a number, or infinite
      },
      [&]() __attribute__((always_inline)) {
        mass += static_cast<double>(total<T>(sum[0] + sum[1]));
        sum[0] = sum[1] = L{};
      });
  const T most = largest<T>(top[0] > top[1] ? top[0] : top[1]);
  const T bad = total<T>(poison);
  if (!(bad == T(0)) || most == -inf) {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<T>(__builtin_nan(""));
    return;
  }
  const T level = simplex_threshold<T>((mass - radius) / static_cast<double>(n), static_cast<double>(most) - radius, radius,
                                       [&](T limit) { return above(x, n, limit); });
  const L limits = L{} + level;
  int64_t k = 0;
  for (; k + kWide <= n; k += kWide) {
    const L v = read(x + k) - limits;
    const L y = v > L{} ? v : L{};
    __builtin_memcpy(out + k, &y, sizeof y);
  }
  for (; k < n; ++k) out[k] = x[k] > level ? x[k] - level : T(0);
}

template <class T>
void project(const SimplexProjectArgs& a) {
  parallel_ranges(a.rows, a.threads, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      project_row(static_cast<const T*>(a.p) + r * a.columns, static_cast<T*>(a.out) + r * a.columns, a.columns, a.radius);
    }
  });
}

void adam_row(const AdamNumbers& n, const float* __restrict product, const uint8_t* __restrict banned, float* __restrict p,
              float* __restrict m, float* __restrict v, int64_t count) {
  for (int64_t k = 0; k < count; ++k) p[k] = adam_step(n, product[k], p[k], m[k], v[k]);
  if (banned != nullptr) {
    for (int64_t k = 0; k < count; ++k) p[k] = banned[k] != 0 ? -static_cast<float>(__builtin_inf()) : p[k];
  }
}

constexpr int64_t kTokens = 64;  // whose products with all gradients lie in the first-level cache

template <class W>
void adam_tokens(const SteAdamArgs& a, int64_t piece, float* room) {
  const AdamNumbers numbers = adam_numbers(a);
  const int64_t first = piece * kTokens, count = a.columns - first < kTokens ? a.columns - first : kTokens;
  if (!a.ready) {
    for (int64_t r = 0; r < a.rows; r += kQueries) {
      const int64_t rows = a.rows - r < kQueries ? a.rows - r : kQueries;
      token_dots(a.gradient + r * a.width, rows, static_cast<const W*>(a.table) + first * a.width, count, a.width, room + r * kTokens,
                 kTokens, static_cast<float*>(nullptr));
    }
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* const product = a.ready ? a.gradient + r * a.columns + first : room + r * kTokens;
    const int64_t at = r * a.columns + first;
    adam_row(numbers, product, a.banned == nullptr ? nullptr : a.banned + first, a.p + at, a.m + at, a.v + at, count);
  }
}

}  // namespace

void simplex_project(const SimplexProjectArgs& a) { a.dtype == kFloat64 ? project<double>(a) : project<float>(a); }

void ste_adam_simplex(const SteAdamArgs& a) {
  with_words(a.dtype, [&](auto word) {
    using W = decltype(word);
    parallel_ranges((a.columns + kTokens - 1) / kTokens, a.threads,
                    [&](int64_t first, int64_t last) {
                      Room<float> room;
                      float* const products = room.take(a.rows * kTokens);
                      for (int64_t piece = first; piece < last; ++piece) adam_tokens<W>(a, piece, products);
                    },
                    8);
  });
  simplex_project({a.p, a.p, a.rows, a.columns, kFloat32, 1.0, a.threads});
}

namespace {

constexpr int64_t kRun = 256;

template <class T>
double run_sum(const T* x, int64_t n) {
  double part[4] = {0, 0, 0, 0};
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    for (int j = 0; j < 4; ++j) part[j] += static_cast<double>(x[k + j]);
  }
  for (; k < n; ++k) part[0] += static_cast<double>(x[k]);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// The run in which the sum passes the point, then the number; sums of runs in order.
template <class T>
int64_t sample_row(const T* x, int64_t n, double u, double* sums) {
  const int64_t runs = (n + kRun - 1) / kRun;
  double all = 0.0;
  for (int64_t r = 0; r < runs; ++r) {
    const int64_t left = n - r * kRun;
    sums[r] = run_sum(x + r * kRun, left < kRun ? left : kRun);
    all += sums[r];
  }
  if (!(all > 0.0) || all == __builtin_inf()) return -1;
  const double point = u * all;
  double before = 0.0;
  int64_t last = -1;
  for (int64_t r = 0; r < runs; ++r) {
    const bool here = before + sums[r] > point;
    if (here || sums[r] > 0.0) {
      double running = before;
      const int64_t end = n < (r + 1) * kRun ? n : (r + 1) * kRun;
      if (here || r + 1 == runs) {
        for (int64_t k = r * kRun; k < end; ++k) {
          running += static_cast<double>(x[k]);
          if (x[k] > T(0)) {
            last = k;
            if (running > point) return k;
          }
        }
      }
    }
    before += sums[r];
  }
  if (last >= 0) return last;  // rounding: the sum is reached, not passed
  for (int64_t k = n - 1; k >= 0; --k) {
    if (x[k] > T(0)) return k;
  }
  return -1;
}

template <class T>
void sample(const DrawArgs& a) {
  parallel_ranges(a.rows, a.threads, [&](int64_t first, int64_t last) {
    Room<double> room;
    double* const sums = room.take((a.columns + kRun - 1) / kRun);
    for (int64_t r = first; r < last; ++r) a.out[r] = sample_row(static_cast<const T*>(a.p) + r * a.columns, a.columns, a.u[r], sums);
  });
}

}  // namespace

void sample_rows(const DrawArgs& a) { a.dtype == kFloat64 ? sample<double>(a) : sample<float>(a); }

}  // namespace TF_NS
