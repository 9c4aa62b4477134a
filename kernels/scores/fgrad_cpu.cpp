// Orthogonal matching pursuit on factored gradients on the CPU. A pick adds one column of inner products <g_i, g_pick> =
// (e_i . e_pick)(b + h_i . h_pick), and the inner products with the residual follow from the columns: c = q - sum_t x_t column_t. Per pick
// that is 2 N (C + d) + 2 N t operations, where the published form multiplies all gradients with the residual, 2 N C d. Bound by reading
// the factors, once per pick.
//
// Sums are double. Rows belong to tiles of fixed size, so that the number of threads changes nothing.
#include "row_lanes.hpp"

#include "../core/dtype.hpp"
#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kTile = 256;  // rows
constexpr double kDependent = 1e-13;

typedef double D __attribute__((vector_size(8 * kLanes)));

struct Best {
  double value;
  int64_t row;
};

// A row of one of the factors as doubles, padded with zeros to whole registers.
template <class T>
void widen(const Matrix& m, int64_t r, double* out) {
  const T* row = static_cast<const T*>(m.data) + r * m.stride;
  int64_t i = 0;
  for (; i < m.columns; ++i) out[i] = static_cast<double>(to_math(row[i]));
  for (; i % kW != 0; ++i) out[i] = 0.0;
}

TF_HD double sum_doubles(D x) {
  double v[kLanes];
  __builtin_memcpy(v, &x, sizeof(v));
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t j = 0; j < half; ++j) v[j] += v[j + half];
  }
  return v[0];
}

template <class T>
double dot(const T* row, const double* with, int64_t n) {
  D sums[2] = {};
  int64_t i = 0;
  const auto step = [&](int64_t at, D& sum) TF_INLINE {
    D other;
    __builtin_memcpy(&other, with + at, sizeof(other));
    sum = sum + __builtin_convertvector(load_lanes(row + at), D) * other;
  };
  for (; i + 2 * kW <= n; i += 2 * kW) {
    step(i, sums[0]);
    step(i + kW, sums[1]);
  }
  if (i + kW <= n) {
    step(i, sums[0]);
    i += kW;
  }
  double total = sum_doubles(sums[0] + sums[1]);
  for (; i < n; ++i) total += static_cast<double>(to_math(row[i])) * with[i];
  return total;
}

template <class T, class S>
class Pursuit {
 public:
  explicit Pursuit(const OmpArgs& a) : a_(a), tiles_((a.errors.rows + kTile - 1) / kTile) {
    best_.take(tiles_ > 0 ? tiles_ : 1);
    e_.take(a.errors.columns + kW);
    h_.take(a.hidden.columns + kW);
    x_.zeros(a.k + 1);
    y_.zeros(a.k + 1);
  }

  void run() {
    for (int64_t t = 0; t < a_.k; ++t) {
      const int64_t j = pick(t);
      a_.indices[t] = j;
      column(j, a_.columns + t * a_.errors.rows);
      extend(t);
      weigh(t + 1);
      a_.residuals[t] = residual(t + 1);
    }
  }

 private:
  double& gram(int64_t s, int64_t t) { return a_.gram[s * a_.k + t]; }
  double& chol(int64_t s, int64_t t) { return a_.chol[s * a_.k + t]; }

  // c = q - sum x_t column_t, and its largest entry among the rows not taken; the smaller index of equals.
  int64_t pick(int64_t picks) {
    parallel_ranges(tiles_, a_.threads, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile) best_[tile] = best_of(tile, picks);
    });
    Best best = best_[0];
    for (int64_t tile = 1; tile < tiles_; ++tile) {
      if (best_[tile].value > best.value) best = best_[tile];
    }
    return best.row < a_.errors.rows ? best.row : first_left(picks);
  }

  // The first row not taken: what is picked where no entry is larger than -inf, as with NaN in the factors.
  int64_t first_left(int64_t picks) const {
    for (int64_t row = 0;; ++row) {
      bool taken = false;
      for (int64_t t = 0; t < picks; ++t) taken = taken || a_.indices[t] == row;
      if (!taken) return row;
    }
  }

  Best best_of(int64_t tile, int64_t picks) {
    const int64_t rows = a_.errors.rows, from = tile * kTile, to = from + kTile < rows ? from + kTile : rows;
    double* c = a_.c + from;
    const int64_t n = to - from;
    for (int64_t i = 0; i < n; ++i) c[i] = a_.q[from + i];
    for (int64_t t = 0; t < picks; ++t) {
      const double x = x_[t];
      const double* column = a_.columns + t * rows + from;
      for (int64_t i = 0; i < n; ++i) c[i] -= x * column[i];
    }
    for (int64_t t = 0; t < picks; ++t) {
      const int64_t row = a_.indices[t];
      if (row >= from && row < to) c[row - from] = -HUGE_VAL;
    }
    Best best = {-HUGE_VAL, rows};
    for (int64_t i = 0; i < n; ++i) {
      if (c[i] > best.value) best = {c[i], from + i};
    }
    return best;
  }

  void column(int64_t j, double* out) {
    widen<T>(a_.errors, j, e_.data());
    widen<S>(a_.hidden, j, h_.data());
    const double bias = a_.bias ? 1.0 : 0.0;
    parallel_ranges(tiles_, a_.threads, [&](int64_t first, int64_t last) {
      const int64_t end = last * kTile < a_.errors.rows ? last * kTile : a_.errors.rows;
      for (int64_t i = first * kTile; i < end; ++i) {
        const T* e = static_cast<const T*>(a_.errors.data) + i * a_.errors.stride;
        const S* h = static_cast<const S*>(a_.hidden.data) + i * a_.hidden.stride;
        out[i] = dot(e, e_.data(), a_.errors.columns) * (dot(h, h_.data(), a_.hidden.columns) + bias);
      }
    });
  }

  // Row t of G and of the Cholesky factor of G + lam I. A sample that depends on those before it gets the pivot infinity, and with it the
  // weight 0.
  void extend(int64_t t) {
    const double* column = a_.columns + t * a_.errors.rows;
    for (int64_t s = 0; s <= t; ++s) gram(t, s) = gram(s, t) = column[a_.indices[s]];
    double rest = gram(t, t) + a_.lam;
    const double whole = rest;
    for (int64_t s = 0; s < t; ++s) {
      double value = gram(t, s);
      for (int64_t u = 0; u < s; ++u) value -= chol(t, u) * chol(s, u);
      chol(t, s) = value / chol(s, s);
      rest -= chol(t, s) * chol(t, s);
    }
    chol(t, t) = rest > kDependent * whole ? std::sqrt(rest) : HUGE_VAL;
  }

  // (G + lam I) x = q of the picks; one pick alone goes without lam.
  void weigh(int64_t picks) {
    if (picks == 1) {
      x_[0] = gram(0, 0) == 0.0 ? 0.0 : a_.q[a_.indices[0]] / gram(0, 0);
      return;
    }
    for (int64_t s = 0; s < picks; ++s) {
      double value = a_.q[a_.indices[s]];
      for (int64_t u = 0; u < s; ++u) value -= chol(s, u) * y_[u];
      y_[s] = value / chol(s, s);
    }
    for (int64_t s = picks; s-- > 0;) {
      double value = y_[s];
      for (int64_t u = s + 1; u < picks; ++u) value -= chol(u, s) * x_[u];
      x_[s] = value / chol(s, s);
    }
  }

  double residual(int64_t picks) {
    double square = a_.target_squared;
    for (int64_t s = 0; s < picks; ++s) {
      double product = 0.0;
      for (int64_t u = 0; u < picks; ++u) product += gram(s, u) * x_[u];
      square += x_[s] * (product - 2.0 * a_.q[a_.indices[s]]);
    }
    return square > 0.0 ? std::sqrt(square) : 0.0;
  }

  const OmpArgs& a_;
  int64_t tiles_;
  Room<Best> best_;
  Room<double> e_, h_, x_, y_;
};

template <class T>
void omp_with(const OmpArgs& a) {
  switch (a.hidden.dtype) {
    case kBFloat16: return Pursuit<T, bfloat16>(a).run();
    case kFloat16: return Pursuit<T, float16>(a).run();
    default: return Pursuit<T, float>(a).run();
  }
}

void omp(const OmpArgs& a) {
  switch (a.errors.dtype) {
    case kBFloat16: return omp_with<bfloat16>(a);
    case kFloat16: return omp_with<float16>(a);
    default: return omp_with<float>(a);
  }
}

}  // namespace

extern const tenfold::FgradKernels fgrad_kernels;
const tenfold::FgradKernels fgrad_kernels = {omp};

}  // namespace TF_NS
