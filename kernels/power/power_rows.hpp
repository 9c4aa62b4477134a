// One row of the joint or the separable allocation in double precision by the threads of a group together: a warp (Part<32>) or a block
// (Whole). Where its numbers come from and go to is the argument `Row`, so that a kernel that has no gains in memory can call them too.
#pragma once

#include "power_dual.hpp"
#include "power_group.hpp"
#include "power_separable.hpp"

namespace TF_NS {

// Doubles of room, which every thread of the group is given alike, in shared or global memory.
TF_HD int64_t joint_row_room(int64_t users, int64_t carriers) { return Dual<Together<Part<32>>>::doubles(users, carriers); }
TF_HD int64_t separable_row_room(int64_t users, int64_t carriers, bool weighted) {
  return SeparableDual<Together<Part<32>>>::doubles(users, carriers, weighted);
}

// 1, or the largest part of all numbers that were put in; not finite if one of them is not.
struct Largest {
  double top = 0.0, poison = 0.0;
  __device__ void put(Pair<double> z) {
    top = size_of(z.re) > top ? size_of(z.re) : top;
    top = size_of(z.im) > top ? size_of(z.im) : top;
    poison += z.re * 0.0 + z.im * 0.0;
  }
  template <class G>
  __device__ double found() const {
    const double most = G::largest(top) + G::total(poison);
    return most == 0.0 ? 1.0 : most;
  }
};

// Row: gain(n, k), symbol(k) and, where is_searched(), searched(k) in place of |s|^2; power(n), noise(). What is found: transmit(n, k, re,
// im) and mu(n, value) by the thread that has it, finish(alpha, objective, iterations) by one.
template <class G, class Row>
__device__ void joint_row(Row& row, int64_t users, int64_t carriers, double tolerance, int64_t most, double* room) {
  Largest gains, symbols;
  for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
    symbols.put(row.symbol(k));
    for (int64_t n = 0; n < users; ++n) gains.put(row.gain(n, k));
  }
  const double g_size = gains.found<G>(), s_size = symbols.found<G>(), given = row.noise();
  bool fine = is_finite(g_size) && is_finite(s_size) && given >= 0.0 && is_finite(given);
  for (int64_t n = 0; n < users; ++n) {
    const double p = row.power(n);
    fine = fine && p > 0.0 && is_finite(p);
  }
  if (!fine) {
    const double nan = __builtin_nan("");
    for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
      for (int64_t n = 0; n < users; ++n) row.transmit(n, k, nan, nan);
    }
    for (int64_t n = G::lane(); n < users; n += G::kLanes) row.mu(n, nan);
    if (G::lane() == 0) row.finish(nan, nan, 0);
    return;
  }
  Dual<Together<G>> dual;
  dual.shape(users, carriers, room);
  dual.noise = given / g_size / g_size;
  G::sync();
  for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
    for (int64_t n = 0; n < users; ++n) {
      const Pair<double> g = row.gain(n, k);
      const double re = g.re / g_size, im = g.im / g_size;
      dual.b[n * carriers + k] = row.power(n) * (re * re + im * im);
    }
    const Pair<double> s = row.symbol(k);
    const double re = s.re / s_size, im = s.im / s_size;
    dual.wanted[k] = row.is_searched() ? row.searched(k) / s_size / s_size : re * re + im * im;
  }
  dual.solve(tolerance, most);
  const double alpha = sqrt(dual.top() / static_cast<double>(carriers)), over = inverse_of(alpha);
  double cost = 0.0;
  for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
    const Pair<double> s = row.symbol(k);
    const double sr = s.re / s_size, si = s.im / s_size;
    double received = 0.0;
    for (int64_t n = 0; n < users; ++n) {
      const Pair<double> g = row.gain(n, k);
      const double re = g.re / g_size, im = g.im / g_size;
      const double factor = row.power(n) * inverse_of(dual.mu[n]) * dual.inverse[k], by = factor * over;
      received += factor * (re * re + im * im);
      row.transmit(n, k, by * (re * sr + im * si), by * (re * si - im * sr));
    }
    const double left = alpha > 0.0 ? received - 1.0 : -1.0;
    cost += left * left * (sr * sr + si * si);
  }
  cost = G::total(cost) + dual.noise * static_cast<double>(carriers) * alpha * alpha;
  for (int64_t n = G::lane(); n < users; n += G::kLanes) row.mu(n, dual.mu[n]);
  if (G::lane() == 0) row.finish(alpha * s_size / g_size, cost * s_size * s_size, dual.iterations);
}

// Row: gain(n, k), power(n), wanted(n), noise() and, where is_weighted(), weight(n, k). What is found: precoder(n, k, re, im) and
// tau(n, value) by the thread that has it, finish(alpha, objective, iterations) by one.
template <class G, class Row>
__device__ void separable_row(Row& row, int64_t users, int64_t carriers, double tolerance, int64_t most, double* room) {
  Largest gains;
  const double given = row.noise();
  bool fine = given >= 0.0 && is_finite(given);
  for (int64_t n = 0; n < users; ++n) {
    fine = fine && row.power(n) > 0.0 && is_finite(row.power(n)) && is_finite(row.wanted(n));
    for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
      gains.put(row.gain(n, k));
      if (row.is_weighted()) gains.poison += row.weight(n, k) * 0.0;
    }
  }
  const double size = gains.found<G>();
  if (!(fine && is_finite(size))) {
    const double nan = __builtin_nan("");
    for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
      for (int64_t n = 0; n < users; ++n) row.precoder(n, k, nan, nan);
    }
    for (int64_t n = G::lane(); n < users; n += G::kLanes) row.tau(n, nan);
    if (G::lane() == 0) row.finish(nan, nan, 0);
    return;
  }
  const double noise = given / size / size;
  SeparableDual<Together<G>> dual;
  dual.shape(users, carriers, carriers, row.is_weighted(), room);
  G::sync();
  for (int64_t n = G::lane(); n < users; n += G::kLanes) {
    dual.power[n] = row.power(n);
    dual.wanted[n] = row.wanted(n);
  }
  for (int64_t n = 0; n < users; ++n) {
    for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
      const Pair<double> g = row.gain(n, k);
      const double re = g.re / size, im = g.im / size;
      dual.strength[n * carriers + k] = re * re + im * im;
      if (row.is_weighted()) dual.share[n * carriers + k] = row.weight(n, k) / row.power(n);
    }
  }
  G::sync();
  dual.solve(noise, tolerance, most);
  double level = 0.0, cost = 0.0;
  for (int64_t n = 0; n < users; ++n) level = dual.need[n] > level ? dual.need[n] : level;
  const double alpha = sqrt(level), scale = inverse_of(alpha);
  for (int64_t n = 0; n < users; ++n) {
    const double c = dual.wanted[n], tau = dual.tau[n];
    for (int64_t k = G::lane(); k < carriers; k += G::kLanes) {
      const Pair<double> g = row.gain(n, k);
      const double strength = dual.strength[n * carriers + k];
      const double d = strength > 0.0 ? 1.0 / (strength + tau) : 0.0, by = c * d * scale;
      row.precoder(n, k, by * (g.re / size), -by * (g.im / size));
      const double lost = c * (d > 0.0 ? tau * d : 1.0);
      cost += dual.power[n] * (row.is_weighted() ? dual.share[n * carriers + k] : 1.0) * lost * lost;
    }
  }
  cost = G::total(cost);
  for (int64_t n = G::lane(); n < users; n += G::kLanes) row.tau(n, dual.tau[n] * size * size);
  if (G::lane() == 0) row.finish(alpha / size, cost + noise * static_cast<double>(carriers) * level, dual.iterations);
}

}  // namespace TF_NS
