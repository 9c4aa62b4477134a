// The math of a perturbed weight for one element, for host and device: out = round(fma(coef, z, w)), with the z of zo.hpp.
#pragma once

#include "../zo/zo.hpp"
#include "dual_api.hpp"

namespace TF_NS {

constexpr uint32_t kHalvesGaussian = 7;  // "gauss16": two normals from one word

// z of elements first .. first + 3, before rounding; `first` is a multiple of 4.
TF_HD void direction_quad(const Sequence& s, uint32_t dist, uint64_t first, float z[4]) {
  if (dist == kRademacher) {
    const uint32_t word = word_of(philox_block(first / 128, s), static_cast<uint32_t>(first % 128) / 32);
    for (uint32_t k = 0; k < 4; ++k) z[k] = sign_of_bit(word, static_cast<uint32_t>(first % 32) + k);
  } else if (dist == kHalvesGaussian) {
    const PhiloxBlock<uint32_t> x = philox_block(first / 8, s);
    for (uint32_t k = 0; k < 2; ++k) {
      const uint32_t word = word_of(x, static_cast<uint32_t>(first % 8) / 2 + k);
      box_muller(word << 16 | 0x8000u, word & 0xFFFF0000u, z[2 * k], z[2 * k + 1]);
    }
  } else {
    gaussian_block(first / 4, s, z);
  }
}

template <class T, class O>
TF_HD O perturbed(T w, float z, math_t<T> coef) {
  return Round<O>::nearest(fma(coef, static_cast<math_t<T>>(z), to_math(w)));
}

}  // namespace TF_NS
