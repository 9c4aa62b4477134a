// Separable power allocation on the CPU, in double precision: Newton's method on M_n^(-1/2) with an active set, as power_reference.py does
// it, one row at a time.
#include "power_lanes.hpp"

#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kGrain = 64;

inline double over(double x) { return x == 0.0 ? 0.0 : 1.0 / x; }

// One row: strength |g|^2 [users][width] scaled to at most about 1, shares of the power, and what the method keeps per user.
struct SeparableRow {
  Room<double> room;
  int64_t users = 0, width = 0, carriers = 0;
  double *gr = nullptr, *gi = nullptr, *strength = nullptr, *share = nullptr;
  double *tau = nullptr, *need = nullptr, *slope = nullptr, *bound = nullptr, *wanted = nullptr, *power = nullptr, *phi = nullptr,
         *rise = nullptr;
  bool* active = nullptr;
  int32_t iterations = 0;

  void shape(int64_t n, int64_t k) {
    users = n;
    carriers = k;
    width = padded(k);
    const int64_t block = n * width, each = padded(n);
    gr = room.zeros(4 * block + 9 * each);
    gi = gr + block;
    strength = gi + block;
    share = strength + block;
    tau = share + block;
    need = tau + each;
    slope = need + each;
    bound = slope + each;
    wanted = bound + each;
    power = wanted + each;
    phi = power + each;
    rise = phi + each;
    active = reinterpret_cast<bool*>(rise + each);
  }

  // M_n(tau) = c^2 mean_k q |g|^2 / (|g|^2 + tau)^2 and its derivative.
  void measure(int64_t n, double at_tau) {
    using L = Lanes<double>;
    L sum = {}, fall = {};
    for (int64_t k = n * width; k < (n + 1) * width; k += kWide) {
      const L a = at(strength + k);
      const L d = a + at_tau;
      const L r = a > L{} ? 1.0 / (a > L{} ? d : L{} + 1.0) : L{};
      const L term = at(share + k) * a * r * r;
      sum += term;
      fall += term * r;
    }
    const double scale = wanted[n] * wanted[n] / static_cast<double>(carriers);
    need[n] = scale * total<double>(sum);
    slope[n] = -2.0 * scale * total<double>(fall);
  }

  void solve(double noise, double tolerance, int64_t most) {
    iterations = 0;
    int64_t count = 0;
    for (int64_t n = 0; n < users; ++n) {
      measure(n, 0.0);
      bound[n] = need[n] > 0.0 ? 1.0 / sqrt(need[n]) : __builtin_inf();
      active[n] = need[n] > 0.0 && noise > 0.0;
      count += active[n];
    }
    for (int64_t n = 0; n < users; ++n) tau[n] = active[n] ? noise / (static_cast<double>(count) * power[n]) : 0.0;
    for (bool settled = count == 0; !settled && iterations < most; ++iterations) settled = step(noise, tolerance);
    double spent = 0.0;
    for (int64_t n = 0; n < users; ++n) spent += power[n] * tau[n];
    for (int64_t n = 0; n < users; ++n) {
      if (spent > 0.0) tau[n] *= noise / spent;  // meets sum P tau = noise
      measure(n, tau[n]);
    }
  }

 private:
  bool step(double noise, double tolerance) {
    double have = noise, weights = 0.0, least = __builtin_inf();
    for (int64_t n = 0; n < users; ++n) {
      phi[n] = 0.0;
      if (!active[n]) continue;
      measure(n, tau[n]);
      const double root = sqrt(need[n]);
      phi[n] = over(root);
      rise[n] = -0.5 * slope[n] * over(root * need[n]);
      const double weight = power[n] / rise[n];
      have += weight * phi[n] - power[n] * tau[n];
      weights += weight;
      least = phi[n] < least ? phi[n] : least;
    }
    double psi = have * over(weights);
    psi = psi > 0.0 ? psi : least;
    bool settled = true;
    for (int64_t n = 0; n < users; ++n) {
      if (active[n]) {
        const double moved = tau[n] + (psi - phi[n]) / rise[n];
        if (!(__builtin_fabs(phi[n] - psi) <= tolerance * psi)) settled = false;
        if (moved > 0.0) {
          tau[n] = moved;
        } else if (bound[n] >= psi) {
          tau[n] = 0.0;
          active[n] = false;
          settled = false;
        } else {
          tau[n] *= 0.1;
          settled = false;
        }
      } else if (bound[n] < psi) {
        tau[n] = 1e-3 * noise / power[n];
        active[n] = true;
        settled = false;
      }
    }
    return settled;
  }
};

template <class T>
struct SeparableOut {
  T *precoder, *alpha, *tau, *objective;
};

template <class T>
void separable_row(const SeparableArgs& a, int64_t row, SeparableRow& r) {
  const int64_t users = a.shape.users, carriers = a.shape.carriers;
  const SeparableOut<T> out = {static_cast<T*>(a.precoder) + 2 * row * users * carriers, static_cast<T*>(a.alpha) + row,
                               static_cast<T*>(a.tau) + row * users, static_cast<T*>(a.objective) + row};
  r.shape(users, carriers);
  const double given = value_at<T>(a.noise, row, 0);
  double poison = given * 0.0, top = 0.0;
  bool fine = given >= 0.0;
  for (int64_t n = 0; n < users; ++n) {
    const int64_t at_user = n * r.width;
    load_complex<T>(a.gains, row, n, carriers, r.gr + at_user, r.gi + at_user);
    if (a.weights.data != nullptr) load_real<T>(a.weights, row, n, carriers, r.share + at_user);
    r.power[n] = value_at<T>(a.power, row, n);
    r.wanted[n] = value_at<T>(a.wanted, row, n);
    fine = fine && r.power[n] > 0.0;
    poison += r.power[n] * 0.0 + r.wanted[n] * 0.0;
    for (int64_t k = at_user; k < at_user + carriers; ++k) {
      const double re = __builtin_fabs(r.gr[k]), im = __builtin_fabs(r.gi[k]), most = re > im ? re : im;
      top = most > top ? most : top;
      poison += re * 0.0 + im * 0.0 + r.share[k] * 0.0;
    }
  }
  if (!(fine && poison == 0.0)) {
    const T nan = static_cast<T>(__builtin_nan(""));
    fill(out.precoder, 2 * users * carriers, nan);
    fill(out.tau, users, nan);
    *out.alpha = *out.objective = nan;
    a.iterations[row] = 0;
    return;
  }
  const double size = top > 0.0 ? top : 1.0, noise = given / size / size;
  for (int64_t n = 0; n < users; ++n) {
    for (int64_t k = n * r.width; k < n * r.width + carriers; ++k) {
      r.gr[k] /= size;
      r.gi[k] /= size;
      r.strength[k] = r.gr[k] * r.gr[k] + r.gi[k] * r.gi[k];
      r.share[k] = a.weights.data == nullptr ? 1.0 : r.share[k] / r.power[n];
    }
  }
  r.solve(noise, a.tolerance, a.most);
  double level = 0.0, cost = 0.0;
  for (int64_t n = 0; n < users; ++n) level = r.need[n] > level ? r.need[n] : level;
  const double alpha = sqrt(level), scale = over(alpha);
  for (int64_t n = 0; n < users; ++n) {
    T* const to = out.precoder + 2 * n * carriers;
    const double c = r.wanted[n], tau = r.tau[n];
    for (int64_t k = 0; k < carriers; ++k) {
      const int64_t i = n * r.width + k;
      const double d = r.strength[i] > 0.0 ? 1.0 / (r.strength[i] + tau) : 0.0, by = c * d * scale;
      to[2 * k] = static_cast<T>(by * r.gr[i]);
      to[2 * k + 1] = static_cast<T>(-by * r.gi[i]);
      const double lost = c * (d > 0.0 ? tau * d : 1.0);
      cost += r.power[n] * r.share[i] * lost * lost;
    }
    out.tau[n] = static_cast<T>(tau * size * size);
  }
  *out.alpha = static_cast<T>(alpha / size);
  *out.objective = static_cast<T>(cost + noise * static_cast<double>(carriers) * level);
  a.iterations[row] = r.iterations;
}

template <class T>
void separable_rows(const SeparableArgs& a) {
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        SeparableRow held;
        for (int64_t row = first; row < last; ++row) separable_row<T>(a, row, held);
      },
      kGrain);
}

}  // namespace

void separable_power(const SeparableArgs& a) { a.shape.dtype == kFloat64 ? separable_rows<double>(a) : separable_rows<float>(a); }

}  // namespace TF_NS
