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

// Of the numbers of a row above a limit: the sum of x - limit, and how many.
struct Above {
  double sum, count;
};

// The greatest T that is not above x, or a neighbour of it.
template <class T>
TF_HD T rounded_down(double x) {
  T y = static_cast<T>(x);
  if (static_cast<double>(y) > x) {
    const T size = static_cast<T>(x < 0.0 ? -x : x);
    y -= size * (sizeof(T) == 4 ? T(1.2e-7) : T(2.3e-16)) + (sizeof(T) == 4 ? T(1e-45) : T(5e-324));
  }
  return y;
}

// theta with sum max(x - theta, 0) = radius, which rises by Newton's method from the higher of two bounds below it: the largest number
// alone takes part (of_one), or all do (of_all; a mean over -inf as well is a bound if it is not negative).
template <class T, class Look>
TF_HD T simplex_threshold(double of_all, double of_one, double radius, const Look& above) {
  double theta = of_all >= 0.0 && of_all > of_one ? of_all : of_one;
  double count = -1.0;
  T limit = rounded_down<T>(theta);
  for (int step = 0; step < 200; ++step) {
    const Above found = above(limit);
    if (found.count == 0.0) {  // the largest number itself was rounded away
      theta = of_one;
      break;
    }
    theta = static_cast<double>(limit) + (found.sum - radius) / found.count;
    if (found.count == count) break;
    count = found.count;
    const T next = rounded_down<T>(theta);
    if (!(next > limit)) break;
    limit = next;
  }
  return static_cast<T>(theta);
}

constexpr double kNear = 1e-6;

// The lowest float score that may be the best in exact arithmetic. Rounding goes with what is multiplied: for a word whose score is not
// below `best`, |q| |w| and |w|^2 are within a few |q|^2 + 2 |best|. square: |q|^2.
TF_HD float near_bound(float best, double square, int64_t width, bool cosine) {
  const double size = best < 0.0f ? -static_cast<double>(best) : static_cast<double>(best);
  const double most = cosine ? 1.0 : 1.0 + square + 2.0 * size;
  return static_cast<float>(static_cast<double>(best) - kNear * (1.0 + static_cast<double>(width) / 1024.0) * most);
}

// What turns a product into a score: of the query, 1 / |q| or |q|^2 / 2; of the word likewise.
struct Scale {
  float query;
  bool cosine;
  TF_HD float operator()(float product, float word) const { return cosine ? product * word * query : product - word - query; }
};
TF_HD Scale scale_by(double square, bool cosine) {
  return {static_cast<float>(cosine ? (square > 0.0 ? 1.0 / sqrt(square) : 0.0) : 0.5 * square), cosine};
}
// Of a word, from |w|^2.
TF_HD float word_weight(float square, bool cosine) {
  if (!cosine) return 0.5f * square;
  return square > 0.0f ? 1.0f / sqrt(square) : 0.0f;
}
TF_HD double exact_score(double product, double own, double square, bool cosine) {
  if (!cosine) return product - 0.5 * own - 0.5 * square;
  return own > 0.0 && square > 0.0 ? product / sqrt(own) / sqrt(square) : 0.0;
}

// pred - (target - eta (other - target))
template <class M>
TF_HD M apart(M pred, M target, M other, M eta) {
  return pred - (target - eta * (other - target));
}

}  // namespace TF_NS
