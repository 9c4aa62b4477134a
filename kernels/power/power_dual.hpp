// The dual of the joint allocation in double precision for any number of users: Newton's method in log mu and, where the optimum lies on
// the boundary of the simplex, a primal-dual interior-point method. The same algorithm as power_reference.py, one row at a time.
#pragma once

#include "power_lanes.hpp"
#include "power_scalar.hpp"

#include "../core/room.hpp"

namespace TF_NS {

// matrix [n][n] x = right, solved in place with row pivots; false if it is singular.
inline bool solve_dense(double* matrix, double* right, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    int64_t pivot = c;
    for (int64_t i = c + 1; i < n; ++i) {
      if (__builtin_fabs(matrix[i * n + c]) > __builtin_fabs(matrix[pivot * n + c])) pivot = i;
    }
    if (!(__builtin_fabs(matrix[pivot * n + c]) > 0.0)) return false;
    if (pivot != c) {
      for (int64_t j = c; j < n; ++j) {
        const double kept = matrix[c * n + j];
        matrix[c * n + j] = matrix[pivot * n + j];
        matrix[pivot * n + j] = kept;
      }
      const double kept = right[c];
      right[c] = right[pivot];
      right[pivot] = kept;
    }
    const double over = 1.0 / matrix[c * n + c];
    for (int64_t i = c + 1; i < n; ++i) {
      const double factor = matrix[i * n + c] * over;
      if (factor == 0.0) continue;
      for (int64_t j = c + 1; j < n; ++j) matrix[i * n + j] -= factor * matrix[c * n + j];
      right[i] -= factor * right[c];
    }
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    for (int64_t j = i + 1; j < n; ++j) right[i] -= matrix[i * n + j] * right[j];
    right[i] /= matrix[i * n + i];
    if (!__builtin_isfinite(right[i])) return false;
  }
  return true;
}

// b [users][width] and wanted S [width], scaled to at most about 1, zero behind the last carrier.
class Dual {
 public:
  int64_t users = 0, width = 0;
  double noise = 0.0;
  double *b = nullptr, *wanted = nullptr;
  double *mu = nullptr, *needed = nullptr, *inverse = nullptr;  // of the last `sums`
  double spread = 0.0;
  int32_t iterations = 0;

  void shape(int64_t n, int64_t wide) {
    users = n;
    width = wide;
    double* at = room_.take((n + 2) * wide + 9 * padded(n) + (n + 1) * (n + 2) + n * n);
    b = at;
    wanted = (at += n * wide);
    inverse = (at += wide);
    mu = (at += wide);
    needed = (at += padded(n));
    weighted_ = (at += padded(n));
    slack_ = (at += padded(n));
    best_ = (at += padded(n));
    change_ = (at += padded(n));
    start_ = (at += padded(n));
    kept_ = (at += padded(n));
    curvature_ = (at += 2 * padded(n));
    matrix_ = (at += n * n);
    right_ = matrix_ + (n + 1) * (n + 1);
  }

  // mu, needed and inverse at the optimum.
  void solve(double tolerance, int64_t most) {
    iterations = 0;
    begin();
    newton(tolerance, most < kNewtonSteps ? most : kNewtonSteps);
    const int64_t room = most - kNewtonSteps;
    for (const InteriorMethod& method : {kInterior, kCareful}) {
      if (spread <= tolerance || room <= 0) break;
      const double before = spread;
      for (int64_t n = 0; n < users; ++n) kept_[n] = mu[n];
      interior(tolerance, {method.most < room ? method.most : room, method.centring, method.reach});
      if (spread < before) continue;
      for (int64_t n = 0; n < users; ++n) mu[n] = kept_[n];
      spread = before;
    }
    sums();
  }

  void sums() {
    using L = Lanes<double>;
    for (int64_t k = 0; k < width; k += kWide) {
      L den = L{} + noise;
      for (int64_t n = 0; n < users; ++n) den += at(b + n * width + k) * inverse_of(mu[n]);
      put(inverse + k, den == L{} ? L{} : 1.0 / (den == L{} ? L{} + 1.0 : den));
    }
    for (int64_t n = 0; n < users; ++n) {
      L sum = {};
      for (int64_t k = 0; k < width; k += kWide) {
        const L r = at(inverse + k);
        sum += at(wanted + k) * at(b + n * width + k) * r * r;
      }
      weighted_[n] = mu[n] > 0.0 ? total<double>(sum) : 0.0;
      const double over = inverse_of(mu[n]);
      needed[n] = weighted_[n] * over * over;
    }
  }

  double top() const {
    double most = needed[0];
    for (int64_t n = 1; n < users; ++n) most = needed[n] > most ? needed[n] : most;
    return most;
  }

 private:
  void begin() {
    double sum = 0.0;
    live_ = 0;
    for (int64_t n = 0; n < users; ++n) {
      Lanes<double> found = {};
      for (int64_t k = 0; k < width; k += kWide) found += at(wanted + k) * at(b + n * width + k);
      start_[n] = sqrt(total<double>(found));
      sum += start_[n];
      live_ += start_[n] > 0.0;
    }
    for (int64_t n = 0; n < users; ++n) mu[n] = start_[n] *= inverse_of(sum);
  }

  void curvature() {
    using L = Lanes<double>;
    for (int64_t i = 0; i < users; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        L sum = {};
        for (int64_t k = 0; k < width; k += kWide) {
          const L r = at(inverse + k);
          sum += at(wanted + k) * r * r * r * at(b + i * width + k) * at(b + j * width + k);
        }
        curvature_[i * users + j] = curvature_[j * users + i] = total<double>(sum);
      }
    }
  }

  double gap() const {
    const double most = top();
    double mean = 0.0;
    for (int64_t n = 0; n < users; ++n) mean += mu[n] * needed[n];
    return (most - mean) * inverse_of(most);
  }

  // log A_n = nu, sum mu = 1 in log mu, by steps of at most 1.
  void newton(double tolerance, int64_t most) {
    const int64_t side = users + 1;
    spread = 0.0;
    if (live_ < 2) return;
    for (int64_t step = 0;; ++step) {
      sums();
      double low = __builtin_inf();
      for (int64_t n = 0; n < users; ++n) low = mu[n] > 0.0 && needed[n] < low ? needed[n] : low;
      spread = (top() - low) * inverse_of(top());
      if (spread <= tolerance || step == most) return;
      ++iterations;
      curvature();
      for (int64_t i = 0; i < users; ++i) {
        const double over = inverse_of(weighted_[i]);
        for (int64_t j = 0; j < users; ++j) {
          matrix_[i * side + j] = 2.0 * curvature_[i * users + j] * inverse_of(mu[j]) * over - (i == j ? 2.0 : 0.0);
        }
        matrix_[i * side + users] = mu[i] > 0.0 ? -1.0 : 0.0;
        matrix_[users * side + i] = mu[i];
        right_[i] = mu[i] > 0.0 ? -__builtin_log(needed[i]) : 0.0;
      }
      matrix_[users * side + users] = 0.0;
      right_[users] = 0.0;
      if (!solve_dense(matrix_, right_, side)) return;
      double size = 1.0, sum = 0.0;
      for (int64_t n = 0; n < users; ++n) {
        const double moved = mu[n] > 0.0 ? __builtin_fabs(right_[n]) : 0.0;
        size = moved > size ? moved : size;
      }
      for (int64_t n = 0; n < users; ++n) sum += change_[n] = mu[n] * __builtin_exp(mu[n] > 0.0 ? right_[n] / size : 0.0);
      for (int64_t n = 0; n < users; ++n) mu[n] = change_[n] / sum;
    }
  }

  void interior(double tolerance, const InteriorMethod& method) {
    const int64_t side = users + 1;
    const double count = static_cast<double>(live_);
    for (int64_t n = 0; n < users; ++n) mu[n] = start_[n] > 0.0 ? 0.9 * start_[n] + 0.1 / count : 0.0;
    sums();
    double nu = 0.0;
    for (int64_t n = 0; n < users; ++n) nu += 1.1 * mu[n] * needed[n];
    for (int64_t n = 0; n < users; ++n) {
      const double free = nu - needed[n];
      slack_[n] = mu[n] > 0.0 ? (free > 0.1 * nu ? free : 0.1 * nu) : 0.0;
      best_[n] = mu[n];
    }
    double least = gap();
    for (int64_t step = 0;; ++step) {
      const double now = gap();
      if (now < least) {
        least = now;
        for (int64_t n = 0; n < users; ++n) best_[n] = mu[n];
      }
      if (least <= tolerance || step == method.most) break;
      ++iterations;
      if (!interior_step(method, side, count, nu)) break;
      sums();
    }
    for (int64_t n = 0; n < users; ++n) mu[n] = best_[n];
    spread = least;
  }

  bool interior_step(const InteriorMethod& method, int64_t side, double count, double& nu) {
    curvature();
    double goal = 0.0, sum = 0.0;
    for (int64_t n = 0; n < users; ++n) {
      goal += method.centring * mu[n] * slack_[n] / count;
      sum += mu[n];
    }
    for (int64_t i = 0; i < users; ++i) {
      const bool in = start_[i] > 0.0;
      for (int64_t j = 0; j < users; ++j) {
        matrix_[i * side + j] = in && start_[j] > 0.0 ? 2.0 * curvature_[i * users + j] / (mu[i] * mu[j]) : 0.0;
      }
      matrix_[i * side + i] += in ? -(2.0 * weighted_[i] / mu[i] + slack_[i] * mu[i]) : 1.0;
      matrix_[i * side + users] = in ? -mu[i] : 0.0;
      matrix_[users * side + i] = in ? mu[i] : 0.0;
      right_[i] = in ? (nu - needed[i]) * mu[i] - goal : 0.0;
    }
    matrix_[users * side + users] = 0.0;
    right_[users] = 1.0 - sum;
    if (!solve_dense(matrix_, right_, side)) return false;
    double go = __builtin_inf();
    for (int64_t n = 0; n < users; ++n) {
      if (!(start_[n] > 0.0)) continue;
      const double moved = right_[n] * mu[n];
      change_[n] = (goal - slack_[n] * moved) / mu[n] - slack_[n];
      if (moved < 0.0 && -mu[n] / moved < go) go = -mu[n] / moved;
      if (change_[n] < 0.0 && -slack_[n] / change_[n] < go) go = -slack_[n] / change_[n];
    }
    go = method.reach * go < 1.0 ? method.reach * go : 1.0;
    for (int64_t n = 0; n < users; ++n) {
      if (!(start_[n] > 0.0)) continue;
      mu[n] += go * right_[n] * mu[n];
      slack_[n] += go * change_[n];
    }
    nu += go * right_[users];
    return true;
  }

  Room<double> room_;
  int64_t live_ = 0;
  double *weighted_ = nullptr, *slack_ = nullptr, *best_ = nullptr, *change_ = nullptr, *start_ = nullptr, *kept_ = nullptr;
  double *curvature_ = nullptr, *matrix_ = nullptr, *right_ = nullptr;
};

}  // namespace TF_NS
