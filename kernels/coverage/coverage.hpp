// What candidate j is worth to row i, once, for host lanes and device threads: T is a float or a register of them.
//
// similarity = scale * (v - floor): v is -|z_i - z_j|^2 or -|z_i - z_j| above minus the largest distance, the cosine above -1 at a scale of
// 1/2, its square, exp(-gamma |.|^2), or the inner product above 0. Gains are sums of max(0, v - covered).
#pragma once

#include "coverage_api.hpp"

#include "../logprob/logprob.hpp"

namespace TF_NS {

using namespace tenfold;

TF_HD float smaller(float a, float b) { return b < a ? b : a; }
TF_HD float root(float a) { return sqrt(a); }
TF_HD float exp_of(float a) { return exp_nonpositive(a); }

TF_HD bool is_distance(int kind) { return kind == kSquared || kind == kDistance; }
TF_HD double cover_scale(int form, int kind) { return form == kFromPoints && kind == kCosine01 ? 0.5 : 1.0; }

// minus |z_i - z_j|^2, at most 0, exactly 0 for equal points (norms are inner products in the order of `dot`).
template <class T>
TF_HD T minus_square(T dot, T norm_i, T norm_j) {
  return smaller((dot + dot - norm_j) - norm_i, T{});
}

template <int kind, class T>
TF_HD T value_of(T dot, T norm_i, T norm_j, float gamma) {
  if (kind == kSquared) return minus_square(dot, norm_i, norm_j);
  if (kind == kDistance) return T{} - root(T{} - minus_square(dot, norm_i, norm_j));
  if (kind == kCosine2) return dot * dot;
  if (kind == kGaussian) return exp_of(minus_square(dot, norm_i, norm_j) * gamma);
  return dot;
}

}  // namespace TF_NS
