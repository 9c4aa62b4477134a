// Joint power allocation on CUDA for one and two users, in the inputs' own precision and entirely in registers: as power_cpu.cpp does it.
// What does not settle well inside the simplex is left to power_dual_cuda.cu, which the same call queues behind.
//
// 8 lanes of a warp share a row of 64 carriers, 8 carriers each: four rows of a warp divide the cost of what is done once per row (sums
// across lanes, the Newton step) between them, at the price that they take as many steps as the slowest. A row moves 40 bytes per carrier
// (two users, float32) and takes about 270 instructions of a warp, by reading, so that memory is the bound.
#include "power_cuda.hpp"
#include "power_group.hpp"

namespace TF_NS {
namespace {

constexpr int kPairSteps = 12;
constexpr int32_t kLeft = -1;  // in place of a number of steps: power_dual_cuda.cu has to do the row

template <class T>
constexpr int kHeld = sizeof(T) == 4 ? 8 : 4;  // carriers per lane

struct FewLaunch {
  JointArgs a;
  bool wide;
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
__global__ void __launch_bounds__(G::kThreads) few_kernel(FewLaunch p) {
  constexpr int held = kHeld<T>;
  const JointArgs& a = p.a;
  const int64_t carriers = a.shape.carriers;
  bool real;
  const int64_t row = row_of<G>(a.shape.rows, real);
  T gr[users][held], gi[users][held], sr[held], si[held], b[users][held], wanted[held], inverse[held], power[users];
  load_complex<G>(complex_at<T>(a.symbols, row, 0), a.symbols.carrier, carriers, p.wide, sr, si);
  bool fine = true;
  T top = 0, loud = 0;
#pragma unroll
  for (int n = 0; n < users; ++n) {
    load_complex<G>(complex_at<T>(a.gains, row, n), a.gains.carrier, carriers, p.wide, gr[n], gi[n]);
    power[n] = value_at<T>(a.power, row, n);
    fine = fine && power[n] > 0;
  }
#pragma unroll
  for (int j = 0; j < held; ++j) {
    wanted[j] = fma(sr[j], sr[j], si[j] * si[j]);
    loud = wanted[j] > loud ? wanted[j] : loud;
#pragma unroll
    for (int n = 0; n < users; ++n) {
      b[n][j] = fma(gr[n][j], gr[n][j], gi[n][j] * gi[n][j]) * power[n];
      top = b[n][j] > top ? b[n][j] : top;
    }
  }
  const T gain = G::largest(top), size = G::largest(loud);
  fine = fine && gain > T(1e-30) && gain < T(1e30) && size > T(1e-30) && size < T(1e30);
  const T down = T(1) / gain, quiet = T(1) / size;
  const T noise = value_at<T>(a.noise, row, 0) * down;
  fine = fine && noise >= 0 && noise < T(1e15);
  const T* const expected = real_at<T>(a.statistics, row, 0);
  T strength[users] = {};
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int64_t k = carrier_of<G, 2>(j);
    if (a.statistics.data != nullptr) wanted[j] = k < carriers ? expected[k * a.statistics.carrier] : T(0);
    wanted[j] *= quiet;
#pragma unroll
    for (int n = 0; n < users; ++n) {
      b[n][j] *= down;
      strength[n] = fma(wanted[j], b[n][j], strength[n]);
      if (k >= carriers) b[n][j] = T(1);  // so that D is not 0 behind the last carrier; S is 0 there
    }
  }
  T m = T(1), q = T(0), most, rest = 0, sharp = 0;
  int32_t steps = 0;
  if constexpr (users == 2) {
    const T r1 = sqrt(G::total(strength[0])), r2 = sqrt(G::total(strength[1]));
    fine = fine && r1 > 0 && r2 > 0;
    m = r1 / (r1 + r2);
    T low = 0, high = 1;
    const T tolerance = static_cast<T>(a.tolerance);
    PairSums<T> found;
    for (bool left = fine;;) {  // a row that has settled finds the same sums again
      found = pair_sums<T, G>(b[0], b[1], wanted, inverse, noise, m);
      if (left) {
        const T off = found.first - found.second, larger = found.first > found.second ? found.first : found.second;
        const bool inside = m > T(1e-3) && m < T(0.999);
        const bool settled = inside && off <= tolerance * larger && -off <= tolerance * larger;
        if (settled || !inside || steps == kPairSteps || steps == a.most) {
          fine = settled;
          left = false;
        } else {
          ++steps;
          (off > 0 ? low : high) = m;
          m -= off / found.slope;
          if (!(m > low && m < high)) m = (low + high) / 2;
        }
      }
      if (!G::any(left)) break;
    }
    q = T(1) - m;
    most = found.first > found.second ? found.first : found.second;
  } else {
    fine = fine && G::total(strength[0]) > 0;
    T needed = 0;
#pragma unroll
    for (int j = 0; j < held; ++j) {
      inverse[j] = quick_inverse(noise + b[0][j]);
      needed = fma(wanted[j] * inverse[j] * inverse[j], b[0][j], needed);
    }
    most = G::total(needed);
  }
#pragma unroll
  for (int j = 0; j < held; ++j) {
    rest = fma(wanted[j], inverse[j], rest);
    sharp = inverse[j] > sharp ? inverse[j] : sharp;
  }
  rest = G::total(rest);
  sharp = G::largest(sharp);
  const T alpha = sqrt(most / static_cast<T>(carriers));
  fine = fine && sharp < T(1e15) && alpha > 0;
  if (real && !fine && G::lane() == 0) a.iterations[row] = kLeft;
  if (!real || !fine) return;
  const T g_scale = sqrt(down), s_scale = sqrt(quiet), over = g_scale * s_scale / alpha;
#pragma unroll
  for (int n = 0; n < users; ++n) {
    const T scale = power[n] * (n == 0 ? (users == 1 ? T(1) : q) : m) * over;
    T re[held], im[held];
#pragma unroll
    for (int j = 0; j < held; ++j) {
      const T by = scale * inverse[j];
      re[j] = by * fma(gr[n][j], sr[j], gi[n][j] * si[j]);
      im[j] = by * fma(gr[n][j], si[j], -(gi[n][j] * sr[j]));
    }
    store_complex<G>(static_cast<Pair<T>*>(a.transmit) + (row * users + n) * carriers, carriers, p.wide, re, im);
  }
  if (G::lane() == 0) {
    static_cast<T*>(a.alpha)[row] = alpha * g_scale / s_scale;
    static_cast<T*>(a.mu)[row * users] = m;
    if constexpr (users == 2) static_cast<T*>(a.mu)[row * users + 1] = q;
    static_cast<T*>(a.objective)[row] = noise * (users == 1 ? T(1) : m * q) * rest * size;
    a.iterations[row] = steps;
  }
}

template <class T, class G>
const char* few(const FewLaunch& p, cudaStream_t queue) {
  constexpr int kThreads = G::kThreads;
  dim3 grid;
  if (!grid_for<G>(p.a.shape.rows, grid)) return kTooMany;
  if (p.a.shape.users == 1) {
    few_kernel<T, G, 1><<<grid, kThreads, 0, queue>>>(p);
  } else {
    few_kernel<T, G, 2><<<grid, kThreads, 0, queue>>>(p);
  }
  return launched();
}

template <class T>
const char* few_of(const FewLaunch& p, cudaStream_t queue) {
  constexpr int64_t held = kHeld<T>;
  const int64_t lanes = (p.a.shape.carriers + held - 1) / held;
  if (lanes <= 4) return few<T, Part<4>>(p, queue);
  if (lanes <= 8) return few<T, Part<8>>(p, queue);
  if (lanes <= 16) return few<T, Part<16>>(p, queue);
  if (lanes <= 32) return few<T, Part<32>>(p, queue);
  return few<T, Whole>(p, queue);
}

}  // namespace

const char* joint(const JointArgs& a, const Workspace& space, void* stream) {
  const bool is_double = a.shape.dtype == kFloat64;
  const int64_t held = is_double ? kHeld<double> : kHeld<float>;
  const bool few_users = a.shape.users <= 2 && a.shape.carriers <= held * kWholeThreads;
  if (few_users) {
    const FewLaunch p = {a, is_wide(a.gains, a.shape.carriers, 2) && is_wide(a.symbols, a.shape.carriers, 2)};
    const auto queue = static_cast<cudaStream_t>(stream);
    const char* const error = is_double ? few_of<double>(p, queue) : few_of<float>(p, queue);
    if (error != nullptr) return error;
  }
  return joint_dual(a, few_users, space, stream);
}

}  // namespace TF_NS
