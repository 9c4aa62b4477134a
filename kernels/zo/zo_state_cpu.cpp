// Zeroth-order passes with state on the CPU: traversal only, like zo_cpu.cpp; the math of an element stands in zo.hpp.
#include "zo_tile.hpp"

namespace TF_NS {
namespace {

// g = sum_k coef_k z_k, 0 where masked; x are the weights as read.
template <class M>
void gradient(const ChainArgs& a, int64_t t, int64_t first, int64_t n, const M* x, M* g) {
  for (int64_t i = 0; i < n; ++i) g[i] = M(0);
  for (int64_t k = 0; k < a.n_terms; ++k) add_term<M>(a.terms[k], a.streams[t], static_cast<uint64_t>(first), n, a.z_round, g);
  if (a.mask.kind != kNoMask) {
    TileMask masked;
    masked.draw(a.mask, t, a.streams[t], a.params[t].first, first, n, x);
    masked.clear(n, g);
  }
}

template <class T>
void store_weights(const ChainArgs& a, int64_t t, int64_t first, int64_t n, const math_t<T>* theta) {
  RoundingBits bits;
  store_tile<T>(a.params[t], first, n, theta, kIsMath<T> ? nullptr : bits.draw(a, a.streams[t], first, n));
}

// Float and double as they are, bfloat16 by stochastic rounding; `flip` tells the states of a weight apart.
template <class S>
void store_state(const ChainArgs& a, const View& state, int64_t t, int64_t first, int64_t n, const math_t<S>* value, uint32_t flip) {
  if constexpr (kIsMath<S>) {
    store_tile<S>(state, first, n, value, nullptr);
  } else {
    RoundingBits bits;
    store_tile<S>(state, first, n, value, bits.draw(a.rounding_seed, a.rounding_query ^ flip, a.streams[t], first, n));
  }
}

// Calls f(weight type, state type) for a dtype and whether its states are bfloat16.
template <class Call>
void with_state(int dtype, bool half, const Call& f) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(math_t<T>) == sizeof(float)) {
      if (half) return f(type, bfloat16{});
    }
    f(type, math_t<T>{});
  });
}

template <class T, class S>
void momentum_tile(const MomentumArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M theta[kTile], g[kTile], m[kTile];
  load_tile<T>(a.chain.params[t], first, n, theta);
  load_tile<S>(a.buffers[t], first, n, m);
  gradient<M>(a.chain, t, first, n, theta, g);
  const M momentum = M(a.momentum), fresh = M(a.one_minus_dampening), rate = M(a.rate), decay = M(a.chain.decay);
  const bool nesterov = a.nesterov, first_step = a.first;
  for (int64_t i = 0; i < n; ++i) theta[i] = momentum_element(theta[i], g[i], m[i], momentum, fresh, rate, decay, nesterov, first_step);
  store_state<S>(a.chain, a.buffers[t], t, first, n, m, kFirstState);
  store_weights<T>(a.chain, t, first, n, theta);
}

template <class T, class S>
void adam_tile(const AdamArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M theta[kTile], g[kTile], m[kTile], v[kTile];
  load_tile<T>(a.chain.params[t], first, n, theta);
  load_tile<S>(a.exp_avgs[t], first, n, m);
  load_tile<S>(a.exp_avg_sqs[t], first, n, v);
  gradient<M>(a.chain, t, first, n, theta, g);
  const AdamScalars<M> s = adam_scalars<M>(a);
  if (a.radazo) {
    for (int64_t i = 0; i < n; ++i) theta[i] = adam_element<true>(theta[i], g[i], m[i], v[i], s);
  } else {
    for (int64_t i = 0; i < n; ++i) theta[i] = adam_element(theta[i], g[i], m[i], v[i], s);
  }
  store_state<S>(a.chain, a.exp_avgs[t], t, first, n, m, kFirstState);
  store_state<S>(a.chain, a.exp_avg_sqs[t], t, first, n, v, kSecondState);
  store_weights<T>(a.chain, t, first, n, theta);
}

template <class T>
void sign_tile(const SignArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M theta[kTile], g[kTile];
  load_tile<T>(a.chain.params[t], first, n, theta);
  gradient<M>(a.chain, t, first, n, theta, g);
  const M rate = M(a.rate), decay = M(a.chain.decay);
  for (int64_t i = 0; i < n; ++i) theta[i] = sign_element(theta[i], g[i], rate, decay);
  store_weights<T>(a.chain, t, first, n, theta);
}

// z of a term in the type of the math, rounded as asked.
template <class M>
void draw_term(const ChainArgs& a, int64_t k, int64_t t, int64_t first, int64_t n, M* out) {
  alignas(64) float z[kTile];
  const Term& term = a.terms[k];
  draw(make_sequence(term.seed, a.streams[t], term.dist, term.query), term.dist, static_cast<uint64_t>(first), n, z);
  if (a.z_round != kNoRounding) {
    for (int64_t i = 0; i < n; ++i) z[i] = round_z(z[i], a.z_round);
  }
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<M>(z[i]);
}

template <class T>
void hizoo_perturb_tile(const HizooPerturbArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M theta[kTile], h[kTile], z[kTile];
  load_tile<T>(a.chain.sources[t], first, n, theta);
  load_tile<M>(a.hessians[t], first, n, h);
  draw_term<M>(a.chain, 0, t, first, n, z);
  const M c = M(a.chain.terms[0].coef);
  for (int64_t i = 0; i < n; ++i) z[i] = hizoo_moved(theta[i], z[i], h[i], c);
  if (a.chain.mask.kind != kNoMask) {
    TileMask masked;
    masked.draw(a.chain.mask, t, a.chain.streams[t], a.chain.params[t].first, first, n, theta);
    masked.put_back(theta, n, z);
  }
  store_weights<T>(a.chain, t, first, n, z);
}

template <class T>
void hizoo_update_tile(const HizooUpdateArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M x[kTile], theta[kTile], before[kTile], h[kTile], g[kTile], bend[kTile], z[kTile];
  load_tile<T>(a.chain.params[t], first, n, x);
  load_tile<M>(a.hessians[t], first, n, before);
  for (int64_t i = 0; i < n; ++i) {
    theta[i] = x[i];
    h[i] = before[i];
    g[i] = M(0);
    bend[i] = M(0);
  }
  for (int64_t k = 0; k < a.chain.n_terms; ++k) {
    draw_term<M>(a.chain, k, t, first, n, z);
    const M coef = M(a.chain.terms[k].coef), curvature = M(a.curvatures[k]), restore = M(a.restore);
    if (a.restore != 0.0) {
      for (int64_t i = 0; i < n; ++i) theta[i] = hizoo_moved(theta[i], z[i], before[i], restore);
    }
    for (int64_t i = 0; i < n; ++i) {
      g[i] = fma(coef, z[i], g[i]);
      bend[i] = fma(curvature, z[i] * z[i], bend[i]);
    }
  }
  const M keep = M(a.smoothing), rest = M(a.one_minus_smoothing), rate = M(a.rate), decay = M(a.chain.decay);
  for (int64_t i = 0; i < n; ++i) theta[i] = hizoo_element(theta[i], g[i], bend[i], h[i], keep, rest, rate, decay);
  if (a.chain.mask.kind != kNoMask) {
    TileMask masked;
    masked.draw(a.chain.mask, t, a.chain.streams[t], a.chain.params[t].first, first, n, x);
    for (int64_t i = 0; i < n; ++i) x[i] *= decay;
    masked.put_back(x, n, theta);
    masked.put_back(before, n, h);
  }
  store_tile<M>(a.hessians[t], first, n, h, nullptr);
  store_weights<T>(a.chain, t, first, n, theta);
}

}  // namespace

void zo_adam(const AdamArgs& a) {
  with_state(a.chain.dtype, a.half_states, [&](auto type, auto state) {
    each_tile(a.chain.params, a.chain.count, a.chain.threads,
              [&](int64_t t, int64_t first, int64_t n) { adam_tile<decltype(type), decltype(state)>(a, t, first, n); });
  });
}

void zo_momentum(const MomentumArgs& a) {
  with_state(a.chain.dtype, a.half_states, [&](auto type, auto state) {
    each_tile(a.chain.params, a.chain.count, a.chain.threads,
              [&](int64_t t, int64_t first, int64_t n) { momentum_tile<decltype(type), decltype(state)>(a, t, first, n); });
  });
}

void zo_sign(const SignArgs& a) {
  with_dtype(a.chain.dtype, [&](auto type) {
    each_tile(a.chain.params, a.chain.count, a.chain.threads,
              [&](int64_t t, int64_t first, int64_t n) { sign_tile<decltype(type)>(a, t, first, n); });
  });
}

void zo_hizoo_perturb(const HizooPerturbArgs& a) {
  with_dtype(a.chain.dtype, [&](auto type) {
    each_tile(a.chain.params, a.chain.count, a.chain.threads,
              [&](int64_t t, int64_t first, int64_t n) { hizoo_perturb_tile<decltype(type)>(a, t, first, n); });
  });
}

void zo_hizoo_update(const HizooUpdateArgs& a) {
  with_dtype(a.chain.dtype, [&](auto type) {
    each_tile(a.chain.params, a.chain.count, a.chain.threads,
              [&](int64_t t, int64_t first, int64_t n) { hizoo_update_tile<decltype(type)>(a, t, first, n); });
  });
}

}  // namespace TF_NS
