// The squared distance that everything is decided by: differences in float64, summed in float64, rounded to float32 once. Eight lanes
// whatever the instruction set, so that all of them give the same bits.
#pragma once

#include "panel.hpp"

namespace TF_NS {

typedef float Float8 __attribute__((vector_size(32)));
typedef double Double8 __attribute__((vector_size(64)));
constexpr int64_t kWide = 8;

#if defined(TF_ISA_AVX512)
TF_HD Double8 widen(const float* p) { return reinterpret_cast<Double8>(_mm512_cvtps_pd(_mm256_loadu_ps(p))); }
#else
TF_HD Double8 widen(const float* p) {
  Float8 x;
  memcpy(&x, p, sizeof(x));
  return __builtin_convertvector(x, Double8);
}
#endif

// sum over k of term(a[k], b[k]): two chains of eight lanes, joined in one order.
template <class Term>
TF_HD double wide_sum(const float* a, const float* b, int64_t d, const Term& term) {
  Double8 sum[2] = {Double8{}, Double8{}};
  int64_t k = 0;
  for (; k + 2 * kWide <= d; k += 2 * kWide) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      sum[j] += term(widen(a + k + j * kWide), widen(b + k + j * kWide));
    }
  }
  double total = 0.0;
  const Double8 both = sum[0] + sum[1];
  for (int j = 0; j < kWide; ++j) total += both[j];
  for (; k < d; ++k) total += term(static_cast<double>(a[k]), static_cast<double>(b[k]));
  return total;
}

inline double exact_square(const float* a, const float* b, int64_t d) {
  return wide_sum(a, b, d, [](auto x, auto y) {
    const auto difference = x - y;
    return difference * difference;
  });
}

inline double exact_square(const float* a, double a_scale, const float* b, double b_scale, int64_t d) {
  return wide_sum(a, b, d, [=](auto x, auto y) {
    const auto difference = x * a_scale - y * b_scale;
    return difference * difference;
  });
}

// 1 / |row|, or 0 for a row of zeros.
inline double inverse_length(const float* row, int64_t d) {
  const double square = wide_sum(row, row, d, [](auto x, auto) { return x * x; });
  return square > 0.0 ? 1.0 / sqrt(square) : 0.0;
}

// A row as float32: where it lies if it is that, else in `buffer` [d].
inline const float* raw_row(const RowShards& x, int64_t row, float* buffer) {
  if (x.dtype != kFloat32) {
    fetch_row(x, row, nullptr, buffer);
    return buffer;
  }
  const float* at = nullptr;
  with_row(x, row, [&](auto from) { at = reinterpret_cast<const float*>(from); });
  return at;
}

// The distance of a row to `other`, both raw; scales are those of `cosine` (1 / length), not looked at otherwise.
inline float exact_distance(const float* row, double scale, const float* other, double other_scale, int64_t d, bool cosine) {
  return static_cast<float>(cosine ? exact_square(row, scale, other, other_scale, d) : exact_square(row, other, d));
}

}  // namespace TF_NS
