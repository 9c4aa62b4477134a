// The math of one element, for host and device. Formulas: attack_reference.py, guidance_reference.py.
#pragma once

#include "attack_api.hpp"

#include "../core/dtype.hpp"

namespace TF_NS {

using namespace tenfold;

struct AdamNumbers {
  float decay, keep1, take1, keep2, take2, spread, eps, rate;
};

TF_HD AdamNumbers adam_numbers(const SteAdamArgs& a) {
  return {static_cast<float>(a.weight_decay), static_cast<float>(a.beta1),
          static_cast<float>(1.0 - a.beta1),  static_cast<float>(a.beta2),
          static_cast<float>(1.0 - a.beta2),  static_cast<float>(1.0 / a.correction2),
          static_cast<float>(a.eps),          static_cast<float>(a.lr / a.correction1)};
}

// One element of Adam; `product` is that of the gradient with the table.
TF_HD float adam_step(const AdamNumbers& n, float product, float p, float& m, float& v) {
  float g = product < -1.0f ? -1.0f : product;
  g = g > 1.0f ? 1.0f : g;
  g = g + n.decay * p;
  m = n.keep1 * m + n.take1 * g;
  v = n.keep2 * v + n.take2 * (g * g);
  return p - n.rate * (m / (sqrt(v) * n.spread + n.eps));
}

struct StepWeights {
  double of_x, of_out;
};

// The weights of x and of the model's output in a DDIM step from abar = a to b. kind: 0 noise, 1 v, 2 the sample.
TF_HD StepWeights step_weights(double a, double b, int kind) {
  const double r = sqrt(a), s = sqrt(1.0 - a), rb = sqrt(b), sb = sqrt(1.0 - b);
  if (kind == 0) return {rb / r, sb - rb * s / r};
  if (kind == 1) return {rb * r + sb * s, sb * r - rb * s};
  const double ratio = s > 0.0 ? sb / s : 0.0;
  return {ratio, rb - ratio * r};
}

template <class M>
TF_HD M guided(M base, M out, M guidance) {
  return base + guidance * (out - base);
}

template <class M>
struct Safe {
  M out, after;
};

template <class M>
TF_HD Safe<M> safe_step(const LatentArgs& a, M u, M c, M s, M v, M guidance) {
  const M far = c - s;
  const M size = (far < M(0) ? -far : far) * static_cast<M>(a.number[0]);
  const M mu = far >= static_cast<M>(a.number[1]) ? M(0) : (size > M(1) ? M(1) : size);
  const M away = mu * (s - u) + static_cast<M>(a.number[2]) * v;
  const M beta = static_cast<M>(a.number[3]), rest = static_cast<M>(1.0 - a.number[3]);
  return {u + guidance * ((c - u) - (a.kind != 0 ? away : M(0))), beta * v + rest * away};
}

template <class M>
TF_HD M sign_of(M g) {
  return g > M(0) ? M(1) : (g < M(0) ? M(-1) : g);  // NaN stays
}

// pred - (target - eta (other - target))
template <class M>
TF_HD M apart(M pred, M target, M other, M eta) {
  return pred - (target - eta * (other - target));
}

}  // namespace TF_NS
