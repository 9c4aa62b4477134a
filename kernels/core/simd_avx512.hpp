// AVX-512 (F, BW, DQ, VL): 16 float lanes. See simd.hpp for what the names mean.
#pragma once

#include <immintrin.h>

namespace TF_NS {

constexpr uint32_t kLanes = 16;

struct F {
  __m512 v;
};
struct U {
  __m512i v;
};

TF_HD F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
TF_HD F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
TF_HD F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
TF_HD F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TF_HD F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
TF_HD U operator+(U a, U b) { return {_mm512_add_epi32(a.v, b.v)}; }
TF_HD U operator-(U a, U b) { return {_mm512_sub_epi32(a.v, b.v)}; }
TF_HD U operator&(U a, U b) { return {_mm512_and_si512(a.v, b.v)}; }
TF_HD U operator^(U a, U b) { return {_mm512_xor_si512(a.v, b.v)}; }
TF_HD U operator<<(U a, int n) { return {_mm512_slli_epi32(a.v, static_cast<unsigned>(n))}; }
TF_HD U operator>>(U a, int n) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(n))}; }
TF_HD U shift_right_signed(U a, int n) { return {_mm512_srai_epi32(a.v, static_cast<unsigned>(n))}; }
TF_HD F to_float(U a) { return {_mm512_cvtepu32_ps(a.v)}; }
TF_HD F to_float_signed(U a) { return {_mm512_cvtepi32_ps(a.v)}; }
TF_HD U bits_of(F a) { return {_mm512_castps_si512(a.v)}; }
TF_HD F float_of(U a) { return {_mm512_castsi512_ps(a.v)}; }
TF_HD F select_lowest_bit(U k, F if_set, F if_clear) {
  return {_mm512_mask_blend_ps(_mm512_test_epi32_mask(k.v, _mm512_set1_epi32(1)), if_clear.v, if_set.v)};
}
template <>
TF_HD F splat<F, float>(float x) {
  return {_mm512_set1_ps(x)};
}
template <>
TF_HD U splat<U, uint32_t>(uint32_t x) {
  return {_mm512_set1_epi32(static_cast<int>(x))};
}
TF_HD F load(const float* p) { return {_mm512_loadu_ps(p)}; }
TF_HD void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
TF_HD void store(uint32_t* p, U a) { _mm512_storeu_si512(p, a.v); }

// Philox words live in the low halves of 64-bit lanes, even and odd lanes apart, because vpmuludq multiplies exactly those halves and
// ignores the rest: a product is at once "low word with rubbish above it" and, shifted down, "high word".
struct Word {
  __m512i even, odd;
};
TF_HD Word multiply_wide(Word a, uint32_t m) {
  const __m512i factor = _mm512_set1_epi64(m);
  return {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
}
TF_HD Word high_half(Word p) { return {_mm512_srli_epi64(p.even, 32), _mm512_srli_epi64(p.odd, 32)}; }
TF_HD Word low_half(Word p) { return p; }
TF_HD Word xor3(Word a, Word b, Word c) {
  return {_mm512_ternarylogic_epi64(a.even, b.even, c.even, 0x96), _mm512_ternarylogic_epi64(a.odd, b.odd, c.odd, 0x96)};
}
template <>
TF_HD Word splat<Word, uint32_t>(uint32_t x) {
  const __m512i v = _mm512_set1_epi64(x);
  return {v, v};
}
TF_HD Word blocks_from(uint32_t first) {
  const __m512i even = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i odd = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  const __m512i base = _mm512_set1_epi64(first);
  return {_mm512_add_epi64(base, even), _mm512_add_epi64(base, odd)};
}
TF_HD U to_lanes(Word a) { return {_mm512_mask_blend_epi32(0xAAAA, a.even, _mm512_slli_epi64(a.odd, 32))}; }

TF_HD void transpose4(F z[4]) {
  const __m512 t0 = _mm512_unpacklo_ps(z[0].v, z[1].v);
  const __m512 t1 = _mm512_unpackhi_ps(z[0].v, z[1].v);
  const __m512 t2 = _mm512_unpacklo_ps(z[2].v, z[3].v);
  const __m512 t3 = _mm512_unpackhi_ps(z[2].v, z[3].v);
  z[0].v = _mm512_shuffle_ps(t0, t2, 0x44);
  z[1].v = _mm512_shuffle_ps(t0, t2, 0xEE);
  z[2].v = _mm512_shuffle_ps(t1, t3, 0x44);
  z[3].v = _mm512_shuffle_ps(t1, t3, 0xEE);
}

TF_HD void interleave_quads(F a, F b, F& lo, F& hi) {
  const __m512 first = _mm512_shuffle_f32x4(a.v, b.v, 0x44);  // a0 a1 b0 b1
  const __m512 last = _mm512_shuffle_f32x4(a.v, b.v, 0xEE);   // a2 a3 b2 b3
  lo.v = _mm512_shuffle_f32x4(first, first, 0xD8);
  hi.v = _mm512_shuffle_f32x4(last, last, 0xD8);
}

TF_HD void add_signed(float* acc, uint32_t word, float c) {
  const __m512 plus = _mm512_set1_ps(c);
  const __m512 minus = _mm512_set1_ps(-c);
  const __m512 lo = _mm512_mask_blend_ps(static_cast<__mmask16>(word), minus, plus);
  const __m512 hi = _mm512_mask_blend_ps(static_cast<__mmask16>(word >> 16), minus, plus);
  _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc), lo));
  _mm512_storeu_ps(acc + 16, _mm512_add_ps(_mm512_loadu_ps(acc + 16), hi));
}

// Half-width types: widened on load, rounded to nearest even on store.
TF_HD F load(const bfloat16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
TF_HD void store(bfloat16* p, F a) {
  const __m512i i = _mm512_castps_si512(a.v);
  const __m512i high = _mm512_srli_epi32(i, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(i, _mm512_set1_epi32(0x7FFF)), odd), 16);
  rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
TF_HD F load(const float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
TF_HD void store(float16* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// at[j] = fma(coef, z[j], at[j]) over 64 bfloat16, rounded to nearest even: multiply_add4 of simd.hpp with two registers packed at a time.
// There is no test for NaN: z and coef are finite, so a NaN comes from a weight or from inf - inf, its low 16 bits are zero, and rounding
// cannot carry out of them.
TF_HD __m512i round_up_halves(__m512 value) {
  const __m512i i = _mm512_castps_si512(value);
  const __mmask16 odd = _mm512_test_epi32_mask(i, _mm512_set1_epi32(0x10000));
  const __m512i rounded = _mm512_add_epi32(i, _mm512_set1_epi32(0x7FFF));
  return _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
}
TF_HD void multiply_add4(bfloat16* at, F coef, const F z[4]) {
  alignas(64) static constexpr uint16_t kLowHalf[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                        0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  alignas(64) static constexpr uint16_t kHighHalf[32] = {0, 16, 0, 17, 0, 18, 0, 19, 0, 20, 0, 21, 0, 22, 0, 23,
                                                         0, 24, 0, 25, 0, 26, 0, 27, 0, 28, 0, 29, 0, 30, 0, 31};
  alignas(64) static constexpr uint16_t kTopWords[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                         33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  for (int pair = 0; pair < 2; ++pair) {
    bfloat16* here = at + 32 * pair;
    const __m512i weights = _mm512_loadu_si512(here);
    const __m512i low = _mm512_maskz_permutexvar_epi16(0xAAAAAAAAu, _mm512_load_si512(kLowHalf), weights);
    const __m512i high = _mm512_maskz_permutexvar_epi16(0xAAAAAAAAu, _mm512_load_si512(kHighHalf), weights);
    const __m512i a = round_up_halves(_mm512_fmadd_ps(coef.v, z[2 * pair].v, _mm512_castsi512_ps(low)));
    const __m512i b = round_up_halves(_mm512_fmadd_ps(coef.v, z[2 * pair + 1].v, _mm512_castsi512_ps(high)));
    _mm512_storeu_si512(here, _mm512_permutex2var_epi16(a, _mm512_load_si512(kTopWords), b));
  }
}

}  // namespace TF_NS
