// The math of one pair of points, for lanes on the CPU and threads on a GPU.
//
// k(d) = sum_u exp(-d / w_u). Widths that double, the usual choice, need one exponential: with p = exp(-d / w_max) the others are
// p^2, p^4, ..., each the square of the one before. Squaring doubles the relative error; after four squarings it is 16 times 1e-7.
#pragma once

#include "mmd_api.hpp"

#include "../core/scalar.hpp"

namespace TF_NS {

constexpr float kClampLow = 1e-5f, kClampHigh = 1e5f;

// 1 / w_u, from the narrowest kernel to the widest.
struct Inverse {
  float of[tenfold::kMaxKernels];
  int kernels;
  bool doubling;
  bool clamp;
};

inline Inverse inverse_widths(const tenfold::Widths& w, double base) {
  Inverse out;
  out.kernels = w.kernels;
  out.clamp = w.clamp;
  out.doubling = !w.clamp;
  for (int u = 0; u < w.kernels; ++u) {
    out.of[u] = static_cast<float>(1.0 / (base * w.factors[u]));
    if (u > 0 && w.factors[u] != 2.0 * w.factors[u - 1]) out.doubling = false;
  }
  return out;
}

// total = k(d), slope = -k'(d) = sum_u exp(-d / w_u) / w_u. `exp` takes a T that is not positive.
template <class T, class Exp>
TF_HD void doubling_kernels(T d, const Inverse& inverse, const Exp& exp, T& total, T& slope) {
  T p = exp(d * (T{} - inverse.of[inverse.kernels - 1]));
  total = p;
  slope = p * inverse.of[inverse.kernels - 1];
  for (int u = inverse.kernels - 2; u >= 0; --u) {
    p = p * p;
    total = total + p;
    slope = slope + p * inverse.of[u];
  }
}

// Any widths. outside(t) is true in the lanes where t lies outside of the clamped range; there the derivative is 0.
template <class T, class Exp, class Clamp, class Keep>
TF_HD void any_kernels(T d, const Inverse& inverse, const Exp& exp, const Clamp& clamped, const Keep& keep_inside, T& total, T& slope) {
  total = T{};
  slope = T{};
  for (int u = 0; u < inverse.kernels; ++u) {
    const T t = d * inverse.of[u];
    if (inverse.clamp) {
      const T e = exp(T{} - clamped(t));
      total = total + e;
      slope = slope + keep_inside(t, e) * inverse.of[u];
    } else {
      const T e = exp(T{} - t);
      total = total + e;
      slope = slope + e * inverse.of[u];
    }
  }
}

}  // namespace TF_NS
