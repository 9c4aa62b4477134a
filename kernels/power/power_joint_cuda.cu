// Joint power allocation on CUDA for one and two users, in registers (power_few.hpp). What does not settle well inside the simplex is left
// to power_dual_cuda.cu, which the same call queues behind.
//
// 8 lanes of a warp share a row of 64 carriers, 8 carriers each: four rows of a warp divide the cost of what is done once per row (sums
// across lanes, the Newton step) between them, at the price that they take as many steps as the slowest. A row moves 40 bytes per carrier
// (two users, float32) and takes about 270 instructions of a warp, by reading, so that memory is the bound.
#include "power_cuda.hpp"
#include "power_few.hpp"

namespace TF_NS {
namespace {

constexpr int32_t kLeft = -1;  // in place of a number of steps: power_dual_cuda.cu has to do the row

struct FewLaunch {
  JointArgs a;
  bool wide;
};

template <class T, class G, int users>
__global__ void __launch_bounds__(G::kThreads, sizeof(T) == 4 && G::kRows > 1 ? 4 : 1) few_kernel(FewLaunch p) {
  constexpr int held = kHeld<T>;
  const JointArgs& a = p.a;
  const int64_t carriers = a.shape.carriers;
  bool real;
  const int64_t row = row_of<G>(a.shape.rows, real);
  FewRow<T, users> in;
  load_complex<G>(complex_at<T>(a.symbols, row, 0), a.symbols.carrier, carriers, p.wide, in.sr, in.si);
#pragma unroll
  for (int n = 0; n < users; ++n) {
    load_complex<G>(complex_at<T>(a.gains, row, n), a.gains.carrier, carriers, p.wide, in.gr[n], in.gi[n]);
    in.power[n] = value_at<T>(a.power, row, n);
  }
  in.noise = value_at<T>(a.noise, row, 0);
  in.searched = a.statistics.data == nullptr ? nullptr : real_at<T>(a.statistics, row, 0);
  in.searched_step = a.statistics.carrier;
  const FewFound<T, users> found = solve_few<T, G>(in, carriers, a.tolerance, a.most);
  if (real && !found.fine && G::lane() == 0) a.iterations[row] = kLeft;
  if (!real || !found.fine) return;
#pragma unroll
  for (int n = 0; n < users; ++n) {
    T re[held], im[held];
#pragma unroll
    for (int j = 0; j < held; ++j) {
      const T by = found.scale[n] * found.inverse[j];
      re[j] = by * fma(in.gr[n][j], in.sr[j], in.gi[n][j] * in.si[j]);
      im[j] = by * fma(in.gr[n][j], in.si[j], -(in.gi[n][j] * in.sr[j]));
    }
    store_complex<G>(static_cast<Pair<T>*>(a.transmit) + (row * users + n) * carriers, carriers, p.wide, re, im);
    if (G::lane() == 0) static_cast<T*>(a.mu)[row * users + n] = found.mu[n];
  }
  if (G::lane() == 0) {
    static_cast<T*>(a.alpha)[row] = found.alpha;
    static_cast<T*>(a.objective)[row] = found.objective;
    a.iterations[row] = found.steps;
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

}  // namespace

const char* power_joint(const JointArgs& a, const Workspace& space, void* stream) {
  const bool is_double = a.shape.dtype == kFloat64;
  const int64_t held = is_double ? kHeld<double> : kHeld<float>;
  const bool few_users = a.shape.users <= 2 && a.shape.carriers <= held * kWholeThreads;
  if (few_users) {
    const FewLaunch p = {a, is_wide(a.gains, a.shape.carriers, 2) && is_wide(a.symbols, a.shape.carriers, 2)};
    const auto queue = static_cast<cudaStream_t>(stream);
    const char* const error = with_lanes((a.shape.carriers + held - 1) / held, [&](auto group) {
      return is_double ? few<double, decltype(group)>(p, queue) : few<float, decltype(group)>(p, queue);
    });
    if (error != nullptr) return error;
  }
  return power_joint_dual(a, few_users, space, stream);
}

}  // namespace TF_NS
