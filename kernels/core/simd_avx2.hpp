// AVX2 with FMA and F16C: 8 float lanes. See simd.hpp for what the names mean.
#pragma once

#include <immintrin.h>

namespace TF_NS {

constexpr uint32_t kLanes = 8;

struct F {
  __m256 v;
};
struct U {
  __m256i v;
};

TF_HD F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
TF_HD F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
TF_HD F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
TF_HD F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
TF_HD F sqrt(F a) { return {_mm256_sqrt_ps(a.v)}; }
TF_HD U operator+(U a, U b) { return {_mm256_add_epi32(a.v, b.v)}; }
TF_HD U operator-(U a, U b) { return {_mm256_sub_epi32(a.v, b.v)}; }
TF_HD U operator&(U a, U b) { return {_mm256_and_si256(a.v, b.v)}; }
TF_HD U operator^(U a, U b) { return {_mm256_xor_si256(a.v, b.v)}; }
TF_HD U operator<<(U a, int n) { return {_mm256_slli_epi32(a.v, n)}; }
TF_HD U operator>>(U a, int n) { return {_mm256_srli_epi32(a.v, n)}; }
TF_HD U shift_right_signed(U a, int n) { return {_mm256_srai_epi32(a.v, n)}; }
// AVX2 has no unsigned conversion. Both halves and high * 65536 are exact, so their sum is the only rounding.
TF_HD F to_float(U a) {
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a.v, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(0xFFFF)));
  return {_mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low)};
}
TF_HD F to_float_signed(U a) { return {_mm256_cvtepi32_ps(a.v)}; }
TF_HD U bits_of(F a) { return {_mm256_castps_si256(a.v)}; }
TF_HD F float_of(U a) { return {_mm256_castsi256_ps(a.v)}; }
TF_HD F select_lowest_bit(U k, F if_set, F if_clear) {
  return {_mm256_blendv_ps(if_clear.v, if_set.v, _mm256_castsi256_ps(_mm256_slli_epi32(k.v, 31)))};
}
template <>
TF_HD F splat<F, float>(float x) {
  return {_mm256_set1_ps(x)};
}
template <>
TF_HD U splat<U, uint32_t>(uint32_t x) {
  return {_mm256_set1_epi32(static_cast<int>(x))};
}
TF_HD F load(const float* p) { return {_mm256_loadu_ps(p)}; }
TF_HD void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
TF_HD void store(uint32_t* p, U a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }

// As in AVX-512: low halves of 64-bit lanes, even and odd lanes apart, high halves ignored.
struct Word {
  __m256i even, odd;
};
TF_HD Word multiply_wide(Word a, uint32_t m) {
  const __m256i factor = _mm256_set1_epi64x(m);
  return {_mm256_mul_epu32(a.even, factor), _mm256_mul_epu32(a.odd, factor)};
}
TF_HD Word high_half(Word p) { return {_mm256_srli_epi64(p.even, 32), _mm256_srli_epi64(p.odd, 32)}; }
TF_HD Word low_half(Word p) { return p; }
TF_HD Word xor3(Word a, Word b, Word c) {
  return {_mm256_xor_si256(_mm256_xor_si256(a.even, b.even), c.even), _mm256_xor_si256(_mm256_xor_si256(a.odd, b.odd), c.odd)};
}
template <>
TF_HD Word splat<Word, uint32_t>(uint32_t x) {
  const __m256i v = _mm256_set1_epi64x(x);
  return {v, v};
}
TF_HD Word blocks_from(uint32_t first) {
  const __m256i base = _mm256_set1_epi64x(first);
  return {_mm256_add_epi64(base, _mm256_setr_epi64x(0, 4, 1, 5)), _mm256_add_epi64(base, _mm256_setr_epi64x(2, 6, 3, 7))};
}
TF_HD U to_lanes(Word a) { return {_mm256_blend_epi32(a.even, _mm256_slli_epi64(a.odd, 32), 0xAA)}; }

TF_HD void transpose4(F z[4]) {
  const __m256 t0 = _mm256_unpacklo_ps(z[0].v, z[1].v);
  const __m256 t1 = _mm256_unpackhi_ps(z[0].v, z[1].v);
  const __m256 t2 = _mm256_unpacklo_ps(z[2].v, z[3].v);
  const __m256 t3 = _mm256_unpackhi_ps(z[2].v, z[3].v);
  z[0].v = _mm256_shuffle_ps(t0, t2, 0x44);
  z[1].v = _mm256_shuffle_ps(t0, t2, 0xEE);
  z[2].v = _mm256_shuffle_ps(t1, t3, 0x44);
  z[3].v = _mm256_shuffle_ps(t1, t3, 0xEE);
}

TF_HD void interleave_quads(F a, F b, F& lo, F& hi) {
  lo.v = _mm256_permute2f128_ps(a.v, b.v, 0x20);
  hi.v = _mm256_permute2f128_ps(a.v, b.v, 0x31);
}

TF_HD void add_signed(float* acc, uint32_t word, float c) {
  const __m256 minus = _mm256_set1_ps(-c);
  const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000u));
  __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  for (int part = 0; part < 4; ++part) {
    const __m256i bit = _mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shift), sign);
    const __m256 step = _mm256_xor_ps(minus, _mm256_castsi256_ps(bit));
    _mm256_storeu_ps(acc + 8 * part, _mm256_add_ps(_mm256_loadu_ps(acc + 8 * part), step));
    shift = _mm256_sub_epi32(shift, _mm256_set1_epi32(8));
  }
}

// Half-width types: widened on load, rounded to nearest even on store.
TF_HD F load(const bfloat16* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16))};
}
TF_HD void store(bfloat16* p, F a) {
  const __m256i i = _mm256_castps_si256(a.v);
  const __m256i high = _mm256_srli_epi32(i, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(0x7FFF)), odd), 16);
  const __m256i quiet_nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet_nan, is_nan);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
TF_HD F load(const float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
TF_HD void store(float16* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace TF_NS
