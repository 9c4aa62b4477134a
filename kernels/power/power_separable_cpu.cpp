// Separable power allocation on the CPU, in double precision by power_separable.hpp.
#include "power_lanes.hpp"
#include "power_separable.hpp"

#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kGrain = 64;

struct SeparableRow {
  Room<double> room;
  SeparableDual<Alone> dual;
  double *gr = nullptr, *gi = nullptr;  // [users][width]

  void shape(int64_t users, int64_t carriers) {
    const int64_t width = padded(carriers), block = users * width;
    gr = room.zeros(2 * block + SeparableDual<Alone>::doubles(users, width, true));
    gi = gr + block;
    dual.shape(users, carriers, width, true, gi + block);
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
  SeparableDual<Alone>& dual = r.dual;
  const double given = value_at<T>(a.noise, row, 0);
  double poison = given * 0.0, top = 0.0;
  bool fine = given >= 0.0;
  for (int64_t n = 0; n < users; ++n) {
    const int64_t at_user = n * dual.width;
    load_complex<T>(a.gains, row, n, carriers, r.gr + at_user, r.gi + at_user);
    if (a.weights.data != nullptr) load_real<T>(a.weights, row, n, carriers, dual.share + at_user);
    dual.power[n] = value_at<T>(a.power, row, n);
    dual.wanted[n] = value_at<T>(a.wanted, row, n);
    fine = fine && dual.power[n] > 0.0;
    poison += dual.power[n] * 0.0 + dual.wanted[n] * 0.0;
    for (int64_t k = at_user; k < at_user + carriers; ++k) {
      const double re = __builtin_fabs(r.gr[k]), im = __builtin_fabs(r.gi[k]), most = re > im ? re : im;
      top = most > top ? most : top;
      poison += re * 0.0 + im * 0.0 + dual.share[k] * 0.0;
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
    for (int64_t k = n * dual.width; k < n * dual.width + carriers; ++k) {
      r.gr[k] /= size;
      r.gi[k] /= size;
      dual.strength[k] = r.gr[k] * r.gr[k] + r.gi[k] * r.gi[k];
      dual.share[k] = a.weights.data == nullptr ? 1.0 : dual.share[k] / dual.power[n];
    }
  }
  dual.solve(noise, a.tolerance, a.most);
  double level = 0.0, cost = 0.0;
  for (int64_t n = 0; n < users; ++n) level = dual.need[n] > level ? dual.need[n] : level;
  const double alpha = sqrt(level), scale = inverse_of(alpha);
  for (int64_t n = 0; n < users; ++n) {
    T* const to = out.precoder + 2 * n * carriers;
    const double c = dual.wanted[n], tau = dual.tau[n];
    for (int64_t k = 0; k < carriers; ++k) {
      const int64_t i = n * dual.width + k;
      const double d = dual.strength[i] > 0.0 ? 1.0 / (dual.strength[i] + tau) : 0.0, by = c * d * scale;
      to[2 * k] = static_cast<T>(by * r.gr[i]);
      to[2 * k + 1] = static_cast<T>(-by * r.gi[i]);
      const double lost = c * (d > 0.0 ? tau * d : 1.0);
      cost += dual.power[n] * dual.share[i] * lost * lost;
    }
    out.tau[n] = static_cast<T>(tau * size * size);
  }
  *out.alpha = static_cast<T>(alpha / size);
  *out.objective = static_cast<T>(cost + noise * static_cast<double>(carriers) * level);
  a.iterations[row] = dual.iterations;
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
