// Passes on CUDA that keep a state beside the weights, and the replay of many passes at once: traversal only, the math is that of zo.hpp.
#include "zo_cuda_tiles.hpp"

#include <iterator>

namespace TF_NS {
namespace {

struct StateHead : MaskedHead {
  double scalars[8];  // what each pass takes them for stands with its host function
  int32_t flags;
};

enum Update { kAdamUpdate, kMomentumUpdate, kSignUpdate };
constexpr int kStates[] = {2, 1, 0};
constexpr int32_t kRadazo = 1;                // Adam
constexpr int32_t kFirst = 1, kNesterov = 2;  // momentum

// Every N elements of a lane: use(v, first element).
template <class T, int kUnrolled, class Use>
__device__ __forceinline__ void each_lane_vector(int64_t warp_first, const Use& use) {
#pragma unroll kUnrolled
  for (int v = 0; v < kVectors<T>; ++v) use(v, warp_first + lane_offset<kVector<T>>(v));
}

template <class M, int V, int N, int kUnrolled>
__device__ __forceinline__ void set_zero(M (&x)[V][N]) {
#pragma unroll kUnrolled
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int k = 0; k < N; ++k) x[v][k] = M(0);
  }
}

// Rounds and stores a vector of theta.
template <class T, int N, class P, class Tensor>
__device__ __forceinline__ void store_theta(const P& p, const Tensor& t, int64_t i, const math_t<T> (&theta)[N]) {
  T out[N];
  round_vector<T>(theta, p.s.stochastic, make_sequence(p.s.rounding_seed, t.stream, kRounding, p.s.rounding_query),
                  static_cast<uint64_t>(i), out);
  store<T>(t, 0, i, out);
}

// Stores a vector of state j, which has slot 1 + j: in bfloat16 always by chance.
template <class S, int N, class P, class Tensor>
__device__ __forceinline__ void store_state(const P& p, const Tensor& t, int j, int64_t i, const math_t<S> (&state)[N]) {
  S out[N];
  const Sequence bits = make_sequence(p.s.rounding_seed, t.stream, kRounding, p.s.rounding_query ^ (j == 0 ? kFirstState : kSecondState));
  round_vector<S>(state, true, bits, static_cast<uint64_t>(i), out);
  store<S>(t, 1 + j, i, out);
}

// Slots: theta, the states.
template <class T, class S, class Tensor, Update kUpdate>
__global__ void __launch_bounds__(kThreads, (sizeof(S) == 2 && Tensor::kFlat ? 2 : kResident<T, Tensor>))
    update_kernel(const __grid_constant__ Pass<Tensor, StateHead> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  constexpr int kUnrolled = kUnroll<T, Tensor>;
  const double* const d = p.scalars;
  const M decay = static_cast<M>(p.s.decay);
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    const uint32_t moves = moving<T, kUnrolled>(p.mask, t, 0, warp_first);
    M g[kVectors<T>][N];
    set_zero<M, kVectors<T>, N, kUnrolled>(g);
    each_term<kUnrolled, N>(p, t.stream, static_cast<uint64_t>(warp_first), [&](int k, int v, const float (&z)[N]) {
      const M coef = static_cast<M>(p.terms[k].coef);
#pragma unroll
      for (int i = 0; i < N; ++i) g[v][i] = fma(coef, static_cast<M>(z[i]), g[v][i]);
    });
    each_lane_vector<T, kUnrolled>(warp_first, [&](int v, int64_t i) {
      M theta[N], first[N], second[N];
      load<T>(t, 0, i, theta);
      if constexpr (kStates[kUpdate] > 0) load<S>(t, 1, i, first);
      if constexpr (kStates[kUpdate] > 1) load<S>(t, 2, i, second);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (!moves_at<N>(moves, v, k)) g[v][k] = M(0);
        if constexpr (kUpdate == kAdamUpdate) {
          const AdamScalars<M> s = {M(d[0]), M(d[1]), M(d[2]), M(d[3]), M(d[4]), M(d[5]), M(d[6]), decay};
          theta[k] = p.flags & kRadazo ? adam_element<true>(theta[k], g[v][k], first[k], second[k], s)
                                       : adam_element(theta[k], g[v][k], first[k], second[k], s);
        } else if constexpr (kUpdate == kMomentumUpdate) {
          theta[k] = momentum_element(theta[k], g[v][k], first[k], M(d[0]), M(d[1]), M(d[2]), decay, (p.flags & kNesterov) != 0,
                                      (p.flags & kFirst) != 0);
        } else {
          theta[k] = sign_element(theta[k], g[v][k], M(d[0]), decay);
        }
      }
      if constexpr (kStates[kUpdate] > 0) store_state<S>(p, t, 0, i, first);
      if constexpr (kStates[kUpdate] > 1) store_state<S>(p, t, 1, i, second);
      store_theta<T>(p, t, i, theta);
    });
  });
}

// Slots: theta, source, Hessian diagonal. One term; its coefficient is the scale.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, kResident<T, Tensor>) hizoo_perturb_kernel(const __grid_constant__ Pass<Tensor, MaskedHead> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  constexpr int kUnrolled = kUnroll<T, Tensor>;
  const M c = static_cast<M>(p.terms[0].coef);
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    const uint32_t moves = moving<T, kUnrolled>(p.mask, t, 1, warp_first);
    each_term<kUnrolled, N>(p, t.stream, static_cast<uint64_t>(warp_first), [&](int, int v, const float (&z)[N]) {
      const int64_t i = warp_first + lane_offset<N>(v);
      M theta[N], h[N];
      load<T>(t, 1, i, theta);
      load<M>(t, 2, i, h);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (moves_at<N>(moves, v, k)) theta[k] = hizoo_moved(theta[k], static_cast<M>(z[k]), h[k], c);
      }
      store_theta<T>(p, t, i, theta);
    });
  });
}

struct HizooHead : MaskedHead {
  double curvatures[kMaxTerms];
  double smoothing, one_minus_smoothing, restore, rate;
};

// Slots: theta, Hessian diagonal. With one term, z itself is kept from the generation to the update; with more, their two sums.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, Tensor::kFlat ? 2 : 1) hizoo_update_kernel(const __grid_constant__ Pass<Tensor, HizooHead> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  constexpr int kUnrolled = kUnroll<T, Tensor>;
  const M decay = static_cast<M>(p.s.decay);
  const M smoothing = static_cast<M>(p.smoothing), rest = static_cast<M>(p.one_minus_smoothing), rate = static_cast<M>(p.rate);
  const bool single = p.s.n_terms == 1;
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    const uint32_t moves = moving<T, kUnrolled>(p.mask, t, 0, warp_first);
    M g[kVectors<T>][N], curvature[kVectors<T>][N];
    set_zero<M, kVectors<T>, N, kUnrolled>(g);
    set_zero<M, kVectors<T>, N, kUnrolled>(curvature);
    each_term<kUnrolled, N>(p, t.stream, static_cast<uint64_t>(warp_first), [&](int k, int v, const float (&z)[N]) {
      const M coef = static_cast<M>(p.terms[k].coef), bend = static_cast<M>(p.curvatures[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const M x = static_cast<M>(z[i]);
        g[v][i] = single ? x : fma(coef, x, g[v][i]);
        if (!single) curvature[v][i] = fma(bend, x * x, curvature[v][i]);
      }
    });
    each_lane_vector<T, kUnrolled>(warp_first, [&](int v, int64_t i) {
      M theta[N], h[N];
      load<T>(t, 0, i, theta);
      load<M>(t, 1, i, h);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (!moves_at<N>(moves, v, k)) {
          theta[k] *= decay;
          continue;
        }
        M slope = g[v][k], bend = curvature[v][k];
        if (single) {
          if (p.restore != 0.0) theta[k] = hizoo_moved(theta[k], slope, h[k], M(p.restore));
          bend = fma(M(p.curvatures[0]), slope * slope, M(0));
          slope = fma(M(p.terms[0].coef), slope, M(0));
        }
        theta[k] = hizoo_element(theta[k], slope, bend, h[k], smoothing, rest, rate, decay);
      }
      store<M>(t, 1, i, h);
      store_theta<T>(p, t, i, theta);
    });
  });
}

// One pass of a replay: its terms are those from `first_term` on.
struct ReplayStep {
  double decay;
  uint64_t rounding_seed, mask_seed;
  uint32_t rounding_query, mask_query;
  int32_t first_term, n_terms;
  int32_t mask;
};
constexpr int kMaxSteps = 64;         // in one launch
constexpr int kMaxReplayTerms = 448;  // in one launch

struct ReplayHead {
  Scalars s;
  ReplayStep steps[kMaxSteps];
  Term terms[kMaxReplayTerms];
  int32_t n_steps;
};

// Slots: theta. The tensor's mask word is that of all steps.
template <class T, class Tensor>
__global__ void __launch_bounds__(kThreads, kResident<T, Tensor>) replay_kernel(const __grid_constant__ Pass<Tensor, ReplayHead> p) {
  using M = math_t<T>;
  constexpr int N = kVector<T>;
  constexpr int kUnrolled = kUnroll<T, Tensor>;
  each_tile(p, [&](const Tensor& t, int64_t warp_first) {
    M acc[kVectors<T>][N];
    each_lane_vector<T, kUnrolled>(warp_first, [&](int v, int64_t i) { load<T>(t, 0, i, acc[v]); });
    for (int at = 0; at < p.n_steps; ++at) {
      const ReplayStep& step = p.steps[at];
      const M decay = static_cast<M>(step.decay);
      const uint32_t moves = moving<T, kUnrolled>(MaskScalars{step.mask_seed, step.mask_query, step.mask}, t, 0, warp_first);
      each_lane_vector<T, kUnrolled>(warp_first, [&](int v, int64_t) {
#pragma unroll
        for (int k = 0; k < N; ++k) acc[v][k] *= decay;
      });
      for (int k = step.first_term; k < step.first_term + step.n_terms; ++k) {
        const Term& term = p.terms[k];
        const M coef = static_cast<M>(term.coef);
        const Sequence s = make_sequence(term.seed, t.stream, term.dist, term.query);
        each_vector<N, kUnrolled, true>(s, term.dist, static_cast<uint64_t>(warp_first), [&](int v, float (&z)[N]) {
          round_z_vector(z, p.s.z_round);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            if (moves_at<N>(moves, v, i)) acc[v][i] = fma(coef, static_cast<M>(z[i]), acc[v][i]);
          }
        });
      }
      if constexpr (sizeof(T) == 2) {
        const Sequence bits = make_sequence(step.rounding_seed, t.stream, kRounding, step.rounding_query);
        each_lane_vector<T, kUnrolled>(warp_first, [&](int v, int64_t i) {
          T out[N];
          round_vector<T>(acc[v], p.s.stochastic, bits, static_cast<uint64_t>(i), out);
#pragma unroll
          for (int k = 0; k < N; ++k) acc[v][k] = to_math(out[k]);
        });
      }
    }
    each_lane_vector<T, kUnrolled>(warp_first, [&](int v, int64_t i) {
      T out[N];
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = Round<T>::nearest(acc[v][k]);
      store<T>(t, 0, i, out);
    });
  });
}

}  // namespace

namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

// Calls f with values of the weight type and the state type.
template <class Call>
void with_state(int dtype, bool half, const Call& f) {
  with_dtype(dtype, [&](auto type) {
    if constexpr (sizeof(math_t<decltype(type)>) == sizeof(float)) {
      if (half) return f(type, bfloat16{});
    }
    f(type, math_t<decltype(type)>{});
  });
}

template <Update kUpdate>
const char* run_update(const StateHead& head, const ChainArgs& a, const View* first, const View* second, bool half_states, void* stream) {
  const auto row_at = [&](int64_t i) -> Row { return {{&a.params[i], &first[i], &second[i]}, a.streams[i], mask_word(a.mask, i)}; };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_state(a.dtype, half_states, [&](auto type, auto state) {
      using T = decltype(type);
      using S = decltype(state);
      update_kernel<T, S, Tensor, kUpdate><<<grid, kThreads, 0, stream_of(stream)>>>(p);
    });
  });
}

}  // namespace

const char* zo_adam(const AdamArgs& a, void* stream) {
  StateHead head = {};
  if (!fill_head(head, a.chain)) return kTooManyTerms;
  const double scalars[] = {a.beta1, a.beta2, a.one_minus_beta1, a.one_minus_beta2, a.inverse_correction, a.eps, a.rate};
  std::copy(std::begin(scalars), std::end(scalars), head.scalars);
  head.flags = a.radazo ? kRadazo : 0;
  return run_update<kAdamUpdate>(head, a.chain, a.exp_avgs, a.exp_avg_sqs, a.half_states, stream);
}

const char* zo_momentum(const MomentumArgs& a, void* stream) {
  StateHead head = {};
  if (!fill_head(head, a.chain)) return kTooManyTerms;
  head.scalars[0] = a.momentum;
  head.scalars[1] = a.one_minus_dampening;
  head.scalars[2] = a.rate;
  head.flags = (a.first ? kFirst : 0) | (a.nesterov ? kNesterov : 0);
  return run_update<kMomentumUpdate>(head, a.chain, a.buffers, a.buffers, a.half_states, stream);
}

const char* zo_sign(const SignArgs& a, void* stream) {
  StateHead head = {};
  if (!fill_head(head, a.chain)) return kTooManyTerms;
  head.scalars[0] = a.rate;
  const View* const params = a.chain.params;
  const auto row_at = [&](int64_t i) -> Row {
    return {{&params[i], &params[i], &params[i]}, a.chain.streams[i], mask_word(a.chain.mask, i)};
  };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.chain.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.chain.dtype, [&](auto type) {
      using T = decltype(type);
      update_kernel<T, math_t<T>, Tensor, kSignUpdate><<<grid, kThreads, 0, stream_of(stream)>>>(p);
    });
  });
}

const char* zo_hizoo_perturb(const HizooPerturbArgs& a, void* stream) {
  MaskedHead head = {};
  if (!fill_head(head, a.chain)) return kTooManyTerms;
  const auto row_at = [&](int64_t i) -> Row {
    return {{&a.chain.params[i], &a.chain.sources[i], &a.hessians[i]}, a.chain.streams[i], mask_word(a.chain.mask, i)};
  };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.chain.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.chain.dtype,
               [&](auto type) { hizoo_perturb_kernel<decltype(type), Tensor><<<grid, kThreads, 0, stream_of(stream)>>>(p); });
  });
}

const char* zo_hizoo_update(const HizooUpdateArgs& a, void* stream) {
  HizooHead head = {};
  if (!fill_head(head, a.chain)) return kTooManyTerms;
  if (a.restore != 0.0 && a.chain.n_terms != 1) return "restore takes one term";
  std::copy(a.curvatures, a.curvatures + a.chain.n_terms, head.curvatures);
  head.smoothing = a.smoothing;
  head.one_minus_smoothing = a.one_minus_smoothing;
  head.restore = a.restore;
  head.rate = a.rate;
  const auto row_at = [&](int64_t i) -> Row {
    return {{&a.chain.params[i], &a.hessians[i], &a.hessians[i]}, a.chain.streams[i], mask_word(a.chain.mask, i)};
  };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.chain.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.chain.dtype, [&](auto type) { hizoo_update_kernel<decltype(type), Tensor><<<grid, kThreads, 0, stream_of(stream)>>>(p); });
  });
}

namespace {

// One launch (or two: contiguous tensors and others) over the passes that `head` holds; `mask` is that of those that have one.
const char* replay_some(const ReplayArgs& a, const ReplayHead& head, const MaskArgs& mask, void* stream) {
  const auto row_at = [&](int64_t i) -> Row { return {{&a.params[i], &a.params[i], &a.params[i]}, a.streams[i], mask_word(mask, i)}; };
  return run_pass<Masked<FlatTensor>, Masked<StridedTensor>>(head, a.count, row_at, [&](const auto& p, unsigned grid) {
    using Tensor = tensor_of<decltype(p)>;
    with_dtype(a.dtype, [&](auto type) { replay_kernel<decltype(type), Tensor><<<grid, kThreads, 0, stream_of(stream)>>>(p); });
  });
}

bool same_limits(const MaskArgs& a, const MaskArgs& b, int64_t count) {
  return a.values == b.values || std::equal(a.values, a.values + count, b.values);
}

}  // namespace

// A launch takes as many passes as its parameters have room for, and whose masks, where they have one, have the same limits; the weights
// rest in their storage type between passes anyway, so cutting changes nothing.
const char* zo_replay(const ReplayArgs& a, void* stream) {
  for (int64_t p = 0; p < a.n_passes; ++p) {
    if (a.passes[p].n_terms > kMaxTerms) return kTooManyTerms;
  }
  ReplayHead head = {};
  head.s.z_round = a.z_round;
  head.s.stochastic = a.stochastic;
  MaskArgs mask;
  int32_t used = 0;
  const auto flush = [&]() -> const char* {
    const char* error = head.n_steps == 0 ? nullptr : replay_some(a, head, mask, stream);
    head.n_steps = 0;
    used = 0;
    mask = {};
    return error;
  };
  const Term* terms = a.terms;
  for (int64_t at = 0; at < a.n_passes; ++at) {
    const ReplayPass& pass = a.passes[at];
    const bool masked = pass.mask.kind != kNoMask;
    const bool other_mask = masked && mask.kind != kNoMask && !same_limits(mask, pass.mask, a.count);
    if (head.n_steps == kMaxSteps || used + pass.n_terms > kMaxReplayTerms || other_mask) {
      if (const char* error = flush()) return error;
    }
    if (masked) mask = pass.mask;
    const int32_t n_terms = static_cast<int32_t>(pass.n_terms);
    head.steps[head.n_steps++] = {pass.decay, pass.rounding_seed, pass.mask.seed, pass.rounding_query, pass.mask.query, used,
                                  n_terms,    pass.mask.kind};
    std::copy(terms, terms + n_terms, head.terms + used);
    terms += n_terms;
    used += n_terms;
  }
  return flush();
}

}  // namespace TF_NS
