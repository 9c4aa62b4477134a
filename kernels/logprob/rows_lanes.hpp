// Lanes of floats with comparisons, for the row kernels: the compiler's vector types, which mix with the registers of core/simd.hpp.
#pragma once

#include "rows.hpp"

#include "../core/simd.hpp"

namespace TF_NS {

#if defined(TF_ISA_AVX512) || defined(TF_ISA_AVX2) || defined(TF_ISA_NEON)
using V = decltype(F::v);
TF_HD V multiply_add(V a, V b, V c) { return fma(F{a}, F{b}, F{c}).v; }
template <class T>
TF_HD V load_lanes(const T* p) {
  return load(p).v;
}
template <class T>
TF_HD void store_lanes(T* p, V a) {
  store(p, F{a});
}
#else
typedef float V __attribute__((vector_size(4 * kLanes)));
TF_HD V multiply_add(V a, V b, V c) { return a * b + c; }
template <class T>
TF_HD V load_lanes(const T* p) {
  V out;
  for (uint32_t j = 0; j < kLanes; ++j) out[j] = to_math(p[j]);
  return out;
}
template <class T>
TF_HD void store_lanes(T* p, V a) {
  for (uint32_t j = 0; j < kLanes; ++j) p[j] = Round<T>::nearest(a[j]);
}
#endif

typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t B __attribute__((vector_size(4 * kLanes)));
typedef uint64_t L __attribute__((vector_size(4 * kLanes)));

TF_HD V spread(float x) { return x - V{}; }
TF_HD V choose(I mask, V if_set, V if_clear) {
  return reinterpret_cast<V>(mask ? reinterpret_cast<I>(if_set) : reinterpret_cast<I>(if_clear));
}
TF_HD I less(V a, V b) { return reinterpret_cast<I>(a < b); }

// As larger() of logprob.hpp: b where b > a, else a.
TF_HD V larger(V a, V b) {
#if defined(TF_ISA_AVX512)
  return _mm512_max_ps(b, a);
#elif defined(TF_ISA_AVX2)
  return _mm256_max_ps(b, a);
#else
  return choose(less(a, b), b, a);
#endif
}

TF_HD V power_of_two(V t) { return reinterpret_cast<V>((reinterpret_cast<B>(t) << 23) + 0x3F800000u); }
TF_HD V zero_below(V x, float limit, V value) { return choose(less(x, spread(limit)), V{}, value); }

// exp_nonpositive of logprob.hpp in lanes.
TF_HD V exp_lanes(V x) {
  const V t = multiply_add(x, spread(1.44269504f), spread(12582912.0f));
  const V k = t - 12582912.0f;
  V r = multiply_add(k, spread(-0.693359375f), x);
  r = multiply_add(k, spread(2.12194440e-4f), r);
  V p = multiply_add(spread(1.9875691500e-4f), r, spread(1.3981999507e-3f));
  p = multiply_add(p, r, spread(8.3334519073e-3f));
  p = multiply_add(p, r, spread(4.1665795894e-2f));
  p = multiply_add(p, r, spread(1.6666665459e-1f));
  p = multiply_add(p, r, spread(5.0000001201e-1f));
  p = multiply_add(p * r, r, r) + 1.0f;
  return zero_below(x, -87.0f, p * power_of_two(t));
}

TF_HD V exp_exact(V x) {
  return zero_below(x, -87.0f, exp_exact_value(x, [](V t) { return power_of_two(t); }));
}

// tanh within 3 ulp: the odd polynomial of Cephes (Moshier) near zero, (1 - e) / (1 + e) with e = exp(-2 |x|) elsewhere.
TF_HD V tanh_lanes(V x) {
  const V size = larger(x, -x);
  const V e = exp_lanes(-2.0f * size);
  const V outer = (1.0f - e) / (1.0f + e);
  const V q = x * x;
  V p = multiply_add(spread(-5.70498872745e-3f), q, spread(2.06390887954e-2f));
  p = multiply_add(p, q, spread(-5.37397155531e-2f));
  p = multiply_add(p, q, spread(1.33314422036e-1f));
  p = multiply_add(p, q, spread(-3.33332819422e-1f));
  const V inner = multiply_add(p * q, x, x);
  return choose(less(size, spread(0.625f)), inner, choose(less(x, V{}), -outer, outer));
}

// Sums in a fixed order.
TF_HD double sum_lanes(V a) {
  double total = 0.0;
  for (uint32_t j = 0; j < kLanes; ++j) total += static_cast<double>(a[j]);
  return total;
}
TF_HD float max_lanes(V a) {
  float top = a[0];
  for (uint32_t j = 1; j < kLanes; ++j) top = larger(top, a[j]);
  return top;
}

}  // namespace TF_NS
