// The math of Sophia for one element (Liu et al., arXiv 2305.14342), for host and device. Traversal stands in sophia_cpu.cpp and
// sophia_cuda.cu; the definition, rounding by rounding, in sophia_reference.py.
#pragma once

#include "../core/dtype.hpp"
#include "../core/philox.hpp"
#include "sophia_api.hpp"

namespace TF_NS {

// The scalars of a step in the type of the math. grad_scale is inv_scale, negated to maximize.
template <class M>
struct SophiaScalars {
  M beta1, one_minus_beta1, beta2, one_minus_beta2, denom_scale, eps, rate, decay, shrink, grad_scale;
};

template <class M>
TF_HD SophiaScalars<M> sophia_scalars(const tenfold::SophiaStepArgs& a, float inv_scale) {
  return {M(a.beta1),       M(a.one_minus_beta1),
          M(a.beta2),       M(a.one_minus_beta2),
          M(a.denom_scale), M(a.eps),
          M(a.rate),        M(a.decay),
          M(a.shrink),      M(a.maximize ? -inv_scale : inv_scale)};
}

TF_HD bool is_finite(float x) { return (bits_of(x) & 0x7FFFFFFFu) < 0x7F800000u; }
TF_HD bool is_finite(double x) { return (bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFull) < 0x7FF0000000000000ull; }
TF_HD float magnitude(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }
TF_HD double magnitude(double x) { return x < 0 ? -x : x; }

template <class M>
TF_HD M sophia_exp_avg(M m, M g, const SophiaScalars<M>& s) {
  return fma(s.one_minus_beta1, g, s.beta1 * m);
}

template <class M>
TF_HD M sophia_square(M h, M g, const SophiaScalars<M>& s) {
  return fma(s.one_minus_beta2 * g, g, s.beta2 * h);
}

// clip(m / d, -1, 1); comparisons are written so that NaN passes.
template <int kDenom, class M>
TF_HD M sophia_clipped(M m, M h, const SophiaScalars<M>& s) {
  if (kDenom == tenfold::kDenomSign) return m > M(0) ? M(1) : m < M(0) ? M(-1) : m;
  const M scaled = s.denom_scale * h;
  M d;
  if (kDenom == tenfold::kDenomAdd) {
    d = (scaled < M(0) ? M(0) : scaled) + s.eps;
  } else {
    d = scaled < s.eps ? s.eps : scaled;
  }
  const M r = divide(m, d);
  const M low = r < M(-1) ? M(-1) : r;
  return low > M(1) ? M(1) : low;
}

template <class M>
TF_HD M sophia_moved(M theta, M u, const SophiaScalars<M>& s) {
  return fma(s.rate, u, s.decay * theta);
}

// Kahan's sum, theta + c being the weight: returns the new theta in its type and puts what it lacks in c.
template <class T>
TF_HD T sophia_kahan(math_t<T> theta, math_t<T> u, T& c, const SophiaScalars<math_t<T>>& s) {
  using M = math_t<T>;
  const M delta = fma(s.rate, u, s.shrink * theta) + to_math(c);
  const T moved = Round<T>::nearest(theta + delta);
  c = Round<T>::nearest(delta - (to_math(moved) - theta));
  return moved;
}

// Whether an element is inside the clip, as the authors count wins.
template <class M>
TF_HD bool sophia_wins(M m, M h, const SophiaScalars<M>& s) {
  return magnitude(m) < h * s.denom_scale;
}

TF_HD bool differ(float a, float b) { return bits_of(a) != bits_of(b); }
TF_HD bool differ(double a, double b) { return bit_cast<uint64_t>(a) != bit_cast<uint64_t>(b); }
TF_HD bool differ(bfloat16 a, bfloat16 b) { return a.bits != b.bits; }
TF_HD bool differ(float16 a, float16 b) { return a.bits != b.bits; }

// ---- 8 bits: sophia8_reference.py ------------------------------------------------------------------------------------------------
// Codes are equally spaced in the bits of x / scale below those of 1.0; r shifts what is rounded: half a step, or random bits.

constexpr int64_t kByteBlock = 256;
constexpr uint32_t kOneBits = 0x3F800000u;

// Levels are 3 * 2^kShift bits apart.
template <bool kHessian>
struct Code {
  static constexpr int kShift = kHessian ? 18 : 19;
  static constexpr uint32_t kStep = 3u << kShift;
  static constexpr int32_t kTop = kHessian ? 255 : 127;
  static constexpr uint32_t kNearest = kStep / 2;
  TF_HD static uint32_t shift_of(uint32_t r16) { return r16 * (3u << (kShift - 16)); }  // r16 * kStep / 2^16
  TF_HD static int32_t level(uint32_t ratio_bits, uint32_t shift) {
    const uint32_t down = (kOneBits - ratio_bits + shift) >> kShift;
    return kTop - static_cast<int32_t>((down * 43691u) >> 17);  // down / 3, below 2^16
  }
  TF_HD static float value(uint32_t level) { return float_of(level == 0u ? 0u : kOneBits - (static_cast<uint32_t>(kTop) - level) * kStep); }
};

constexpr uint32_t kNaNCode = 0x80u;

// What a block's scale is the largest of, as bits: infinities and NaN do not count.
TF_HD uint32_t scale_bits(float x) {
  const uint32_t size = bits_of(x) & 0x7FFFFFFFu;
  return size < 0x7F800000u ? size : 0u;
}
TF_HD uint32_t hessian_scale_bits(float h) {
  const uint32_t bits = bits_of(h);
  return bits < 0x7F800000u ? bits : 0u;  // a sign makes it large
}

TF_HD uint32_t encode_exp_avg(float m, float scale, uint32_t shift) {
  const uint32_t bits = bits_of(m);
  const float ratio = divide(magnitude(m), scale);
  uint32_t at = bits_of(ratio);  // NaN where the block is all zeros
  at = at > kOneBits ? (at <= 0x7F800000u ? kOneBits : 0u) : at;
  const int32_t level = Code<false>::level(at, shift);
  const uint32_t code = level > 0 ? static_cast<uint32_t>(level) | (bits >> 31) << 7 : 0u;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? kNaNCode : scale > 0.0f ? code : 0u;
}
TF_HD float decode_exp_avg(uint32_t code, float scale) {
  const float value = Code<false>::value(code & 0x7Fu) * scale;
  const float signed_value = float_of(bits_of(value) | (code & 0x80u) << 24);
  return code == kNaNCode ? float_of(0x7FC00000u) : signed_value;
}

// scale is the root of the block's largest.
TF_HD uint32_t encode_hessian(float h, float scale, uint32_t shift) {
  const float positive = h > 0.0f ? h : 0.0f;
  uint32_t at = bits_of(divide(sqrt(positive), scale));
  at = at > kOneBits ? kOneBits : at;
  int32_t level = Code<true>::level(at, shift);
  level = level < 1 ? 1 : level;
  const bool odd = !(h > 0.0f) && !(h <= 0.0f);  // NaN counts as infinite
  const uint32_t code = static_cast<uint32_t>(level);
  return odd || positive > 3.402823466e38f ? 255u : positive > 0.0f ? code : 0u;
}
TF_HD float decode_hessian(uint32_t code, float scale) {
  const float root = Code<true>::value(code) * scale;
  return root * root;
}

}  // namespace TF_NS
