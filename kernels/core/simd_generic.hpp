// No intrinsics: four lanes as plain arrays, for every CPU that has none of the other instruction sets. See simd.hpp for the names.
#pragma once

namespace TF_NS {

constexpr uint32_t kLanes = 4;

struct F {
  float v[kLanes];
};
struct U {
  uint32_t v[kLanes];
};

#define TF_LANES(RESULT, EXPRESSION)                           \
  RESULT out;                                                  \
  for (uint32_t j = 0; j < kLanes; ++j) out.v[j] = EXPRESSION; \
  return out

TF_HD F operator+(F a, F b) { TF_LANES(F, a.v[j] + b.v[j]); }
TF_HD F operator-(F a, F b) { TF_LANES(F, a.v[j] - b.v[j]); }
TF_HD F operator*(F a, F b) { TF_LANES(F, a.v[j] * b.v[j]); }
TF_HD F fma(F a, F b, F c) { TF_LANES(F, fma(a.v[j], b.v[j], c.v[j])); }
TF_HD F sqrt(F a) { TF_LANES(F, sqrt(a.v[j])); }
TF_HD U operator+(U a, U b) { TF_LANES(U, a.v[j] + b.v[j]); }
TF_HD U operator-(U a, U b) { TF_LANES(U, a.v[j] - b.v[j]); }
TF_HD U operator&(U a, U b) { TF_LANES(U, a.v[j] & b.v[j]); }
TF_HD U operator^(U a, U b) { TF_LANES(U, a.v[j] ^ b.v[j]); }
TF_HD U operator<<(U a, int n) { TF_LANES(U, a.v[j] << n); }
TF_HD U operator>>(U a, int n) { TF_LANES(U, a.v[j] >> n); }
TF_HD U shift_right_signed(U a, int n) { TF_LANES(U, shift_right_signed(a.v[j], n)); }
TF_HD F to_float(U a) { TF_LANES(F, to_float(a.v[j])); }
TF_HD F to_float_signed(U a) { TF_LANES(F, to_float_signed(a.v[j])); }
TF_HD U bits_of(F a) { TF_LANES(U, bits_of(a.v[j])); }
TF_HD F float_of(U a) { TF_LANES(F, float_of(a.v[j])); }
TF_HD F select_lowest_bit(U k, F if_set, F if_clear) { TF_LANES(F, select_lowest_bit(k.v[j], if_set.v[j], if_clear.v[j])); }
template <>
TF_HD F splat<F, float>(float x) {
  TF_LANES(F, x);
}
template <>
TF_HD U splat<U, uint32_t>(uint32_t x) {
  TF_LANES(U, x);
}
TF_HD F load(const float* p) { TF_LANES(F, p[j]); }
TF_HD void store(float* p, F a) {
  for (uint32_t j = 0; j < kLanes; ++j) p[j] = a.v[j];
}
TF_HD void store(uint32_t* p, U a) {
  for (uint32_t j = 0; j < kLanes; ++j) p[j] = a.v[j];
}

struct Word {
  uint32_t v[kLanes];
};
struct WideProduct {
  uint64_t v[kLanes];
};
TF_HD WideProduct multiply_wide(Word a, uint32_t m) { TF_LANES(WideProduct, multiply_wide(a.v[j], m)); }
TF_HD Word high_half(WideProduct p) { TF_LANES(Word, high_half(p.v[j])); }
TF_HD Word low_half(WideProduct p) { TF_LANES(Word, low_half(p.v[j])); }
TF_HD Word xor3(Word a, Word b, Word c) { TF_LANES(Word, xor3(a.v[j], b.v[j], c.v[j])); }
template <>
TF_HD Word splat<Word, uint32_t>(uint32_t x) {
  TF_LANES(Word, x);
}
TF_HD Word blocks_from(uint32_t first) { TF_LANES(Word, first + j); }
TF_HD U to_lanes(Word a) { TF_LANES(U, a.v[j]); }

#undef TF_LANES

TF_HD void transpose4(F z[4]) {
  for (uint32_t row = 0; row < 4; ++row) {
    for (uint32_t column = row + 1; column < 4; ++column) {
      const float t = z[row].v[column];
      z[row].v[column] = z[column].v[row];
      z[column].v[row] = t;
    }
  }
}

TF_HD void interleave_quads(F a, F b, F& lo, F& hi) {
  lo = a;
  hi = b;
}

TF_HD void add_signed(float* acc, uint32_t word, float c) {
  for (uint32_t j = 0; j < 32; ++j) acc[j] += (word >> j & 1u) ? c : -c;
}

// Half-width types: widened on load, rounded to nearest even on store.
template <class T>
TF_HD F load(const T* p) {
  F out;
  for (uint32_t j = 0; j < kLanes; ++j) out.v[j] = to_math(p[j]);
  return out;
}
template <class T>
TF_HD void store(T* p, F a) {
  for (uint32_t j = 0; j < kLanes; ++j) p[j] = Round<T>::nearest(a.v[j]);
}

}  // namespace TF_NS
