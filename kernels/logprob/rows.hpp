// The math of one logit, once for CPU lanes (T a vector of floats) and CUDA threads (T = float). The definitions: rows_reference.py.
#pragma once

#include "logprob.hpp"
#include "rows_api.hpp"

namespace TF_NS {

constexpr float kWeightOne = 1073741824.0f;  // 2^30: what exp(0) is worth among the integer weights of the label draw

// exp(x) for x <= 0 from operations that IEEE 754 rounds once each, none of them fused: the same bits on every instruction set, on CUDA,
// in Triton and in PyTorch, so that the labels drawn with it are the same. Constants of Cephes (Moshier); k * 0.693359375 is exact.
template <class T, class Power>
TF_HD T exp_exact_value(T x, const Power& power_of_two) {
  const T t = x * 1.44269504f + 12582912.0f;
  const T k = t - 12582912.0f;
  const T r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  T p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = ((p * r) * r + r) + 1.0f;
  return p * power_of_two(t);
}

TF_HD float exp_exact(float x) {
  const float value = exp_exact_value(x, [](float t) { return float_of((bits_of(t) << 23u) + 0x3F800000u); });
  return x < -87.0f ? 0.0f : value;
}

// What a row's entries are added up to: with d = x - max, sums of e = exp(d), of e d and of e d^2.
struct RowSums {
  float max;
  double s, a, b;
};

TF_HD RowSums row_sums_empty() { return {kNoLogit, 0.0, 0.0, 0.0}; }

// The same sums about another maximum, max >= r.max.
TF_HD RowSums row_sums_about(RowSums r, float max) {
  if (r.max == max) return r;
  const double shift = static_cast<double>(r.max) - static_cast<double>(max);
  const double c = ::exp(shift);
  return {max, c * r.s, c * (r.a + shift * r.s), c * (r.b + shift * (2.0 * r.a + shift * r.s))};
}

TF_HD RowSums row_sums_join(RowSums x, RowSums y) {
  const float max = larger(x.max, y.max);
  x = row_sums_about(x, max);
  y = row_sums_about(y, max);
  return {max, x.s + y.s, x.a + y.a, x.b + y.b};
}

TF_HD double row_lse(const RowSums& r) { return static_cast<double>(r.max) + ::log(r.s); }

// A double as the sum of two floats: x - value is then exact to float32's precision whatever the size of x.
struct TwoFloats {
  float high, low;
};
TF_HD TwoFloats two_floats(double value) {
  const float high = static_cast<float>(value);
  return {high, static_cast<float>(value - static_cast<double>(high))};
}

}  // namespace TF_NS
