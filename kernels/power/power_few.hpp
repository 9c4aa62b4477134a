// One or two users of the joint allocation on CUDA, in the inputs' own precision and entirely in registers, as power_cpu.cpp does it; every
// lane of the warp (or thread of the block) has to come along. Where a row does not settle well inside the simplex, joint_row of
// power_rows.hpp has to do it.
#pragma once

#include "power_group.hpp"

namespace TF_NS {

constexpr int kPairSteps = 12;

template <class T>
constexpr int kHeld = sizeof(T) == 4 ? 8 : 4;  // carriers per lane, of which value j is carrier_of<G, 2>(j)

// What a lane holds of a row; 0 behind the last carrier.
template <class T, int users>
struct FewRow {
  T gr[users][kHeld<T>], gi[users][kHeld<T>], sr[kHeld<T>], si[kHeld<T>];
  T power[users], noise;
  const T* searched;  // [carriers] in place of |s|^2 in the search; null: that
  int64_t searched_step;
};

// u_nk = scale_n inverse_k conj(g_nk) s_k
template <class T, int users>
struct FewFound {
  T inverse[kHeld<T>], scale[users], mu[users];
  T alpha, objective;
  int32_t steps;
  bool fine;  // otherwise the rest means nothing
};

template <class T>
struct PairSums {
  T first, second, slope;
};

// As in power_cpu.cpp: D = noise m q + b1 q + b2 m, A_1 = sum S b1 (q/D)^2, A_2 = sum S b2 (m/D)^2, the derivative of their difference,
// and 1 / D.
template <class T, class G, int held>
__device__ PairSums<T> pair_sums(const T (&b1)[held], const T (&b2)[held], const T (&wanted)[held], T (&inverse)[held], T noise, T m) {
  const T q = T(1) - m;
  const T base = noise * m * q, tilt = noise * (q - m), qq = q * q, mm = m * m;
  PairSums<T> found = {};
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const T x = b1[j], y = b2[j];
    const T load = fma(x, q, y * m);
    const T r = quick_inverse(load + base);
    inverse[j] = r;
    const T srr = wanted[j] * r * r;
    const T one = x * qq, two = y * mm;
    found.first = fma(srr, one, found.first);
    found.second = fma(srr, two, found.second);
    found.slope = fma(srr, fma((one - two) * (tilt - x + y), r, load), found.slope);
  }
  return {G::total(found.first), G::total(found.second), T(-2) * G::total(found.slope)};
}

template <class T, class G, int users>
__device__ FewFound<T, users> solve_few(const FewRow<T, users>& row, int64_t carriers, double limit, int64_t most_steps) {
  constexpr int held = kHeld<T>;
  FewFound<T, users> out;
  T b[users][held], wanted[held];
  bool fine = true;
  T top = 0, loud = 0;
#pragma unroll
  for (int n = 0; n < users; ++n) fine = fine && row.power[n] > 0;
#pragma unroll
  for (int j = 0; j < held; ++j) {
    wanted[j] = fma(row.sr[j], row.sr[j], row.si[j] * row.si[j]);
    loud = wanted[j] > loud ? wanted[j] : loud;
#pragma unroll
    for (int n = 0; n < users; ++n) {
      b[n][j] = fma(row.gr[n][j], row.gr[n][j], row.gi[n][j] * row.gi[n][j]) * row.power[n];
      top = b[n][j] > top ? b[n][j] : top;
    }
  }
  const T gain = G::largest(top), size = G::largest(loud);
  fine = fine && gain > T(1e-30) && gain < T(1e30) && size > T(1e-30) && size < T(1e30);
  const T down = T(1) / gain, quiet = T(1) / size;
  const T noise = row.noise * down;
  fine = fine && noise >= 0 && noise < T(1e15);
  T strength[users] = {};
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int64_t k = carrier_of<G, 2>(j);
    if (row.searched != nullptr) wanted[j] = k < carriers ? row.searched[k * row.searched_step] : T(0);
    wanted[j] *= quiet;
#pragma unroll
    for (int n = 0; n < users; ++n) {
      b[n][j] *= down;
      strength[n] = fma(wanted[j], b[n][j], strength[n]);
      if (k >= carriers) b[n][j] = T(1);  // so that D is not 0 behind the last carrier; S is 0 there
    }
  }
  T m = T(1), most, rest = 0, sharp = 0;
  out.steps = 0;
  if constexpr (users == 2) {
    const T r1 = sqrt(G::total(strength[0])), r2 = sqrt(G::total(strength[1]));
    fine = fine && r1 > 0 && r2 > 0;
    m = r1 / (r1 + r2);
    T low = 0, high = 1;
    const T tolerance = static_cast<T>(limit);
    PairSums<T> found;
    for (bool left = fine;;) {  // a row that has settled finds the same sums again
      found = pair_sums<T, G>(b[0], b[1], wanted, out.inverse, noise, m);
      if (left) {
        const T off = found.first - found.second, larger = found.first > found.second ? found.first : found.second;
        const bool inside = m > T(1e-3) && m < T(0.999);
        const bool settled = inside && off <= tolerance * larger && -off <= tolerance * larger;
        if (settled || !inside || out.steps == kPairSteps || out.steps == most_steps) {
          fine = settled;
          left = false;
        } else {
          ++out.steps;
          (off > 0 ? low : high) = m;
          m -= off / found.slope;
          if (!(m > low && m < high)) m = (low + high) / 2;
        }
      }
      if (!G::any(left)) break;
    }
    most = found.first > found.second ? found.first : found.second;
    out.mu[1] = T(1) - m;
  } else {
    const T heard = G::total(strength[0]);  // by every lane, whether fine or not
    fine = fine && heard > 0;
    T needed = 0;
#pragma unroll
    for (int j = 0; j < held; ++j) {
      out.inverse[j] = quick_inverse(noise + b[0][j]);
      needed = fma(wanted[j] * out.inverse[j] * out.inverse[j], b[0][j], needed);
    }
    most = G::total(needed);
  }
  out.mu[0] = m;
#pragma unroll
  for (int j = 0; j < held; ++j) {
    rest = fma(wanted[j], out.inverse[j], rest);
    sharp = out.inverse[j] > sharp ? out.inverse[j] : sharp;
  }
  rest = G::total(rest);
  sharp = G::largest(sharp);
  const T alpha = sqrt(most / static_cast<T>(carriers)), g_scale = sqrt(down), s_scale = sqrt(quiet), over = g_scale * s_scale / alpha;
  out.fine = fine && sharp < T(1e15) && alpha > 0;
  out.alpha = alpha * g_scale / s_scale;
  if constexpr (users == 2) {
    out.scale[0] = row.power[0] * out.mu[1] * over;
    out.scale[1] = row.power[1] * out.mu[0] * over;
    out.objective = noise * out.mu[0] * out.mu[1] * rest * size;
  } else {
    out.scale[0] = row.power[0] * over;
    out.objective = noise * rest * size;
  }
  return out;
}

}  // namespace TF_NS
