// Streaming log-sum-exp: the math, written once for CPU lanes and CUDA threads.
//
// A row's logits are never kept. A pair (max, sum of exp(logit - max)) stands for those seen so far, and pairs join in any grouping
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867):
//   (m1, s1) + (m2, s2) = (m, s1 exp(m1 - m) + s2 exp(m2 - m)),  m = max(m1, m2)
// The empty pair is (lowest finite float, 0) and not (-inf, 0), so that no inf - inf arises from a vocabulary column whose bias is -inf.
// A NaN among the logits may be lost by `max`, but always reaches `sum`, and with it the loss.
#pragma once

#include "logprob_api.hpp"

#include "../core/scalar.hpp"

namespace TF_NS {

constexpr float kNoLogit = -3.402823466e38f;

// Fused where the target has the instruction. Unlike the random numbers, a logit is not promised to the bit across instruction sets,
// so the exact emulation in scalar.hpp would only cost time.
TF_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) for x <= 0, within 2 ulp above 2^-126, zero below: x = k ln 2 + r, |r| <= ln(2)/2, exp(r) by the polynomial of Cephes (Moshier),
// 2^k by its exponent bits. Adding 1.5 * 2^23 rounds x / ln 2 to an integer and leaves it in the low bits. NaN stays NaN.
TF_HD float exp_nonpositive(float x) {
  const float t = multiply_add(x, 1.44269504f, 12582912.0f);
  const float k = t - 12582912.0f;
  float r = multiply_add(k, -0.693359375f, x);
  r = multiply_add(k, 2.12194440e-4f, r);
  float p = multiply_add(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = multiply_add(p, r, 8.3334519073e-3f);
  p = multiply_add(p, r, 4.1665795894e-2f);
  p = multiply_add(p, r, 1.6666665459e-1f);
  p = multiply_add(p, r, 5.0000001201e-1f);
  p = multiply_add(p * r, r, r) + 1.0f;
  const float power = float_of((bits_of(t) << 23u) + 0x3F800000u);
  return x < -87.0f ? 0.0f : p * power;
}

struct Lse {
  float max;
  float sum;
};

TF_HD Lse lse_empty() { return {kNoLogit, 0.0f}; }

TF_HD float larger(float a, float b) { return b > a ? b : a; }

TF_HD Lse lse_join(Lse a, Lse b) {
  const float m = larger(a.max, b.max);
  return {m, multiply_add(a.sum, exp_nonpositive(a.max - m), b.sum * exp_nonpositive(b.max - m))};
}

TF_HD Lse lse_push(Lse a, float logit) {
  const float m = larger(a.max, logit);
  return {m, multiply_add(a.sum, exp_nonpositive(a.max - m), exp_nonpositive(logit - m))};
}

}  // namespace TF_NS
