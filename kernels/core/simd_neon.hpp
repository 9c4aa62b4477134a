// NEON on arm64: 4 float lanes. See simd.hpp for what the names mean.
#pragma once

#include <arm_neon.h>

namespace TF_NS {

constexpr uint32_t kLanes = 4;

struct F {
  float32x4_t v;
};
struct U {
  uint32x4_t v;
};

TF_HD F operator+(F a, F b) { return {vaddq_f32(a.v, b.v)}; }
TF_HD F operator-(F a, F b) { return {vsubq_f32(a.v, b.v)}; }
TF_HD F operator*(F a, F b) { return {vmulq_f32(a.v, b.v)}; }
TF_HD F fma(F a, F b, F c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
TF_HD F sqrt(F a) { return {vsqrtq_f32(a.v)}; }
TF_HD U operator+(U a, U b) { return {vaddq_u32(a.v, b.v)}; }
TF_HD U operator-(U a, U b) { return {vsubq_u32(a.v, b.v)}; }
TF_HD U operator&(U a, U b) { return {vandq_u32(a.v, b.v)}; }
TF_HD U operator^(U a, U b) { return {veorq_u32(a.v, b.v)}; }
TF_HD U operator<<(U a, int n) { return {vshlq_u32(a.v, vdupq_n_s32(n))}; }
TF_HD U operator>>(U a, int n) { return {vshlq_u32(a.v, vdupq_n_s32(-n))}; }
TF_HD U shift_right_signed(U a, int n) { return {vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(a.v), vdupq_n_s32(-n)))}; }
TF_HD F to_float(U a) { return {vcvtq_f32_u32(a.v)}; }
TF_HD F to_float_signed(U a) { return {vcvtq_f32_s32(vreinterpretq_s32_u32(a.v))}; }
TF_HD U bits_of(F a) { return {vreinterpretq_u32_f32(a.v)}; }
TF_HD F float_of(U a) { return {vreinterpretq_f32_u32(a.v)}; }
TF_HD F select_lowest_bit(U k, F if_set, F if_clear) { return {vbslq_f32(vtstq_u32(k.v, vdupq_n_u32(1)), if_set.v, if_clear.v)}; }
template <>
TF_HD F splat<F, float>(float x) {
  return {vdupq_n_f32(x)};
}
template <>
TF_HD U splat<U, uint32_t>(uint32_t x) {
  return {vdupq_n_u32(x)};
}
TF_HD F load(const float* p) { return {vld1q_f32(p)}; }
TF_HD void store(float* p, F a) { vst1q_f32(p, a.v); }
TF_HD void store(uint32_t* p, U a) { vst1q_u32(p, a.v); }

struct Word {
  uint32x4_t v;
};
struct WideProduct {
  uint32x4_t first, second;  // (low, high) pairs of lanes 0, 1 and of lanes 2, 3
};
TF_HD WideProduct multiply_wide(Word a, uint32_t m) {
  const uint32x2_t factor = vdup_n_u32(m);
  return {vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a.v), factor)), vreinterpretq_u32_u64(vmull_u32(vget_high_u32(a.v), factor))};
}
TF_HD Word high_half(WideProduct p) { return {vuzp2q_u32(p.first, p.second)}; }
TF_HD Word low_half(WideProduct p) { return {vuzp1q_u32(p.first, p.second)}; }
TF_HD Word xor3(Word a, Word b, Word c) { return {veorq_u32(veorq_u32(a.v, b.v), c.v)}; }
template <>
TF_HD Word splat<Word, uint32_t>(uint32_t x) {
  return {vdupq_n_u32(x)};
}
TF_HD Word blocks_from(uint32_t first) {
  const uint32x4_t offsets = {0, 1, 2, 3};
  return {vaddq_u32(vdupq_n_u32(first), offsets)};
}
TF_HD U to_lanes(Word a) { return {a.v}; }

TF_HD void transpose4(F z[4]) {
  const float32x4_t t0 = vzip1q_f32(z[0].v, z[2].v);
  const float32x4_t t1 = vzip2q_f32(z[0].v, z[2].v);
  const float32x4_t t2 = vzip1q_f32(z[1].v, z[3].v);
  const float32x4_t t3 = vzip2q_f32(z[1].v, z[3].v);
  z[0].v = vzip1q_f32(t0, t2);
  z[1].v = vzip2q_f32(t0, t2);
  z[2].v = vzip1q_f32(t1, t3);
  z[3].v = vzip2q_f32(t1, t3);
}

TF_HD void interleave_quads(F a, F b, F& lo, F& hi) {
  lo = a;
  hi = b;
}

TF_HD void add_signed(float* acc, uint32_t word, float c) {
  const uint32x4_t minus = vdupq_n_u32(bits_of(-c));
  const uint32x4_t sign = vdupq_n_u32(0x80000000u);
  int32x4_t shift = {31, 30, 29, 28};
  for (int part = 0; part < 8; ++part) {
    const uint32x4_t bit = vandq_u32(vshlq_u32(vdupq_n_u32(word), shift), sign);
    const float32x4_t step = vreinterpretq_f32_u32(veorq_u32(minus, bit));
    vst1q_f32(acc + 4 * part, vaddq_f32(vld1q_f32(acc + 4 * part), step));
    shift = vsubq_s32(shift, vdupq_n_s32(4));
  }
}

// Half-width types: widened on load, rounded to nearest even on store.
TF_HD F load(const bfloat16* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))}; }
TF_HD void store(bfloat16* p, F a) {
  const uint32x4_t i = vreinterpretq_u32_f32(a.v);
  const uint32x4_t high = vshrq_n_u32(i, 16);
  const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(i, vdupq_n_u32(0x7FFF)), odd), 16);
  const uint32x4_t words = vbslq_u32(vceqq_f32(a.v, a.v), rounded, vorrq_u32(high, vdupq_n_u32(0x40)));
  vst1_u16(reinterpret_cast<uint16_t*>(p), vmovn_u32(words));
}
TF_HD F load(const float16* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))}; }
TF_HD void store(float16* p, F a) { vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }

}  // namespace TF_NS
