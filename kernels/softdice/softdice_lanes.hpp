// Lanes of floats or doubles under one set of names, for softdice_cpu.cpp.
#pragma once

#include "../logprob/rows_lanes.hpp"

#include <cmath>

namespace TF_NS {

typedef double D __attribute__((vector_size(4 * kLanes)));
typedef int64_t DMask __attribute__((vector_size(4 * kLanes)));

template <class M>
struct LanesOf {
  using type = V;
  static constexpr int64_t count = kLanes;
};
template <>
struct LanesOf<double> {
  using type = D;
  static constexpr int64_t count = kLanes / 2;
};
template <class M>
using lanes_t = typename LanesOf<M>::type;

TF_HD void fill_lanes(float x, V& out) { out = spread(x); }
TF_HD void fill_lanes(double x, D& out) { out = x - D{}; }
template <class M>
TF_HD lanes_t<M> all_lanes(M x) {
  lanes_t<M> out;
  fill_lanes(x, out);
  return out;
}

TF_HD D load_lanes(const double* p) {
  D out;
  __builtin_memcpy(&out, p, sizeof(D));
  return out;
}
TF_HD void store_lanes(double* p, D a) { __builtin_memcpy(p, &a, sizeof(D)); }
TF_HD D multiply_add(D a, D b, D c) { return a * b + c; }
TF_HD D larger(D a, D b) { return b > a ? b : a; }
TF_HD double sum_lanes(D a) {
  double total = 0.0;
  for (uint32_t j = 0; j < kLanes / 2; ++j) total += a[j];
  return total;
}

// e^x for x <= 0 (a rounding above zero does no harm).
TF_HD V exp_small(V x) { return exp_lanes(x); }
TF_HD D exp_small(D x) {
  for (uint32_t j = 0; j < kLanes / 2; ++j) x[j] = std::exp(x[j]);
  return x;
}

// log(x) of positive normal numbers within 1 ulp or so: the polynomial of Cephes (Moshier). NaN stays NaN.
TF_HD V log_positive(V x) {
  const B bits = reinterpret_cast<B>(x);
  V m = reinterpret_cast<V>((bits & 0x7FFFFFu) | 0x3F000000u);
  V e = __builtin_convertvector(reinterpret_cast<I>(bits >> 23) - 126, V);
  const I low = less(m, spread(0.707106781186547524f));
  e = choose(low, e - 1.0f, e);
  m = choose(low, m + m, m) - 1.0f;
  const V z = m * m;
  V y = multiply_add(spread(7.0376836292e-2f), m, spread(-1.1514610310e-1f));
  y = multiply_add(y, m, spread(1.1676998740e-1f));
  y = multiply_add(y, m, spread(-1.2420140846e-1f));
  y = multiply_add(y, m, spread(1.4249322787e-1f));
  y = multiply_add(y, m, spread(-1.6668057665e-1f));
  y = multiply_add(y, m, spread(2.0000714765e-1f));
  y = multiply_add(y, m, spread(-2.4999993993e-1f));
  y = multiply_add(y, m, spread(3.3333331174e-1f));
  y = multiply_add(e, spread(-2.12194440e-4f), y * m * z) - 0.5f * z;
  // x - x lets NaN and infinity through
  return multiply_add(e, spread(0.693359375f), m + y) + (x - x);  // NOLINT(misc-redundant-expression)
}
TF_HD D log_positive(D x) {
  for (uint32_t j = 0; j < kLanes / 2; ++j) x[j] = std::log(x[j]);
  return x;
}

// log(1 + e) for e in [0, 1], exact also where 1 + e rounds (Kahan).
template <class L>
TF_HD L log_one_plus(L e) {
  const L u = 1 + e;
  return log_positive(u) + (e - (u - 1)) / u;
}

}  // namespace TF_NS
