// Picks the vector types F (float lanes), U (uint32 lanes) and Word (Philox state lanes) of the instruction set this file is compiled for.
// Each simd_*.hpp defines the same names:
//   kLanes                      number of float lanes
//   F, U                        with + - * & ^ << >> as far as normal.hpp uses them; load and store, also of half-width types
//   Word                        Philox words; multiply_wide, high_half, low_half, xor3, blocks_from, to_lanes
//   transpose4(F[4])            from one register per Philox word to element order in memory
//   interleave_quads(a, b, lo, hi)  groups of four lanes in turn from a and b: a0 b0 a1 b1 ... over lo, then hi
//   add_signed(acc, word, c)    acc[j] += bit j of word ? c : -c, for 32 elements
#pragma once

#include "dtype.hpp"

#if defined(TF_ISA_AVX512)
#include "simd_avx512.hpp"
#elif defined(TF_ISA_AVX2)
#include "simd_avx2.hpp"
#elif defined(TF_ISA_NEON)
#include "simd_neon.hpp"
#else
#include "simd_generic.hpp"
#endif

namespace TF_NS {

// at[j] = fma(coef, z[j], at[j]) for four registers of z, rounded to nearest even into the type of `at`.
template <class T>
TF_HD void multiply_add4(T* at, F coef, const F z[4]) {
  for (uint32_t k = 0; k < 4; ++k) store(at + k * kLanes, fma(coef, z[k], load(at + k * kLanes)));
}

// Which block lane p works on, relative to the first: chosen so that transpose4, which moves nothing across 128-bit parts, leaves the
// elements in memory order.
constexpr uint32_t block_of_lane(uint32_t p) { return (kLanes / 4) * (p % 4) + p / 4; }

}  // namespace TF_NS
