// Joint and separable power allocation on CUDA in double precision, for any number of users: a warp per row in shared memory, or where a
// row does not fit there, a block per row in memory that the caller gives. Rows come from memory twice or three times, of which the second
// is a cache's; what takes time is sums across lanes, one for each pair of users, and the Newton system, which lanes share by rows.
#include "power_cuda.hpp"
#include "power_rows.hpp"

namespace TF_NS {
namespace {

constexpr int kWarps = kPartThreads / 32;
constexpr int kSmall = 512, kLarge = 1536;  // doubles of shared memory per row; 48 KB hold kWarps of the larger

template <class Args>
struct Launch {
  Args a;
  Workspace space;
  int64_t chunk;  // rows that a warp looks at; more than one where few have to be done
  bool only_left;
};

template <class T>
__device__ Pair<double> wide(Pair<T> z) {
  return {static_cast<double>(z.re), static_cast<double>(z.im)};
}

template <class T>
struct JointRow {
  const JointArgs& a;
  int64_t row;

  __device__ Pair<double> gain(int64_t n, int64_t k) const { return wide(complex_at<T>(a.gains, row, n)[k * a.gains.carrier]); }
  __device__ Pair<double> symbol(int64_t k) const { return wide(complex_at<T>(a.symbols, row, 0)[k * a.symbols.carrier]); }
  __device__ bool is_searched() const { return a.statistics.data != nullptr; }
  __device__ double searched(int64_t k) const { return real_at<T>(a.statistics, row, 0)[k * a.statistics.carrier]; }
  __device__ double power(int64_t n) const { return value_at<T>(a.power, row, n); }
  __device__ double noise() const { return value_at<T>(a.noise, row, 0); }
  __device__ void transmit(int64_t n, int64_t k, double re, double im) const {
    static_cast<Pair<T>*>(a.transmit)[(row * a.shape.users + n) * a.shape.carriers + k] = {static_cast<T>(re), static_cast<T>(im)};
  }
  __device__ void mu(int64_t n, double value) const { static_cast<T*>(a.mu)[row * a.shape.users + n] = static_cast<T>(value); }
  __device__ void finish(double alpha, double objective, int32_t iterations) const {
    static_cast<T*>(a.alpha)[row] = static_cast<T>(alpha);
    static_cast<T*>(a.objective)[row] = static_cast<T>(objective);
    a.iterations[row] = iterations;
  }
  template <class G>
  __device__ void solve(double* room) {
    const double tolerance = sizeof(T) == 4 && a.tolerance > 1e-7 ? 1e-7 : a.tolerance;
    joint_row<G>(*this, a.shape.users, a.shape.carriers, tolerance, a.most, room);
  }
};

template <class T>
struct SeparableRow {
  const SeparableArgs& a;
  int64_t row;

  __device__ Pair<double> gain(int64_t n, int64_t k) const { return wide(complex_at<T>(a.gains, row, n)[k * a.gains.carrier]); }
  __device__ bool is_weighted() const { return a.weights.data != nullptr; }
  __device__ double weight(int64_t n, int64_t k) const { return real_at<T>(a.weights, row, n)[k * a.weights.carrier]; }
  __device__ double power(int64_t n) const { return value_at<T>(a.power, row, n); }
  __device__ double wanted(int64_t n) const { return value_at<T>(a.wanted, row, n); }
  __device__ double noise() const { return value_at<T>(a.noise, row, 0); }
  __device__ void precoder(int64_t n, int64_t k, double re, double im) const {
    static_cast<Pair<T>*>(a.precoder)[(row * a.shape.users + n) * a.shape.carriers + k] = {static_cast<T>(re), static_cast<T>(im)};
  }
  __device__ void tau(int64_t n, double value) const { static_cast<T*>(a.tau)[row * a.shape.users + n] = static_cast<T>(value); }
  __device__ void finish(double alpha, double objective, int32_t iterations) const {
    static_cast<T*>(a.alpha)[row] = static_cast<T>(alpha);
    static_cast<T*>(a.objective)[row] = static_cast<T>(objective);
    a.iterations[row] = iterations;
  }
  template <class G>
  __device__ void solve(double* room) {
    separable_row<G>(*this, a.shape.users, a.shape.carriers, a.tolerance, a.most, room);
  }
};

// Row is JointRow<T> or SeparableRow<T>, of Args.
template <class Row, class Args, int each>
__global__ void __launch_bounds__(kPartThreads, 4) warp_kernel(Launch<Args> p) {
  __shared__ double rooms[kWarps][each];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * p.chunk;
  bool mine = lane < p.chunk && first + lane < p.a.shape.rows;
  if (mine && p.only_left) mine = p.a.iterations[first + lane] < 0;
  const unsigned rows = __ballot_sync(kAll, mine);
  for (int i = 0; i < p.chunk; ++i) {
    if ((rows >> i & 1u) == 0u) continue;
    Row row = {p.a, first + i};
    row.template solve<Part<32>>(rooms[warp]);
  }
}

template <class Row, class Args>
__global__ void __launch_bounds__(kWholeThreads, 1) block_kernel(Launch<Args> p) {
  double* const room = p.space.room + static_cast<int64_t>(blockIdx.x) * p.space.each;
  for (int64_t at = blockIdx.x; at < p.a.shape.rows; at += gridDim.x) {
    if (p.only_left && p.a.iterations[at] >= 0) continue;
    Row row = {p.a, at};
    row.template solve<Whole>(room);
    __syncthreads();
  }
}

template <class Row, class Args>
const char* solve_rows(const Launch<Args>& p, int64_t needed, cudaStream_t queue) {
  const int64_t rows = p.a.shape.rows;
  if (needed > kLarge) {
    if (p.space.room == nullptr || p.space.blocks < 1 || p.space.each < needed) return "a workspace that is too small";
    const dim3 grid(static_cast<unsigned>(rows < p.space.blocks ? rows : p.space.blocks));
    block_kernel<Row, Args><<<grid, kWholeThreads, 0, queue>>>(p);
    return launched();
  }
  const int64_t blocks = (rows + kWarps * p.chunk - 1) / (kWarps * p.chunk);
  if (blocks > 0x7FFFFFFF) return kTooMany;
  const dim3 grid(static_cast<unsigned>(blocks));
  if (needed > kSmall) {
    warp_kernel<Row, Args, kLarge><<<grid, kPartThreads, 0, queue>>>(p);
  } else {
    warp_kernel<Row, Args, kSmall><<<grid, kPartThreads, 0, queue>>>(p);
  }
  return launched();
}

}  // namespace

int64_t power_joint_room(int64_t users, int64_t carriers) {
  const int64_t needed = joint_row_room(users, carriers);
  return needed > kLarge ? needed : 0;
}

int64_t power_separable_room(int64_t users, int64_t carriers, bool weighted) {
  const int64_t needed = separable_row_room(users, carriers, weighted);
  return needed > kLarge ? needed : 0;
}

const char* power_joint_dual(const JointArgs& a, bool only_left, const Workspace& space, void* stream) {
  const Launch<JointArgs> p = {a, space, only_left ? 32 : 1, only_left};
  const int64_t needed = joint_row_room(a.shape.users, a.shape.carriers);
  const auto queue = static_cast<cudaStream_t>(stream);
  return a.shape.dtype == kFloat64 ? solve_rows<JointRow<double>>(p, needed, queue) : solve_rows<JointRow<float>>(p, needed, queue);
}

const char* power_separable(const SeparableArgs& a, const Workspace& space, void* stream) {
  const Launch<SeparableArgs> p = {a, space, 1, false};
  const int64_t needed = separable_row_room(a.shape.users, a.shape.carriers, a.weights.data != nullptr);
  const auto queue = static_cast<cudaStream_t>(stream);
  return a.shape.dtype == kFloat64 ? solve_rows<SeparableRow<double>>(p, needed, queue) : solve_rows<SeparableRow<float>>(p, needed, queue);
}

}  // namespace TF_NS
