// The dual of the joint allocation in double precision for any number of users: Newton's method in log mu and, where the optimum lies on
// the boundary of the simplex, a primal-dual interior-point method. The same algorithm as power_reference.py, one row at a time, by one
// thread on the CPU and by several on CUDA (W: power_scalar.hpp).
#pragma once

#include "power_scalar.hpp"

namespace TF_NS {

// matrix [n][n] x = right, solved in place with row pivots; false if it is singular.
template <class W>
TF_TOGETHER bool solve_dense(double* matrix, double* right, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    W::sync();
    int64_t pivot = c;
    for (int64_t i = c + 1; i < n; ++i) {
      if (size_of(matrix[i * n + c]) > size_of(matrix[pivot * n + c])) pivot = i;
    }
    if (!(size_of(matrix[pivot * n + c]) > 0.0)) return false;
    if (pivot != c) {
      W::sync();
      for (int64_t j = c + W::rank(); j <= n; j += W::kRanks) {
        double& mine = j < n ? matrix[c * n + j] : right[c];
        double& other = j < n ? matrix[pivot * n + j] : right[pivot];
        const double kept = mine;
        mine = other;
        other = kept;
      }
      W::sync();
    }
    const double over = 1.0 / matrix[c * n + c];
    for (int64_t i = c + 1 + W::rank(); i < n; i += W::kRanks) {
      const double factor = matrix[i * n + c] * over;
      if (factor == 0.0) continue;
      for (int64_t j = c + 1; j < n; ++j) matrix[i * n + j] -= factor * matrix[c * n + j];
      right[i] -= factor * right[c];
    }
  }
  W::sync();
  if (W::rank() == 0) {
    for (int64_t i = n - 1; i >= 0; --i) {
      for (int64_t j = i + 1; j < n; ++j) right[i] -= matrix[i * n + j] * right[j];
      right[i] /= matrix[i * n + i];
    }
  }
  W::sync();
  double poison = 0.0;
  for (int64_t i = 0; i < n; ++i) poison += right[i] * 0.0;
  return poison == 0.0;
}

// b [users][width] and wanted S [width], scaled to at most about 1, zero behind the last carrier.
template <class W>
class Dual {
 public:
  using V = typename W::V;

  int64_t users = 0, width = 0;
  double noise = 0.0;
  double *b = nullptr, *wanted = nullptr;
  double *mu = nullptr, *needed = nullptr, *inverse = nullptr;  // of the last `sums`
  double spread = 0.0;
  int32_t iterations = 0;

  TF_HD static int64_t doubles(int64_t n, int64_t wide) { return (n + 2) * wide + 7 * W::padded(n) + n * n + (n + 1) * (n + 2); }

  TF_TOGETHER void shape(int64_t n, int64_t wide, double* room) {
    users = n;
    width = wide;
    b = room;
    wanted = b + n * wide;
    inverse = wanted + wide;
    mu = inverse + wide;
    needed = mu + W::padded(n);
    weighted_ = needed + W::padded(n);
    slack_ = weighted_ + W::padded(n);
    best_ = slack_ + W::padded(n);
    start_ = best_ + W::padded(n);
    kept_ = start_ + W::padded(n);
    curvature_ = kept_ + W::padded(n);
    matrix_ = curvature_ + n * n;
    right_ = matrix_ + (n + 1) * (n + 1);
  }

  // mu, needed and inverse at the optimum.
  TF_TOGETHER void solve(double tolerance, int64_t most) {
    iterations = 0;
    begin();
    newton(tolerance, most < kNewtonSteps ? most : kNewtonSteps);
    const int64_t room = most - kNewtonSteps;
    for (int careful = 0; careful < 2; ++careful) {
      if (spread <= tolerance || room <= 0) break;
      const InteriorMethod method = careful == 0 ? kInterior : kCareful;
      const double before = spread;
      each_user([&](int64_t n) { kept_[n] = mu[n]; });
      interior(tolerance, {method.most < room ? method.most : room, method.centring, method.reach});
      if (spread < before) continue;
      each_user([&](int64_t n) { mu[n] = kept_[n]; });
      spread = before;
    }
    sums();
  }

  TF_TOGETHER void sums() {
    for (int64_t k = W::begin(); k < width; k += W::kStep) {
      V den = V{} + noise;
      for (int64_t n = 0; n < users; ++n) den += W::get(b + n * width + k) * inverse_of(mu[n]);
      W::put(inverse + k, den == V{} ? V{} : 1.0 / (den == V{} ? V{} + 1.0 : den));
    }
    for (int64_t n = 0; n < users; ++n) {
      V sum = {};
      for (int64_t k = W::begin(); k < width; k += W::kStep) {
        const V r = W::get(inverse + k);
        sum += W::get(wanted + k) * W::get(b + n * width + k) * r * r;
      }
      const double found = W::total(sum);
      if (W::rank() != 0) continue;
      const double over = inverse_of(mu[n]);
      weighted_[n] = mu[n] > 0.0 ? found : 0.0;
      needed[n] = weighted_[n] * over * over;
    }
    W::sync();
  }

  TF_TOGETHER double top() const {
    double most = needed[0];
    for (int64_t n = 1; n < users; ++n) most = needed[n] > most ? needed[n] : most;
    return most;
  }

 private:
  // work(n) for every user, each by one thread, when all threads have come here; what it writes is seen behind it.
  template <class Work>
  TF_TOGETHER void each_user(const Work& work) {
    W::sync();
    for (int64_t n = W::rank(); n < users; n += W::kRanks) work(n);
    W::sync();
  }

  TF_TOGETHER void begin() {
    double sum = 0.0;
    live_ = 0;
    for (int64_t n = 0; n < users; ++n) {
      V found = {};
      for (int64_t k = W::begin(); k < width; k += W::kStep) found += W::get(wanted + k) * W::get(b + n * width + k);
      const double strength = sqrt(W::total(found));
      if (W::rank() == 0) start_[n] = strength;
      sum += strength;
      live_ += strength > 0.0;
    }
    each_user([&](int64_t n) { mu[n] = start_[n] *= inverse_of(sum); });
  }

  TF_TOGETHER void curvature() {
    for (int64_t i = 0; i < users; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        V sum = {};
        for (int64_t k = W::begin(); k < width; k += W::kStep) {
          const V r = W::get(inverse + k);
          sum += W::get(wanted + k) * r * r * r * W::get(b + i * width + k) * W::get(b + j * width + k);
        }
        const double found = W::total(sum);
        if (W::rank() == 0) curvature_[i * users + j] = curvature_[j * users + i] = found;
      }
    }
    W::sync();
  }

  TF_TOGETHER double gap() const {
    const double most = top();
    double mean = 0.0;
    for (int64_t n = 0; n < users; ++n) mean += mu[n] * needed[n];
    return (most - mean) * inverse_of(most);
  }

  // log A_n = nu, sum mu = 1 in log mu, by steps of at most 1.
  TF_TOGETHER void newton(double tolerance, int64_t most) {
    const int64_t side = users + 1;
    spread = 0.0;
    if (live_ < 2) return;
    for (int64_t step = 0;; ++step) {
      sums();
      double low = kInfinity;
      for (int64_t n = 0; n < users; ++n) low = mu[n] > 0.0 && needed[n] < low ? needed[n] : low;
      spread = (top() - low) * inverse_of(top());
      if (spread <= tolerance || step == most) return;
      ++iterations;
      curvature();
      each_user([&](int64_t i) {
        const double over = inverse_of(weighted_[i]);
        for (int64_t j = 0; j < users; ++j) {
          matrix_[i * side + j] = 2.0 * curvature_[i * users + j] * inverse_of(mu[j]) * over - (i == j ? 2.0 : 0.0);
        }
        matrix_[i * side + users] = mu[i] > 0.0 ? -1.0 : 0.0;
        matrix_[users * side + i] = mu[i];
        right_[i] = mu[i] > 0.0 ? -log_of(needed[i]) : 0.0;
        if (i == 0) matrix_[users * side + users] = right_[users] = 0.0;
      });
      if (!solve_dense<W>(matrix_, right_, side)) return;
      double size = 1.0, sum = 0.0;
      for (int64_t n = 0; n < users; ++n) {
        const double moved = mu[n] > 0.0 ? size_of(right_[n]) : 0.0;
        size = moved > size ? moved : size;
      }
      each_user([&](int64_t n) { mu[n] = mu[n] * exp_of(mu[n] > 0.0 ? right_[n] / size : 0.0); });
      for (int64_t n = 0; n < users; ++n) sum += mu[n];
      each_user([&](int64_t n) { mu[n] = mu[n] / sum; });
    }
  }

  TF_TOGETHER void interior(double tolerance, const InteriorMethod& method) {
    const int64_t side = users + 1;
    const double count = static_cast<double>(live_);
    each_user([&](int64_t n) { mu[n] = start_[n] > 0.0 ? 0.9 * start_[n] + 0.1 / count : 0.0; });
    sums();
    double nu = 0.0;
    for (int64_t n = 0; n < users; ++n) nu += 1.1 * mu[n] * needed[n];
    each_user([&](int64_t n) {
      const double free = nu - needed[n];
      slack_[n] = mu[n] > 0.0 ? (free > 0.1 * nu ? free : 0.1 * nu) : 0.0;
      best_[n] = mu[n];
    });
    double least = gap();
    for (int64_t step = 0;; ++step) {
      const double now = gap();
      if (now < least) {
        least = now;
        each_user([&](int64_t n) { best_[n] = mu[n]; });
      }
      if (least <= tolerance || step == method.most) break;
      ++iterations;
      if (!interior_step(method, side, count, nu)) break;
      sums();
    }
    each_user([&](int64_t n) { mu[n] = best_[n]; });
    spread = least;
  }

  TF_TOGETHER bool interior_step(const InteriorMethod& method, int64_t side, double count, double& nu) {
    curvature();
    double goal = 0.0, sum = 0.0;
    for (int64_t n = 0; n < users; ++n) {
      goal += method.centring * mu[n] * slack_[n] / count;
      sum += mu[n];
    }
    each_user([&](int64_t i) {
      const bool in = start_[i] > 0.0;
      for (int64_t j = 0; j < users; ++j) {
        matrix_[i * side + j] = in && start_[j] > 0.0 ? 2.0 * curvature_[i * users + j] / (mu[i] * mu[j]) : 0.0;
      }
      matrix_[i * side + i] += in ? -(2.0 * weighted_[i] / mu[i] + slack_[i] * mu[i]) : 1.0;
      matrix_[i * side + users] = in ? -mu[i] : 0.0;
      matrix_[users * side + i] = in ? mu[i] : 0.0;
      right_[i] = in ? (nu - needed[i]) * mu[i] - goal : 0.0;
      if (i > 0) return;
      matrix_[users * side + users] = 0.0;
      right_[users] = 1.0 - sum;
    });
    if (!solve_dense<W>(matrix_, right_, side)) return false;
    const auto change = [&](int64_t n) { return (goal - slack_[n] * (right_[n] * mu[n])) / mu[n] - slack_[n]; };
    double go = kInfinity;
    for (int64_t n = 0; n < users; ++n) {
      if (!(start_[n] > 0.0)) continue;
      const double moved = right_[n] * mu[n], changed = change(n);
      if (moved < 0.0 && -mu[n] / moved < go) go = -mu[n] / moved;
      if (changed < 0.0 && -slack_[n] / changed < go) go = -slack_[n] / changed;
    }
    go = method.reach * go < 1.0 ? method.reach * go : 1.0;
    each_user([&](int64_t n) {
      if (!(start_[n] > 0.0)) return;
      const double changed = change(n);
      mu[n] += go * right_[n] * mu[n];
      slack_[n] += go * changed;
    });
    nu += go * right_[users];
    return true;
  }

  int64_t live_ = 0;
  double *weighted_ = nullptr, *slack_ = nullptr, *best_ = nullptr, *start_ = nullptr, *kept_ = nullptr;
  double *curvature_ = nullptr, *matrix_ = nullptr, *right_ = nullptr;
};

}  // namespace TF_NS
