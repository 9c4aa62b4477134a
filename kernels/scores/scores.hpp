// The math of one row of logits, once for host and device. The definitions: scores_reference.py.
//
// A row is summed over the classes other than its label, about their largest logit; the label joins at the end. Where the label's
// probability p is nearly one, 1 - p is then a sum of small numbers and keeps its digits. Partial sums join in any grouping (Milakov and
// Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867).
#pragma once

#include "scores_api.hpp"

#include "../logprob/logprob.hpp"

#include <cmath>

namespace TF_NS {

constexpr int64_t kScoreBlock = 2048;     // logits summed as one block
constexpr float kLeastExponent = -87.0f;  // exp of it is still a normal number; a logit further below the largest counts as this

// Of some classes: the two largest logits and, with d = x - max, the sums of e = exp(d), of e d and of e^2.
struct OtherSums {
  float max, second, s, a, q;
};

TF_HD OtherSums other_none() { return {kNoLogit, kNoLogit, 0.0f, 0.0f, 0.0f}; }

TF_HD float smaller(float a, float b) { return b < a ? b : a; }

// The sums about another maximum, max >= r.max.
TF_HD OtherSums other_about(OtherSums r, float max) {
  const float shift = r.max - max;
  const bool nothing = r.max == kNoLogit;
  const float c = nothing ? 0.0f : exp_nonpositive(shift);
  return {max, r.second, c * r.s, nothing ? 0.0f : c * multiply_add(shift, r.s, r.a), c * c * r.q};
}

TF_HD OtherSums other_join(OtherSums x, OtherSums y) {
  const float max = larger(x.max, y.max);
  const float second = larger(smaller(x.max, y.max), larger(x.second, y.second));
  x = other_about(x, max);
  y = other_about(y, max);
  return {max, second, x.s + y.s, x.a + y.a, x.q + y.q};
}

struct RowScore {
  float el2n, loss, entropy, margin, least_confidence, label_margin;
  float top;        // the largest logit
  float log_total;  // ln sum exp(x - top)
  bool hopeless;    // NaN, +inf, or nothing but -inf
};

// `own` is the label's logit.
TF_HD RowScore score_of(OtherSums others, float own) {
  RowScore out = {};
  const float top = larger(others.max, own);
  const OtherSums r = other_about(others, top);
  const float below = top - own;  // infinite where the label is ruled out
  const float own_e = exp_nonpositive(-below);
  const float best_other = others.max == kNoLogit ? 0.0f : exp_nonpositive(others.max - top);
  const float total = r.s + own_e;
  const float share = r.s / total;
  const float scale = 1.0f / total;
  const float rival = own >= others.max ? others.max : larger(own, others.second);
  out.top = top;
  out.hopeless = !(total > 0.0f && total < 3.0e38f && top < 3.4028235e38f);
  out.log_total = own == top ? ::log1pf(r.s) : ::logf(total);
  out.el2n = ::sqrtf(r.q * scale * scale + share * share);
  out.loss = out.log_total + below;
  out.entropy = out.log_total - (r.a - (own_e > 0.0f ? own_e * below : 0.0f)) * scale;
  out.margin = (1.0f - (rival == kNoLogit ? 0.0f : exp_nonpositive(rival - top))) * scale;
  out.least_confidence = own == top ? share : (total - 1.0f) * scale;
  out.label_margin = (own_e - best_other) * scale;
  return out;
}

TF_HD float not_a_number() { return float_of(0x7FC00000u); }

// Writes what is wanted of row r. `label_valid` says whether the label is a class, `correct` whether it is the likeliest one.
TF_HD void write_scores(const tenfold::ScoreArgs& a, int64_t r, const RowScore& s, bool label_valid, bool correct) {
  const bool fine = label_valid && !s.hopeless;
  const float nan = not_a_number();
  const float el2n = fine ? s.el2n : nan;
  if (a.el2n != nullptr) a.el2n[r] = el2n;
  if (a.grand != nullptr) a.grand[r] = el2n * ::sqrtf(1.0f + a.norms[r]);
  if (a.loss != nullptr) a.loss[r] = fine ? s.loss : nan;
  if (a.entropy != nullptr) a.entropy[r] = fine ? s.entropy : nan;
  if (a.margin != nullptr) a.margin[r] = fine ? s.margin : nan;
  if (a.least_confidence != nullptr) a.least_confidence[r] = fine ? s.least_confidence : nan;
  if (a.label_margin != nullptr) a.label_margin[r] = fine ? s.label_margin : nan;
  if (a.correct != nullptr) a.correct[r] = fine && correct ? 1 : 0;
}

// One observation of one sample.
TF_HD void observe(const tenfold::DynamicsArgs& a, int64_t r) {
  const int64_t i = a.indices[r];
  const uint8_t now = a.correct[r] != 0 ? 1 : 0;
  a.forget[i] += a.last[i] != 0 && now == 0 ? 1 : 0;
  a.hits[i] += now;
  a.seen[i] += 1;
  a.aum[i] += a.label_margin[r];
  a.el2n_sum[i] += a.el2n[r];
  a.ever[i] = static_cast<uint8_t>(a.ever[i] | now);
  a.last[i] = now;
}

}  // namespace TF_NS
