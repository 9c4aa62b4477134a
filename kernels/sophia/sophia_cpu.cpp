// Sophia passes on the CPU: traversal only, the math of an element stands in sophia.hpp. Compiled once per instruction set.
//
// A step on float32 moves 24 bytes per weight and computes about a dozen operations, so memory bounds it; 8-bit states are bound by the
// arithmetic of their codes.
#include "sophia_tile.hpp"

#include <vector>

namespace TF_NS {
namespace {

// What a tile, and a piece, adds to the statistics.
struct TileStats {
  int64_t wins, moving, nonfinite, changed;
  double squares;
  void add(const TileStats& other) {
    wins += other.wins;
    moving += other.moving;
    nonfinite += other.nonfinite;
    changed += other.changed;
    squares += other.squares;
  }
};

// -- loops over rows, which the compiler turns into vectors ------------------------------------------------------------------------

// Everything in one loop: no statistics, no skipped elements.
template <int kDenom, bool kSquare, class M>
void step_row(M* __restrict p, const M* __restrict g, M* __restrict m, M* __restrict h, int64_t n, const SophiaScalars<M> s) {
  for (int64_t i = 0; i < n; ++i) {
    const M scaled = g[i] * s.grad_scale;
    const M curvature = kDenom == kDenomSign ? M(0) : kSquare ? sophia_square(h[i], scaled, s) : h[i];
    const M mean = sophia_exp_avg(m[i], scaled, s);
    m[i] = mean;
    if (kSquare) h[i] = curvature;
    p[i] = sophia_moved(p[i], sophia_clipped<kDenom>(mean, curvature, s), s);
  }
}

// The sum of u^2 over a tile, in 32 interleaved partial sums; squares of floats are exact in float64.
struct Squares {
  static constexpr int kSums = 32;
  double sums[kSums] = {};
  template <class M>
  void add(const M* __restrict u, int64_t n) {
    int64_t i = 0;
    for (; i + kSums <= n; i += kSums) {
      for (int j = 0; j < kSums; ++j) sums[j] += static_cast<double>(u[i + j]) * static_cast<double>(u[i + j]);
    }
    for (int j = 0; i < n; ++i, ++j) sums[j] += static_cast<double>(u[i]) * static_cast<double>(u[i]);
  }
  double total() {
    for (int width = kSums / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
    }
    return sums[0];
  }
};

// step_row that counts: u goes to a buffer that stays in the first-level cache. n is at most kStrip.
constexpr int64_t kStrip = 64;
static_assert(kTile % kStrip == 0 && kStrip % Squares::kSums == 0, "whole strips in a tile");

template <int kDenom, bool kSquare, class M>
void counting_row(M* __restrict p, const M* __restrict g, M* __restrict m, M* __restrict h, M* __restrict u, int64_t n,
                  const SophiaScalars<M> s, TileStats& stats) {
  int32_t wins = 0, moving = 0, nonfinite = 0, changed = 0;
  for (int64_t i = 0; i < n; ++i) {
    const M scaled = g[i] * s.grad_scale;
    const M curvature = kDenom == kDenomSign ? M(0) : kSquare ? sophia_square(h[i], scaled, s) : h[i];
    const M mean = sophia_exp_avg(m[i], scaled, s);
    const M old = p[i];
    const M moved = sophia_clipped<kDenom>(mean, curvature, s);
    const M fresh = sophia_moved(old, moved, s);
    m[i] = mean;
    if (kSquare) h[i] = curvature;
    p[i] = fresh;
    u[i] = moved;
    nonfinite = is_finite(scaled) ? nonfinite : nonfinite + 1;
    moving = mean != M(0) ? moving + 1 : moving;
    changed = differ(fresh, old) ? changed + 1 : changed;
    if (kDenom != kDenomSign) wins = sophia_wins(mean, curvature, s) ? wins + 1 : wins;
  }
  stats.wins += wins;
  stats.moving += moving;
  stats.nonfinite += nonfinite;
  stats.changed += changed;
}

// The states alone: u and whether the element takes part go to buffers.
template <int kDenom, bool kSquare, class M>
void state_row(const M* __restrict g, M* __restrict m, M* __restrict h, M* __restrict u, uint32_t* __restrict live, int64_t n,
               const SophiaScalars<M> s, bool skip, TileStats& stats) {
  int32_t wins = 0, moving = 0, nonfinite = 0;
  const int32_t always = skip ? 0 : 1;
  for (int64_t i = 0; i < n; ++i) {  // flags are numbers, and joined by &: a branch would end the vectors
    const M scaled = g[i] * s.grad_scale;
    const int32_t finite = is_finite(scaled) ? 1 : 0;
    const int32_t in = finite | always;
    const M old_m = m[i];
    const M old_h = kDenom == kDenomSign ? M(0) : h[i];
    const M squared = kSquare ? sophia_square(old_h, scaled, s) : old_h;
    const M curvature = in ? squared : old_h;
    const M fresh = sophia_exp_avg(old_m, scaled, s);
    const M mean = in ? fresh : old_m;
    const M moved = sophia_clipped<kDenom>(mean, curvature, s);
    m[i] = mean;
    if (kSquare) h[i] = curvature;
    u[i] = in ? moved : M(0);
    live[i] = static_cast<uint32_t>(in);
    nonfinite += 1 - finite;
    moving += in & (mean != M(0) ? 1 : 0);
    if (kDenom != kDenomSign) wins += in & (sophia_wins(mean, curvature, s) ? 1 : 0);
  }
  stats.wins = wins;
  stats.moving = moving;
  stats.nonfinite = nonfinite;
}

// The new weights in the type of the math: all of `to` is written.
template <class M>
void weight_row(const M* __restrict p, const M* __restrict u, const uint32_t* __restrict live, M* __restrict to, int64_t n,
                const SophiaScalars<M> s) {
  for (int64_t i = 0; i < n; ++i) {
    const M moved = sophia_moved(p[i], u[i], s);
    to[i] = live[i] ? moved : p[i];
  }
}

template <int kDenom, class M>
void one_loop(bool square, M* p, const M* g, M* m, M* h, int64_t n, const SophiaScalars<M>& s) {
  square ? step_row<kDenom, kDenom != kDenomSign>(p, g, m, h, n, s) : step_row<kDenom, false>(p, g, m, h, n, s);
}

template <int kDenom, class M>
void states_loop(bool square, const M* g, M* m, M* h, M* u, uint32_t* live, int64_t n, const SophiaScalars<M>& s, bool skip,
                 TileStats& out) {
  square ? state_row<kDenom, kDenom != kDenomSign>(g, m, h, u, live, n, s, skip, out)
         : state_row<kDenom, false>(g, m, h, u, live, n, s, skip, out);
}

template <int kDenom, class M>
void counting_loop(bool square, M* p, const M* g, M* m, M* h, int64_t n, const SophiaScalars<M>& s, TileStats& out) {
  alignas(64) M u[kStrip];
  Squares squares;
  for (int64_t i = 0; i < n; i += kStrip) {
    const int64_t here = smaller(kStrip, n - i);
    M* hessian = h != nullptr ? h + i : nullptr;
    square ? counting_row<kDenom, kDenom != kDenomSign>(p + i, g + i, m + i, hessian, u, here, s, out)
           : counting_row<kDenom, false>(p + i, g + i, m + i, hessian, u, here, s, out);
    squares.add(u, here);
  }
  out.squares = squares.total();
}

// Calls f with the denominator as a constant.
template <class Call>
void with_denominator(int denom, const Call& f) {
  if (denom == kDenomAdd) return f(std::integral_constant<int, kDenomAdd>{});
  if (denom == kDenomSign) return f(std::integral_constant<int, kDenomSign>{});
  f(std::integral_constant<int, kDenomMax>{});
}

// -- tiles -------------------------------------------------------------------------------------------------------------------------

// Rounds the new weights.
template <class T>
void round_weights(const SophiaStepArgs& a, const SophiaTensor& t, int64_t first, int64_t n, const math_t<T>* value, T* to) {
  if (a.stochastic && !kInPlace<T>) {
    Bits bits;
    const half_of_a_word* r16 = bits.draw(a.seed, a.step, kSophia, t.stream, first, n);
    for (int64_t i = 0; i < n; ++i) to[i] = Round<T>::stochastic(value[i], r16[i]);
  } else {
    narrow_row<T>(value, n, to, 1);
  }
}

// Weights as bits: compilers make vectors of loops over numbers, not of those over structures.
typedef uint16_t __attribute__((may_alias)) bits16_t;
typedef uint32_t __attribute__((may_alias)) bits32_t;
typedef uint64_t __attribute__((may_alias)) bits64_t;

template <class Bits>
int64_t count_changes(const Bits* a, const Bits* b, int64_t n) {
  uint16_t count = 0;  // of a tile
  for (int64_t i = 0; i < n; ++i) count = static_cast<uint16_t>(count + (a[i] != b[i] ? 1 : 0));
  return count;
}

template <class T>
int64_t changes(const T* a, const T* b, int64_t n) {
  if constexpr (sizeof(T) == 2) return count_changes(reinterpret_cast<const bits16_t*>(a), reinterpret_cast<const bits16_t*>(b), n);
  if constexpr (sizeof(T) == 4) return count_changes(reinterpret_cast<const bits32_t*>(a), reinterpret_cast<const bits32_t*>(b), n);
  return count_changes(reinterpret_cast<const bits64_t*>(a), reinterpret_cast<const bits64_t*>(b), n);
}

template <class T>
int64_t store_and_count(const SophiaStepArgs& a, const SophiaTensor& t, int64_t first, int64_t n, const math_t<T>* value) {
  T* to = static_cast<T*>(t.param) + first;
  alignas(64) T fresh[kTile];
  round_weights<T>(a, t, first, n, value, fresh);
  const int64_t changed = changes(to, fresh, n);
  memcpy(to, fresh, static_cast<size_t>(n) * sizeof(T));
  return changed;
}

// Of those that take part.
template <class T>
int64_t store_live(const SophiaStepArgs& a, const SophiaTensor& t, int64_t first, int64_t n, const math_t<T>* value,
                   const uint32_t* __restrict live) {
  T* __restrict to = static_cast<T*>(t.param) + first;
  alignas(64) T fresh[kTile];
  round_weights<T>(a, t, first, n, value, fresh);
  int32_t changed = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T old = to[i];
    const uint32_t change = live[i] & (differ(old, fresh[i]) ? 1u : 0u);
    changed += static_cast<int32_t>(change);
    to[i] = live[i] ? fresh[i] : old;
  }
  return changed;
}

template <class T>
int64_t kahan_row(const SophiaTensor& t, int64_t first, int64_t n, const math_t<T>* u, const uint32_t* live,
                  const SophiaScalars<math_t<T>> s) {
  T* p = static_cast<T*>(t.param) + first;
  T* c = static_cast<T*>(t.compensation) + first;
  int32_t changed = 0;
  for (int64_t i = 0; i < n; ++i) {
    T rest = c[i];
    const T moved = sophia_kahan<T>(to_math(p[i]), u[i], rest, s);
    const T old = p[i];
    changed += static_cast<int32_t>(live[i] & (differ(moved, old) ? 1u : 0u));
    p[i] = live[i] ? moved : old;
    c[i] = live[i] ? rest : c[i];
  }
  return changed;
}

template <class T, class G, class S>
void step_tile(const SophiaStepArgs& a, const SophiaScalars<math_t<T>>& s, const SophiaTensor& t, int64_t first, int64_t n,
               TileStats* stats) {
  using M = math_t<T>;
  alignas(64) M room_g[kTile], room_m[kTile], room_h[kTile], room_p[kTile];
  const StateRow mean = {t.exp_avg, t.exp_avg_scale, false}, curvature = {t.hessian, t.hessian_scale, true};
  const M* g = open_row<G>(t.grad, first, n, room_g);
  M* m = open_state<S, M>(mean, first, n, room_m);
  M* h = t.hessian != nullptr ? open_state<S, M>(curvature, first, n, room_h) : nullptr;
  const auto theta = [&]() -> M* {
    if constexpr (std::is_same_v<M, float>) {
      if (t.master != nullptr) return t.master + first;
    }
    return open_row<T>(t.param, first, n, room_p);
  };
  const bool stored = kInPlace<T> && t.master == nullptr;  // the row of the math is the weight itself
  if (!a.skip && t.compensation == nullptr) {
    M* p = theta();
    if (stats == nullptr) {
      with_denominator(a.denom, [&](auto denom) { one_loop<denom()>(a.update_hessian, p, g, m, h, n, s); });
      if (!stored) round_weights<T>(a, t, first, n, p, static_cast<T*>(t.param) + first);
    } else {
      TileStats got = {};
      with_denominator(a.denom, [&](auto denom) { counting_loop<denom()>(a.update_hessian, p, g, m, h, n, s, got); });
      if (!stored) got.changed = store_and_count<T>(a, t, first, n, p);
      stats->add(got);
    }
  } else {
    alignas(64) M u[kTile], to[kTile];
    alignas(64) uint32_t live[kTile];
    TileStats got = {};
    with_denominator(a.denom, [&](auto denom) { states_loop<denom()>(a.update_hessian, g, m, h, u, live, n, s, a.skip, got); });
    if (t.compensation != nullptr) {
      got.changed = kahan_row<T>(t, first, n, u, live, s);
    } else {
      M* p = theta();
      weight_row(p, u, live, to, n, s);
      got.changed = store_live<T>(a, t, first, n, to, live);
      if (t.master != nullptr) memcpy(p, to, static_cast<size_t>(n) * sizeof(M));
    }
    if (stats != nullptr) {
      Squares squares;
      squares.add(u, n);
      got.squares = squares.total();
      stats->add(got);
    }
  }
  close_state<S, M>(mean, first, n, m, a.seed, a.step, t.stream);
  if (a.update_hessian) close_state<S, M>(curvature, first, n, h, a.seed, a.step, t.stream);
}

bool found_inf(const float* flag) { return flag != nullptr && *flag != 0.0f; }
float or_one(const float* number) { return number != nullptr ? *number : 1.0f; }

void add_up(const SophiaStepArgs& a, const std::vector<TileStats>& pieces) {
  std::vector<double> squares(pieces.size());
  int64_t wins = 0, moving = 0, nonfinite = 0, changed = 0, elements = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    wins += pieces[i].wins;
    moving += pieces[i].moving;
    nonfinite += pieces[i].nonfinite;
    changed += pieces[i].changed;
    squares[i] = pieces[i].squares;
  }
  for (int64_t t = 0; t < a.count; ++t) elements += a.tensors[t].numel;
  const double sums[kSophiaStats] = {
      static_cast<double>(wins),      static_cast<double>(moving),  pairwise_sum(squares.data(), static_cast<int64_t>(squares.size())),
      static_cast<double>(nonfinite), static_cast<double>(changed), static_cast<double>(elements)};
  for (int k = 0; k < kSophiaStats; ++k) a.stats[k] += sums[k];
}

void step(const SophiaStepArgs& a) {
  if (found_inf(a.found_inf)) return;
  std::vector<TileStats> stats(a.stats != nullptr ? static_cast<size_t>(pieces_of_all(a.tensors, a.count)) : 0);
  with_types(a.dtype, a.grad_dtype, [&](auto type, auto grad_type) {
    using T = decltype(type);
    using M = math_t<T>;
    const SophiaScalars<M> s = sophia_scalars<M>(a, or_one(a.inv_scale));
    with_state<M>(a.state, [&](auto state) {
      each_tile(a.tensors, a.count, a.threads, [&](const SophiaTensor& t, int64_t first, int64_t n, int64_t piece) {
        step_tile<T, decltype(grad_type), decltype(state)>(a, s, t, first, n, stats.empty() ? nullptr : &stats[static_cast<size_t>(piece)]);
      });
    });
  });
  if (a.stats != nullptr) add_up(a, stats);
}

template <class M>
void square_row(M* __restrict h, const M* __restrict g, int64_t n, M keep, M weight, M grad_scale) {
  for (int64_t i = 0; i < n; ++i) {
    const M scaled = g[i] * grad_scale;
    h[i] = fma(weight * scaled, scaled, keep * h[i]);
  }
}

template <class M>
void probe_row(M* __restrict h, const M* __restrict g, const M* __restrict probe, int64_t n, M keep, M weight, M grad_scale) {
  for (int64_t i = 0; i < n; ++i) h[i] = fma(weight * (g[i] * grad_scale), probe[i], keep * h[i]);
}

template <class M, class G, class S>
void hessian_tile(const SophiaHessianArgs& a, const SophiaHessianTensor& t, int64_t first, int64_t n, M grad_scale) {
  alignas(64) M room_g[kTile], room_h[kTile], room_u[kTile];
  const StateRow curvature = {t.hessian, t.scale, true};
  M* h = open_state<S, M>(curvature, first, n, room_h);
  const M* g = open_row<G>(t.grad, first, n, room_g);
  if (t.probe == nullptr) {
    square_row(h, g, n, M(a.keep), M(a.weight), grad_scale);
  } else {
    probe_row(h, g, open_row<G>(t.probe, first, n, room_u), n, M(a.keep), M(a.weight), grad_scale);
  }
  close_state<S, M>(curvature, first, n, h, a.seed, a.step, t.stream);
}

void hessian(const SophiaHessianArgs& a) {
  if (found_inf(a.found_inf)) return;
  with_type(a.grad_dtype, [&](auto type) {
    using G = decltype(type);
    using M = math_t<G>;
    with_state<M>(a.state, [&](auto state) {
      each_tile(a.tensors, a.count, a.threads, [&](const SophiaHessianTensor& t, int64_t first, int64_t n, int64_t) {
        hessian_tile<M, G, decltype(state)>(a, t, first, n, M(or_one(a.inv_scale)));
      });
    });
  });
}

void encode(const SophiaCodeArgs& a) {
  each_tile(&a, 1, a.threads, [](const SophiaCodeArgs& t, int64_t first, int64_t n, int64_t) {
    Bits bits;
    const half_of_a_word* r16 =
        t.stochastic ? bits.draw(t.seed, t.step, t.hessian ? kSophiaHessian : kSophiaExpAvg, t.stream, first, n) : nullptr;
    float* scales = t.scales + first / kByteBlock;
    t.hessian ? encode_row<true>(t.values + first, n, r16, t.codes + first, scales)
              : encode_row<false>(t.values + first, n, r16, t.codes + first, scales);
  });
}

void decode(const SophiaCodeArgs& a) {
  each_tile(&a, 1, a.threads, [](const SophiaCodeArgs& t, int64_t first, int64_t n, int64_t) {
    const float* scales = t.scales + first / kByteBlock;
    t.hessian ? decode_row<true>(t.codes + first, scales, n, t.values + first)
              : decode_row<false>(t.codes + first, scales, n, t.values + first);
  });
}

}  // namespace

extern const tenfold::SophiaKernels sophia_kernels;
const tenfold::SophiaKernels sophia_kernels = {step, hessian, encode, decode};

}  // namespace TF_NS
