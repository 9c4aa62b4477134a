// One lane: the scalar versions of the operations that normal.hpp and philox.hpp are written in.
// They serve CUDA threads, loop tails on the CPU and tests. Vector versions with the same names stand in simd_*.hpp.
#pragma once

#include "portable.hpp"

#include <cmath>
#include <cstring>

namespace TF_NS {

template <class To, class From>
TF_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

#if !defined(__CUDA_ARCH__) && !defined(__FMA__) && !defined(__ARM_FEATURE_FMA)
// Exact float32 fma for CPUs without the instruction. The product of two floats is exact in double; TwoSum (Knuth) gives the error of
// the addition; forcing the last bit odd when the sum is inexact ("round to odd", Boldo & Melquiond 2008) makes the final
// rounding to float the only one that counts. Inf and NaN have no finite error term and pass through.
TF_HD float fma_by_double(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  const double sum = product + addend;
  const double virtual_addend = sum - product;
  const double error = (product - (sum - virtual_addend)) + (addend - virtual_addend);
  uint64_t sum_bits = bit_cast<uint64_t>(sum);
  const bool inexact = error > 0.0 || error < 0.0;  // false for NaN
  const bool even = (sum_bits & 1u) == 0u;
  const bool away = (error > 0.0) == (sum > 0.0);  // the exact sum is larger in magnitude
  const uint64_t step = away ? uint64_t{1} : ~uint64_t{0};
  sum_bits += (inexact && even) ? step : uint64_t{0};
  return static_cast<float>(bit_cast<double>(sum_bits));
}
#endif

TF_HD float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return fma_by_double(a, b, c);
#endif
}

TF_HD double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

TF_HD float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

TF_HD double sqrt(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

TF_HD float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

TF_HD double divide(double a, double b) { return a / b; }

// Rounds to nearest even, as every conversion instruction does.
TF_HD float to_float(uint32_t x) { return static_cast<float>(x); }
TF_HD float to_float_signed(uint32_t x) { return static_cast<float>(static_cast<int32_t>(x)); }
TF_HD uint32_t bits_of(float x) { return bit_cast<uint32_t>(x); }
TF_HD float float_of(uint32_t x) { return bit_cast<float>(x); }
TF_HD uint32_t shift_right_signed(uint32_t x, int n) { return static_cast<uint32_t>(static_cast<int32_t>(x) >> n); }
TF_HD float select_lowest_bit(uint32_t k, float if_set, float if_clear) { return (k & 1u) ? if_set : if_clear; }

template <class T, class S>
TF_HD T splat(S value) {
  return T(value);
}

// Philox state of one lane.
TF_HD uint64_t multiply_wide(uint32_t a, uint32_t m) {
#if defined(__CUDA_ARCH__)
  uint64_t product;  // written out: nvcc 13.0 adds zeros to the high half of its own 64-bit product, 20 times per Philox block
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(m));
  return product;
#else
  return static_cast<uint64_t>(a) * m;
#endif
}
TF_HD uint32_t high_half(uint64_t product) { return static_cast<uint32_t>(product >> 32); }
TF_HD uint32_t low_half(uint64_t product) { return static_cast<uint32_t>(product); }
TF_HD uint32_t xor3(uint32_t a, uint32_t b, uint32_t c) { return a ^ b ^ c; }

}  // namespace TF_NS
