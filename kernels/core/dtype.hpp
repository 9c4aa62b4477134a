// The floating types of tensors, their conversion to and from the type the math is done in, and the two roundings:
// to nearest even ("rne"), and stochastic ("sr": the chance of rounding away equals the discarded fraction).
#pragma once

#include "scalar.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace TF_NS {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What arithmetic on a stored type is done in.
template <class T>
struct math_type {
  using type = float;
};
template <>
struct math_type<double> {
  using type = double;
};
template <class T>
using math_t = typename math_type<T>::type;

TF_HD float to_math(float x) { return x; }
TF_HD double to_math(double x) { return x; }
TF_HD float to_math(bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
TF_HD float to_math(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#elif defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(x.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13 | (magnitude > 0x7C00u ? 0x400000u : 0u));
  // Placing the bits in a float's exponent field scales by 2^-112; multiplying back is exact and makes subnormals right.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
#endif
}

template <class T>
struct Round;  // Round<T>::nearest(x), Round<T>::stochastic(x, r16)

template <>
struct Round<float> {
  TF_HD static float nearest(float x) { return x; }
  TF_HD static float stochastic(float x, uint32_t) { return x; }
};

template <>
struct Round<double> {
  TF_HD static double nearest(double x) { return x; }
  TF_HD static double stochastic(double x, uint32_t) { return x; }
};

template <>
struct Round<bfloat16> {
  TF_HD static bfloat16 nearest(float x) {
    const uint32_t i = bits_of(x);
    const uint32_t rounded = (i + 0x7FFFu + (i >> 16 & 1u)) >> 16;
    const uint32_t quiet_nan = i >> 16 | 0x40u;
    return {static_cast<uint16_t>((i & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded)};
  }
  // Adds 16 random bits below the last kept one and truncates. Never rounds a finite number to infinity.
  TF_HD static bfloat16 stochastic(float x, uint32_t r16) {
    const uint32_t i = bits_of(x);
    const uint32_t magnitude = i & 0x7FFFFFFFu;
    if (magnitude >= 0x7F800000u) return nearest(x);
    uint32_t kept = (magnitude + r16) >> 16;
    kept = kept > 0x7F7Fu ? 0x7F7Fu : kept;
    return {static_cast<uint16_t>((i >> 16 & 0x8000u) | kept)};
  }
};

template <>
struct Round<float16> {
  TF_HD static float16 nearest(float x) {
#if defined(__F16C__)
    return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#elif defined(__CUDA_ARCH__)
    return {bit_cast<uint16_t>(__float2half_rn(x))};
#else
    const uint32_t i = bits_of(x);
    const uint32_t sign = i >> 16 & 0x8000u;
    const uint32_t magnitude = i & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu))};
    if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {
      // Below 2^-14: adding 0.5 lets the float adder round at 2^-24, the spacing of half-precision subnormals.
      return {static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u))};
    }
    return {static_cast<uint16_t>(sign | (((magnitude + 0xFFFu + (magnitude >> 13 & 1u)) >> 13) - 0x1C000u))};
#endif
  }
  // 13 bits are dropped in the normal range, one more for each binary order below 2^-14. Never rounds a finite number to infinity.
  TF_HD static float16 stochastic(float x, uint32_t r16) {
    const uint32_t i = bits_of(x);
    const uint32_t sign = i >> 16 & 0x8000u;
    const uint32_t magnitude = i & 0x7FFFFFFFu;
    if (magnitude >= 0x7F800000u) return nearest(x);
    uint32_t kept;
    if (magnitude >= 0x38800000u) {
      kept = ((magnitude + (r16 >> 3)) >> 13) - 0x1C000u;
    } else {
      const uint32_t exponent = magnitude >> 23;
      const uint32_t dropped = 126u - (exponent == 0u ? 1u : exponent);
      const uint32_t significand = (magnitude & 0x7FFFFFu) | (exponent == 0u ? 0u : 0x800000u);
      if (dropped > 40u) return {static_cast<uint16_t>(sign)};
      const uint64_t noise = dropped >= 16u ? static_cast<uint64_t>(r16) << (dropped - 16u) : r16 >> (16u - dropped);
      kept = static_cast<uint32_t>((significand + noise) >> dropped);
    }
    kept = kept > 0x7BFFu ? 0x7BFFu : kept;
    return {static_cast<uint16_t>(sign | kept)};
  }
};

// Codes that cross the native boundary; python/tenfold/_native.py holds the same table.
enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

}  // namespace TF_NS
