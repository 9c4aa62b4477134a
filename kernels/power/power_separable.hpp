// The dual of the separable allocation in double precision: Newton's method on M_n^(-1/2) with an active set, as power_reference.py does
// it, one row at a time, by one thread on the CPU and by several on CUDA (W: power_scalar.hpp).
#pragma once

#include "power_scalar.hpp"

namespace TF_NS {

// strength |g|^2 [users][width], scaled to at most about 1, and share [users][width] of the power, zero behind the last carrier; power and
// wanted c [users].
template <class W>
class SeparableDual {
 public:
  using V = typename W::V;

  int64_t users = 0, width = 0;
  double carriers = 0.0;
  double *strength = nullptr, *share = nullptr;  // share null: 1 everywhere
  double *tau = nullptr, *need = nullptr, *power = nullptr, *wanted = nullptr;
  int32_t iterations = 0;

  TF_HD static int64_t doubles(int64_t n, int64_t wide, bool weighted) { return (weighted ? 2 : 1) * n * wide + 8 * W::padded(n); }

  TF_TOGETHER void shape(int64_t n, int64_t k, int64_t wide, bool weighted, double* room) {
    users = n;
    width = wide;
    carriers = static_cast<double>(k);
    strength = room;
    share = weighted ? strength + n * wide : nullptr;
    tau = strength + (weighted ? 2 : 1) * n * wide;
    need = tau + W::padded(n);
    power = need + W::padded(n);
    wanted = power + W::padded(n);
    bound_ = wanted + W::padded(n);
    phi_ = bound_ + W::padded(n);
    rise_ = phi_ + W::padded(n);
    active_ = rise_ + W::padded(n);
  }

  // tau with sum P tau = noise, and what each user then needs.
  TF_TOGETHER void solve(double noise, double tolerance, int64_t most) {
    iterations = 0;
    int64_t count = 0;
    for (int64_t n = 0; n < users; ++n) {
      const double found = measure(n, 0.0).need;
      const bool live = found > 0.0 && noise > 0.0;
      count += live;
      if (W::rank() != 0) continue;
      bound_[n] = found > 0.0 ? 1.0 / sqrt(found) : kInfinity;
      active_[n] = live ? 1.0 : 0.0;
    }
    W::sync();
    each_user([&](int64_t n) { tau[n] = active_[n] > 0.0 ? noise / (static_cast<double>(count) * power[n]) : 0.0; });
    for (bool settled = count == 0; !settled && iterations < most; ++iterations) settled = step(noise, tolerance);
    double spent = 0.0;
    for (int64_t n = 0; n < users; ++n) spent += power[n] * tau[n];
    each_user([&](int64_t n) {
      if (spent > 0.0) tau[n] *= noise / spent;  // meets sum P tau = noise
    });
    for (int64_t n = 0; n < users; ++n) {
      const double found = measure(n, tau[n]).need;
      if (W::rank() == 0) need[n] = found;
    }
    W::sync();
  }

 private:
  struct Needed {
    double need, slope;
  };

  template <class Work>
  TF_TOGETHER void each_user(const Work& work) {
    W::sync();
    for (int64_t n = W::rank(); n < users; n += W::kRanks) work(n);
    W::sync();
  }

  // M_n(tau) = c^2 mean_k q |g|^2 / (|g|^2 + tau)^2 and its derivative.
  TF_TOGETHER Needed measure(int64_t n, double at_tau) const {
    V sum = {}, fall = {};
    for (int64_t k = n * width + W::begin(); k < (n + 1) * width; k += W::kStep) {
      const V a = W::get(strength + k);
      const V d = a + at_tau;
      const V r = a > V{} ? 1.0 / (a > V{} ? d : V{} + 1.0) : V{};
      const V loaded = share == nullptr ? a : W::get(share + k) * a;
      const V term = loaded * r * r;
      sum += term;
      fall += term * r;
    }
    const double scale = wanted[n] * wanted[n] / carriers;
    return {scale * W::total(sum), -2.0 * scale * W::total(fall)};
  }

  TF_TOGETHER bool step(double noise, double tolerance) {
    double have = noise, weights = 0.0, least = kInfinity;
    for (int64_t n = 0; n < users; ++n) {
      if (!(active_[n] > 0.0)) continue;
      const Needed found = measure(n, tau[n]);
      const double root = sqrt(found.need), phi = inverse_of(root);
      const double rise = -0.5 * found.slope * inverse_of(root * found.need);
      const double weight = power[n] / rise;
      have += weight * phi - power[n] * tau[n];
      weights += weight;
      least = phi < least ? phi : least;
      if (W::rank() != 0) continue;
      phi_[n] = phi;
      rise_[n] = rise;
    }
    W::sync();
    double psi = have * inverse_of(weights);
    psi = psi > 0.0 ? psi : least;
    bool settled = true;
    for (int64_t n = 0; n < users; ++n) {
      if (active_[n] > 0.0) {
        const double moved = tau[n] + (psi - phi_[n]) / rise_[n];
        settled = settled && size_of(phi_[n] - psi) <= tolerance * psi && moved > 0.0;
      } else {
        settled = settled && !(bound_[n] < psi);
      }
    }
    each_user([&](int64_t n) {
      if (active_[n] > 0.0) {
        const double moved = tau[n] + (psi - phi_[n]) / rise_[n];
        if (moved > 0.0) {
          tau[n] = moved;
        } else if (bound_[n] >= psi) {
          tau[n] = active_[n] = 0.0;
        } else {
          tau[n] *= 0.1;
        }
      } else if (bound_[n] < psi) {
        tau[n] = 1e-3 * noise / power[n];
        active_[n] = 1.0;
      }
    });
    return settled;
  }

  double *bound_ = nullptr, *phi_ = nullptr, *rise_ = nullptr, *active_ = nullptr;
};

}  // namespace TF_NS
