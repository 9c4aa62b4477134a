// Joint and separable power allocation on the CPU. Two users, the usual case, are solved in the inputs' own precision by Newton's method
// on the one free dual variable, all carriers of a row in registers' width; other numbers of users, and rows where that does not settle
// well inside the simplex, in double precision by power_dual.hpp.
#include "power_dual.hpp"
#include "power_lanes.hpp"

#include "../core/pages.hpp"
#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

namespace {

constexpr int64_t kGrain = 64;  // rows per thread at least
constexpr int kPairSteps = 12;

template <class T>
struct JointRow {
  Room<T> room;
  Room<double> wide, solver;
  Dual<Alone> dual;
};

template <class T>
struct Out {
  T *transmit, *alpha, *mu, *objective;
};

template <class T>
Out<T> out_of(const JointArgs& a, int64_t row) {
  const int64_t n = a.shape.users;
  return {static_cast<T*>(a.transmit) + 2 * row * n * a.shape.carriers, static_cast<T*>(a.alpha) + row, static_cast<T*>(a.mu) + row * n,
          static_cast<T*>(a.objective) + row};
}

// Sums at mu_1 = m, q = 1 - m with D = noise m q + b1 q + b2 m:
// A_1 = sum S b1 (q/D)^2, A_2 = sum S b2 (m/D)^2, their difference's derivative, and 1 / D.
template <class T>
struct PairSums {
  T first, second, slope;
};

template <class T>
TF_HD PairSums<T> pair_sums(const T* b1, const T* b2, const T* wanted, T* inverse, int64_t width, T noise, T m) {
  using L = Lanes<T>;
  const T q = T(1) - m;
  const T base = noise * m * q, tilt = noise * (q - m), qq = q * q, mm = m * m;
  L first = {}, second = {}, slope = {};
  for (int64_t k = 0; k < width; k += kWide) {
    const L x = at(b1 + k), y = at(b2 + k);
    const L load = x * q + y * m;
    const L r = T(1) / (load + base);
    put(inverse + k, r);
    const L srr = at(wanted + k) * r * r;
    const L one = x * qq, two = y * mm;
    first += srr * one;
    second += srr * two;
    slope += srr * (load + (one - two) * (tilt - x + y) * r);
  }
  return {total<T>(first), total<T>(second), T(-2) * total<T>(slope)};
}

// Two users in T. False where the double-precision method has to do the row.
template <class T>
bool joint_pair(const JointArgs& a, int64_t row, JointRow<T>& held) {
  using L = Lanes<T>;
  const int64_t carriers = a.shape.carriers, width = padded(carriers);
  T* const room = held.room.take(10 * width);
  T *g1r = room, *g1i = room + width, *g2r = room + 2 * width, *g2i = room + 3 * width, *sr = room + 4 * width, *si = room + 5 * width;
  T *b1 = room + 6 * width, *b2 = room + 7 * width, *wanted = room + 8 * width, *inverse = room + 9 * width;
  load_complex<T>(a.gains, row, 0, carriers, g1r, g1i);
  load_complex<T>(a.gains, row, 1, carriers, g2r, g2i);
  load_complex<T>(a.symbols, row, 0, carriers, sr, si);
  const T p1 = value_at<T>(a.power, row, 0), p2 = value_at<T>(a.power, row, 1);
  for (T* part : {g1r, g1i, g2r, g2i, sr, si}) fill(part + carriers, width - carriers, T(0));
  L top = {}, loud = {};
  for (int64_t k = 0; k < width; k += kWide) {
    const L x = (at(g1r + k) * at(g1r + k) + at(g1i + k) * at(g1i + k)) * p1;
    const L y = (at(g2r + k) * at(g2r + k) + at(g2i + k) * at(g2i + k)) * p2;
    const L s = at(sr + k) * at(sr + k) + at(si + k) * at(si + k);
    put(b1 + k, x);
    put(b2 + k, y);
    put(wanted + k, s);
    const L most = x > y ? x : y;
    top = most > top ? most : top;
    loud = s > loud ? s : loud;
  }
  const T gain = largest<T>(top), size = largest<T>(loud);
  if (!(p1 > 0 && p2 > 0 && gain > T(1e-30) && gain < T(1e30) && size > T(1e-30) && size < T(1e30))) return false;
  const T down = T(1) / gain, quiet = T(1) / size;
  const T noise = value_at<T>(a.noise, row, 0) * down;
  if (!(noise >= 0 && noise < T(1e15))) return false;
  if (a.statistics.data != nullptr) load_real<T>(a.statistics, row, 0, carriers, wanted);
  L one = {}, two = {};
  for (int64_t k = 0; k < width; k += kWide) {
    const L x = at(b1 + k) * down, y = at(b2 + k) * down, s = at(wanted + k) * quiet;
    put(b1 + k, x);
    put(b2 + k, y);
    put(wanted + k, s);
    one += s * x;
    two += s * y;
  }
  if (width > carriers) {  // so that D is not 0 behind the last carrier; S is 0 there
    fill(b1 + carriers, width - carriers, T(1));
    fill(b2 + carriers, width - carriers, T(1));
  }
  const T r1 = sqrt(total<T>(one)), r2 = sqrt(total<T>(two));
  if (!(r1 > 0 && r2 > 0)) return false;
  T m = r1 / (r1 + r2), low = 0, high = 1;
  const T tolerance = static_cast<T>(a.tolerance);
  PairSums<T> found;
  int32_t steps = 0;
  for (;; ++steps) {
    if (!(m > T(1e-3) && m < T(0.999))) return false;
    found = pair_sums(b1, b2, wanted, inverse, width, noise, m);
    const T off = found.first - found.second, most = found.first > found.second ? found.first : found.second;
    if (off <= tolerance * most && -off <= tolerance * most) break;
    if (steps == kPairSteps || steps == a.most) return false;
    (off > 0 ? low : high) = m;
    m -= off / found.slope;
    if (!(m > low && m < high)) m = (low + high) / 2;
  }
  L rest = {}, sharp = {};
  for (int64_t k = 0; k < width; k += kWide) {
    const L r = at(inverse + k);
    rest += at(wanted + k) * r;
    sharp = r > sharp ? r : sharp;
  }
  if (!(largest<T>(sharp) < T(1e15))) return false;
  const T q = T(1) - m, most = found.first > found.second ? found.first : found.second;
  const T alpha = sqrt(most / static_cast<T>(carriers));
  if (!(alpha > 0)) return false;
  const T g_scale = sqrt(down), s_scale = sqrt(quiet);
  const Out<T> out = out_of<T>(a, row);
  const T over = g_scale * s_scale / alpha;
  store_turned(inverse, p1 * q * over, g1r, g1i, sr, si, carriers, out.transmit);
  store_turned(inverse, p2 * m * over, g2r, g2i, sr, si, carriers, out.transmit + 2 * carriers);
  *out.alpha = alpha * g_scale / s_scale;
  out.mu[0] = m;
  out.mu[1] = q;
  *out.objective = noise * m * q * total<T>(rest) * size;
  a.iterations[row] = steps;
  return true;
}

// The largest part of a row of numbers, not finite if one of them is not; 0 for a row of zeros.
inline double largest_of(const double* values, int64_t n) {
  double top = 0.0, poison = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const double size = __builtin_fabs(values[k]);
    top = size > top ? size : top;
    poison += values[k] * 0.0;
  }
  return top + poison;
}

template <class T>
void no_row(const JointArgs& a, int64_t row) {
  const T nan = static_cast<T>(__builtin_nan(""));
  const Out<T> out = out_of<T>(a, row);
  fill(out.transmit, 2 * a.shape.users * a.shape.carriers, nan);
  fill(out.mu, a.shape.users, nan);
  *out.alpha = *out.objective = nan;
  a.iterations[row] = 0;
}

template <class T>
void joint_general(const JointArgs& a, int64_t row, JointRow<T>& held) {
  const int64_t users = a.shape.users, carriers = a.shape.carriers, width = padded(carriers);
  double* const room = held.wide.take((2 * users + 5) * width);
  double *gr = room, *gi = gr + users * width, *sr = gi + users * width, *si = sr + width, *received = si + width;
  double* const factor = received + 2 * width;
  for (int64_t k = 0; k < (2 * users + 2) * width; ++k) room[k] = 0.0;
  for (int64_t n = 0; n < users; ++n) load_complex<T>(a.gains, row, n, carriers, gr + n * width, gi + n * width);
  load_complex<T>(a.symbols, row, 0, carriers, sr, si);
  double g_size = largest_of(gr, 2 * users * width), s_size = largest_of(sr, 2 * width);
  bool fine = __builtin_isfinite(g_size) && __builtin_isfinite(s_size);
  for (int64_t n = 0; n < users; ++n) {
    const double p = value_at<T>(a.power, row, n);
    fine = fine && p > 0.0 && __builtin_isfinite(p);
  }
  const double given = value_at<T>(a.noise, row, 0);
  if (!(fine && given >= 0.0 && __builtin_isfinite(given))) return no_row<T>(a, row);
  g_size = g_size > 0.0 ? g_size : 1.0;
  s_size = s_size > 0.0 ? s_size : 1.0;
  Dual<Alone>& dual = held.dual;
  dual.shape(users, width, held.solver.take(Dual<Alone>::doubles(users, width)));
  dual.noise = given / g_size / g_size;
  for (int64_t n = 0; n < users; ++n) {
    const double p = value_at<T>(a.power, row, n);
    for (int64_t k = n * width; k < (n + 1) * width; ++k) {
      gr[k] /= g_size;
      gi[k] /= g_size;
      dual.b[k] = p * (gr[k] * gr[k] + gi[k] * gi[k]);
    }
  }
  for (int64_t k = 0; k < width; ++k) {
    sr[k] /= s_size;
    si[k] /= s_size;
    dual.wanted[k] = sr[k] * sr[k] + si[k] * si[k];
  }
  if (a.statistics.data != nullptr) {
    load_real<T>(a.statistics, row, 0, carriers, dual.wanted);
    for (int64_t k = 0; k < carriers; ++k) dual.wanted[k] = dual.wanted[k] / s_size / s_size;
  }
  dual.solve(sizeof(T) == 4 && a.tolerance > 1e-7 ? 1e-7 : a.tolerance, a.most);
  const double alpha = sqrt(dual.top() / static_cast<double>(carriers)), over = inverse_of(alpha);
  const Out<T> out = out_of<T>(a, row);
  for (int64_t k = 0; k < 2 * width; ++k) received[k] = 0.0;
  for (int64_t n = 0; n < users; ++n) {
    const double share = static_cast<double>(value_at<T>(a.power, row, n)) * inverse_of(dual.mu[n]);
    for (int64_t k = 0; k < width; ++k) {
      factor[k] = share * dual.inverse[k];
      const double heard = factor[k] * (gr[n * width + k] * gr[n * width + k] + gi[n * width + k] * gi[n * width + k]);
      received[k] += heard * sr[k];
      received[width + k] += heard * si[k];
    }
    store_turned(factor, over, gr + n * width, gi + n * width, sr, si, carriers, out.transmit + 2 * n * carriers);
    out.mu[n] = static_cast<T>(dual.mu[n]);
  }
  double cost = dual.noise * static_cast<double>(carriers) * alpha * alpha;
  for (int64_t k = 0; k < carriers; ++k) {
    const double re = alpha > 0.0 ? received[k] - sr[k] : -sr[k], im = alpha > 0.0 ? received[width + k] - si[k] : -si[k];
    cost += re * re + im * im;
  }
  *out.alpha = static_cast<T>(alpha * s_size / g_size);
  *out.objective = static_cast<T>(cost * s_size * s_size);
  a.iterations[row] = dual.iterations;
}

template <class T>
void joint_rows(const JointArgs& a) {
  ask_for_large_pages(a.transmit, 2 * a.shape.rows * a.shape.users * a.shape.carriers * static_cast<int64_t>(sizeof(T)));
  parallel_ranges(
      a.shape.rows, a.threads,
      [&](int64_t first, int64_t last) {
        JointRow<T> held;
        for (int64_t row = first; row < last; ++row) {
          if (a.shape.users == 2 && joint_pair(a, row, held)) continue;
          joint_general(a, row, held);
        }
      },
      kGrain);
}

void joint(const JointArgs& a) { a.shape.dtype == kFloat64 ? joint_rows<double>(a) : joint_rows<float>(a); }

}  // namespace

void separable_power(const SeparableArgs& a);
void water_power(const WaterArgs& a);
void mse_water_power(const MseWaterArgs& a);
void normalize_power(const NormalizeArgs& a);

extern const tenfold::PowerKernels power_kernels;
const tenfold::PowerKernels power_kernels = {joint, separable_power, water_power, mse_water_power, normalize_power};

}  // namespace TF_NS
