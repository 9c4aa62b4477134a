// The math of the zeroth-order passes for one element, for host and device. Traversal stands in zo_cpu.cpp and zo_cuda.cu.
//
// The pass:      theta = round(fma(coef, z, theta)), z regenerated from its counter (MeZO, Malladi et al., arXiv 2305.17333)
// The generator: philox.hpp, normal.hpp. Element i of a direction sits in
//   Gaussian    block i/4,   position i%4
//   Rademacher  block i/128, word (i%128)/32, bit i%32 (1 is +1)
//   uniform     block i/4,   word i%4
//   gauss16     block i/8,   word (i%8)/2, the cosine for even i, the sine for odd
//   mask        block i/4,   word i%4
//   rounding    block i/8,   word (i%8)/2, low half for even i
#pragma once

#include "../core/dtype.hpp"
#include "../core/normal.hpp"
#include "../core/philox.hpp"
#include "zo_api.hpp"

namespace TF_NS {

using tenfold::Term;
using tenfold::View;

// Four consecutive normals, elements 4*block .. 4*block+3.
TF_HD void gaussian_block(uint64_t block, const Sequence& s, float z[4]) {
  const PhiloxBlock<uint32_t> x = philox_block(block, s);
  box_muller(x.w0, x.w1, z[0], z[1]);
  box_muller(x.w2, x.w3, z[2], z[3]);
}

TF_HD uint32_t word_of(const PhiloxBlock<uint32_t>& x, uint32_t j) { return j == 0 ? x.w0 : j == 1 ? x.w1 : j == 2 ? x.w2 : x.w3; }

TF_HD float sign_of_bit(uint32_t word, uint32_t bit) { return (word >> bit & 1u) ? 1.0f : -1.0f; }

TF_HD uint32_t half_of_word(uint32_t word, uint64_t element) { return (element & 1u) ? word >> 16 : word & 0xFFFFu; }

// z as the reference implementations draw it: in the dtype of the weights.
TF_HD float round_z(float z, int z_round) {
  if (z_round == kBFloat16) return to_math(Round<bfloat16>::nearest(z));
  if (z_round == kFloat16) return to_math(Round<float16>::nearest(z));
  return z;
}

template <class T>
TF_HD T round_result(math_t<T> value, bool stochastic, uint32_t r16) {
  return stochastic ? Round<T>::stochastic(value, r16) : Round<T>::nearest(value);
}

// The scalars of an Adam step in the type of the math.
template <class M>
struct AdamScalars {
  M beta1, beta2, one_minus_beta1, one_minus_beta2, inverse_correction, eps, rate, decay;
};

template <class M>
TF_HD AdamScalars<M> adam_scalars(const tenfold::AdamArgs& a) {
  return {M(a.beta1), M(a.beta2), M(a.one_minus_beta1), M(a.one_minus_beta2), M(a.inverse_correction),
          M(a.eps),   M(a.rate),  M(a.chain.decay)};
}

// Adam (Kingma and Ba, arXiv 1412.6980) with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101); m and v are updated in place.
// R-AdaZO (arXiv 2502.01014) squares the new m where Adam squares g.
template <bool kRAdaZO = false, class M>
TF_HD M adam_element(M theta, M g, M& m, M& v, const AdamScalars<M>& s) {
  m = fma(s.beta1, m, s.one_minus_beta1 * g);
  const M squared = kRAdaZO ? m : g;
  v = fma(s.beta2, v, (s.one_minus_beta2 * squared) * squared);
  const M denominator = fma(sqrt(v), s.inverse_correction, s.eps);
  return fma(s.rate, divide(m, denominator), s.decay * theta);
}

// SGD with momentum as torch.optim.SGD has it; m is updated in place. rate = -lr.
template <class M>
TF_HD M momentum_element(M theta, M g, M& m, M momentum, M one_minus_dampening, M rate, M decay, bool nesterov, bool first) {
  m = first ? g : fma(momentum, m, one_minus_dampening * g);
  const M d = nesterov ? fma(momentum, m, g) : m;
  return fma(rate, d, decay * theta);
}

template <class M>
TF_HD M sign_element(M theta, M g, M rate, M decay) {
  const M sign = g > M(0) ? M(1) : g < M(0) ? M(-1) : M(0);
  return fma(rate, sign, decay * theta);
}

// HiZOO (Zhao et al., arXiv 2402.15173): a perturbation scaled by the curvature h, > 0.
template <class M>
TF_HD M hizoo_moved(M theta, M z, M h, M c) {
  return fma(c, divide(z, sqrt(h)), theta);
}

// Its step on theta and h, with t = sum of curvature * z^2; h is updated in place.
template <class M>
TF_HD M hizoo_element(M theta, M g, M t, M& h, M smoothing, M one_minus_smoothing, M rate, M decay) {
  h = fma(smoothing, h * t, one_minus_smoothing * h);
  return fma(rate, divide(g, sqrt(h)), decay * theta);
}

}  // namespace TF_NS
