// "tfz-normal v1": two Philox words to two standard normals by Box-Muller, with the same bits on every target.
//
// Bit-equality is by construction: only IEEE operations that round once (add, multiply, fma, sqrt, integer conversion) in one fixed order.
// Compile with contraction off (-ffp-contract=off, --fmad=false): an fma stands exactly where it is written.
//   log:     argument reduction to [sqrt(1/2), sqrt(2)) and a degree-8 polynomial (the classic Cephes logf coefficients)
//   sin/cos: the angle in quarter turns is taken from the word's two top bits, so the reduction is exact; Cephes sinf/cosf polynomials
// Maximum error against Box-Muller in float64 is 5.9e-7; |z| <= 6.76.
#pragma once

#include "scalar.hpp"

namespace TF_NS {

// Uniform on (0, 1]: the centre of the word's cell, rounded to float.
template <class F, class U>
TF_HD F uniform_from_word(U word) {
  return fma(to_float(word), splat<F>(0x1p-32f), splat<F>(0x1p-33f));
}

// sqrt(-2 log u)
template <class F, class U>
TF_HD F radius(U word) {
  const U i = bits_of(uniform_from_word<F>(word));
  const U exponent = shift_right_signed(i - splat<U>(0x3f3504f3u), 23);
  const F f = float_of(i - (exponent << 23)) - splat<F>(1.0f);
  const F s = f * f;
  F p = splat<F>(7.0376836292E-2f);
  p = fma(p, f, splat<F>(-1.1514610310E-1f));
  p = fma(p, f, splat<F>(1.1676998740E-1f));
  p = fma(p, f, splat<F>(-1.2420140846E-1f));
  p = fma(p, f, splat<F>(1.4249322787E-1f));
  p = fma(p, f, splat<F>(-1.6668057665E-1f));
  p = fma(p, f, splat<F>(2.0000714765E-1f));
  p = fma(p, f, splat<F>(-2.4999993993E-1f));
  p = fma(p, f, splat<F>(3.3333331174E-1f));
  F y = (s * f) * p;
  y = fma(splat<F>(-0.5f), s, y);
  y = f + y;
  y = fma(to_float_signed(exponent), splat<F>(0x1.62e430p-1f), y);
  return sqrt(splat<F>(-2.0f) * y);
}

template <class F, class U>
TF_HD void box_muller(U word0, U word1, F& z0, F& z1) {
  const F r = radius<F>(word0);
  const U quarter = (word1 + splat<U>(0x20000000u)) >> 30;
  const F a = to_float_signed(word1 - (quarter << 30)) * splat<F>(0x1.921fb6p-30f);
  const F t = a * a;
  F sp = splat<F>(-1.9515295891E-4f);
  sp = fma(sp, t, splat<F>(8.3321608736E-3f));
  sp = fma(sp, t, splat<F>(-1.6666654611E-1f));
  const F sine = fma(sp * t, a, a);
  F cp = splat<F>(2.443315711809948E-5f);
  cp = fma(cp, t, splat<F>(-1.388731625493765E-3f));
  cp = fma(cp, t, splat<F>(4.166664568298827E-2f));
  const F cosine = fma(cp * t, t, fma(splat<F>(-0.5f), t, splat<F>(1.0f)));
  const F s = select_lowest_bit(quarter, cosine, sine);
  const F c = select_lowest_bit(quarter, sine, cosine);
  const U sine_sign = (quarter & splat<U>(2u)) << 30;
  const U cosine_sign = ((quarter + splat<U>(1u)) & splat<U>(2u)) << 30;
  z0 = r * float_of(bits_of(c) ^ cosine_sign);
  z1 = r * float_of(bits_of(s) ^ sine_sign);
}

// "tfz-normal16 v1": two normals of one word, the radius from its low half, the angle from its high half; |z| <= 4.85.
template <class F, class U>
TF_HD void normals_of_word(U word, F& even, F& odd) {
  box_muller((word << 16) + splat<U>(0x8000u), word & splat<U>(0xFFFF0000u), even, odd);
}

}  // namespace TF_NS
