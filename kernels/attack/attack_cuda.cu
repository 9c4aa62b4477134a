// Losses, noise, guidance, sign steps and splicing on CUDA: each tensor read once. Bound by memory; at the sizes of latents, by the launch.
// The numbers that stand once per row are made by one thread of a block and shared.
#include "attack_block.hpp"
#include "attack_cuda.hpp"

namespace TF_NS {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTile = 4 * kThreads;

__device__ double each(const LatentArgs& a, int which, int64_t row) { return a.each[which][row * a.step[which]]; }

template <class T>
__device__ T rounded(math_t<T> x) {
  return Round<T>::nearest(x);
}

// Per row: kAddNoise and kStep the weights of two inputs, kStep and kSafe the guidance.
struct RowNumbers {
  double first, second, guidance;
};
__device__ RowNumbers row_numbers(const LatentArgs& a, int64_t row) {
  if (a.op == kAddNoise) {
    const int64_t t = a.times[row * a.times_step];
    const double level = t >= 0 && t < a.levels ? a.each[0][t] : static_cast<double>(NAN);
    return {sqrt(level), sqrt(1.0 - level), 0.0};
  }
  if (a.op == kStep) {
    const StepWeights w = step_weights(each(a, 1, row), each(a, 2, row), a.kind);
    return {w.of_x, w.of_out, each(a, 0, row)};
  }
  if (a.op == kSafe) return {0.0, 0.0, each(a, 0, row)};
  return {0.0, 0.0, 0.0};
}

template <class T>
__device__ __forceinline__ math_t<T> read(const void* p, int64_t at) {
  return to_math(static_cast<const T*>(p)[at]);
}
template <class T>
__device__ __forceinline__ void write(void* p, int64_t at, math_t<T> x) {
  static_cast<T*>(p)[at] = rounded<T>(x);
}

// number: lr, eps. in: gradient, origin or null.
template <class T>
__device__ __forceinline__ math_t<T> sign_moved(const LatentArgs& a, int64_t at, math_t<T> centre) {
  using M = math_t<T>;
  return read<T>(a.out[0], at) - static_cast<M>(a.number[0]) * sign_of<M>(read<T>(a.in[0], at)) - centre;
}

template <class T>
__global__ void __launch_bounds__(kThreads) rows_kernel(LatentArgs a) {
  using M = math_t<T>;
  const int64_t tiles = (a.size + kTile - 1) / kTile, row = blockIdx.x / tiles, tile = blockIdx.x % tiles * kTile;
  __shared__ RowNumbers shared;
  if (threadIdx.x == 0) shared = row_numbers(a, row);
  __syncthreads();
  const M first = static_cast<M>(shared.first), second = static_cast<M>(shared.second), guidance = static_cast<M>(shared.guidance);
  const int64_t end = (tile + kTile < a.size ? tile + kTile : a.size) + row * a.size;
  for (int64_t at = row * a.size + tile + threadIdx.x; at < end; at += kThreads) {
    if (a.op == kAddNoise) {
      write<T>(a.out[0], at, first * read<T>(a.in[0], at) + second * read<T>(a.in[1], at));
    } else if (a.op == kStep) {
      const M c = read<T>(a.in[2], at);
      const M out = a.in[1] == nullptr ? c : guided<M>(read<T>(a.in[1], at), c, guidance);
      const M z = first * read<T>(a.in[0], at) + second * out;
      write<T>(a.out[0], at, z);
      if (a.flag) write<T>(a.out[0], at + a.batch * a.size, z);
    } else if (a.op == kSafe) {
      const Safe<M> found =
          safe_step<M>(a, read<T>(a.in[0], at), read<T>(a.in[1], at), read<T>(a.in[2], at), read<T>(a.in[3], at), guidance);
      write<T>(a.out[0], at, found.out);
      write<T>(a.out[1], at, found.after);
    } else {
      const M centre = a.in[1] == nullptr ? M(0) : read<T>(a.in[1], at), eps = static_cast<M>(a.flag ? a.number[1] : INFINITY);
      const M far = sign_moved<T>(a, at, centre);
      write<T>(a.out[0], at, centre + (far > eps ? eps : (far < -eps ? -eps : far)));
    }
  }
}

// A block has a row, which it reads twice.
template <class T>
__global__ void __launch_bounds__(kRowThreads) sign_l2_kernel(LatentArgs a) {
  using M = math_t<T>;
  const int64_t begin = blockIdx.x * a.size, end = begin + a.size;
  const auto centre = [&](int64_t at) { return a.in[1] == nullptr ? M(0) : read<T>(a.in[1], at); };
  double sum = 0.0;
  for (int64_t at = begin + threadIdx.x; at < end; at += kRowThreads) {
    const double far = static_cast<double>(sign_moved<T>(a, at, centre(at)));
    sum += far * far;
  }
  const double length = sqrt(block_sum<kRowThreads>(sum));
  const M factor = static_cast<M>(length > a.number[1] ? a.number[1] / length : 1.0);
  for (int64_t at = begin + threadIdx.x; at < end; at += kRowThreads) {
    const M middle = centre(at);
    write<T>(a.out[0], at, middle + sign_moved<T>(a, at, middle) * factor);
  }
}

// ---- means of differences ----------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ math_t<T> difference(const GuidedMseArgs& a, int64_t at) {
  using M = math_t<T>;
  const M x = read<T>(a.pred, at), y = read<T>(a.target, at);
  return a.other == nullptr || a.eta == 0.0 ? x - y : apart<M>(x, y, read<T>(a.other, at), static_cast<M>(a.eta));
}

template <class T>
__global__ void __launch_bounds__(kThreads) mse_kernel(GuidedMseArgs a) {
  const int64_t pieces = (a.size + kMsePiece - 1) / kMsePiece, row = blockIdx.x / pieces, first = blockIdx.x % pieces * kMsePiece;
  const int64_t end = row * a.size + (first + kMsePiece < a.size ? first + kMsePiece : a.size);
  double sum = 0.0;
  for (int64_t at = row * a.size + first + threadIdx.x; at < end; at += kThreads) {
    const double far = static_cast<double>(difference<T>(a, at));
    sum += a.squares ? far * far : (far < 0.0 ? -far : far);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) mse_backward_kernel(GuidedMseArgs a) {
  using M = math_t<T>;
  const int64_t tiles = (a.size + kTile - 1) / kTile, row = blockIdx.x / tiles, tile = blockIdx.x % tiles * kTile;
  const M scale = static_cast<M>(a.grad[row] / static_cast<double>(a.size));
  const int64_t end = row * a.size + (tile + kTile < a.size ? tile + kTile : a.size);
  for (int64_t at = row * a.size + tile + threadIdx.x; at < end; at += kThreads) {
    const M far = difference<T>(a, at);
    write<T>(a.out, at, (a.squares ? M(2) * far : sign_of<M>(far)) * scale);
  }
}

// ---- splicing --------------------------------------------------------------------------------------------------------------------

struct alignas(16) Unit16 {
  uint64_t low, high;
};
struct Splice {
  SpliceArgs a;
  int64_t units;  // of a row
};
template <class U>
__device__ U ones() {
  U out;
  memset(&out, 0xFF, sizeof(U));  // not a number in every dtype
  return out;
}

// A thread has a unit of a row of `out`. What an index names that is out of range is not a number.
template <class U>
__global__ void __launch_bounds__(kThreads) splice_kernel(Splice p) {
  const SpliceArgs& a = p.a;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= a.batch * a.columns * p.units) return;
  const int64_t row = at / p.units, unit = at % p.units, b = row / a.columns, from = a.index[row];
  U value = ones<U>();
  if (from >= 0 && from < a.columns) value = static_cast<const U*>(a.embeds)[(b * a.columns + from) * p.units + unit];
  if (from >= a.columns && from < a.columns + a.extra)
    value = static_cast<const U*>(a.adv)[(b * a.extra + from - a.columns) * p.units + unit];
  static_cast<U*>(a.out)[at] = value;
}

// Each element of embeds and adv looks for where it went.
template <class T>
__global__ void __launch_bounds__(kThreads) splice_backward_kernel(SpliceArgs a) {
  using M = math_t<T>;
  const int64_t sources = a.columns + a.extra, at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= a.batch * sources * a.width) return;
  const int64_t d = at % a.width, from = at / a.width % sources, b = at / a.width / sources;
  const int64_t* const index = a.index + b * a.columns;
  M sum = 0;
  for (int64_t c = 0; c < a.columns; ++c) {
    if (index[c] == from) sum += read<T>(a.grad, (b * a.columns + c) * a.width + d);
  }
  if (from < a.columns) {
    write<T>(a.grad_embeds, (b * a.columns + from) * a.width + d, sum);
  } else {
    write<T>(a.grad_adv, (b * a.extra + from - a.columns) * a.width + d, sum);
  }
}

// ---- launching -------------------------------------------------------------------------------------------------------------------

// One launch of `count` blocks, up to 2^31 - 1.
template <class P>
const char* launch(void (*kernel)(P), const P& p, int64_t count, int threads, cudaStream_t stream) {
  if (count == 0) return nullptr;
  if (count > 0x7FFFFFFF) return "too many elements for one call";
  const dim3 grid(static_cast<unsigned>(count));
  kernel<<<grid, threads, 0, stream>>>(p);
  return launched();
}

int64_t blocks(int64_t count, int64_t each) { return (count + each - 1) / each; }

template <class U>
const char* splice(const SpliceArgs& a, int64_t bytes, cudaStream_t stream) {
  const Splice p = {a, bytes / static_cast<int64_t>(sizeof(U))};
  return launch(&splice_kernel<U>, p, blocks(a.batch * a.columns * p.units, kThreads), kThreads, stream);
}

}  // namespace
}  // namespace TF_NS

namespace tf_cuda {

const char* attack_rows(const tenfold::LatentArgs& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return with_every(a.dtype, [&](auto type) {
    using T = decltype(type);
    if (a.op == kSignL2) return launch(&sign_l2_kernel<T>, a, a.batch, kRowThreads, on);
    return launch(&rows_kernel<T>, a, a.batch * blocks(a.size, kTile), kThreads, on);
  });
}

const char* guided_mse(const tenfold::GuidedMseArgs& a, void* stream) {
  return with_every(a.dtype, [&](auto type) {
    return launch(&mse_kernel<decltype(type)>, a, a.batch * blocks(a.size, kMsePiece), kThreads, static_cast<cudaStream_t>(stream));
  });
}

const char* guided_mse_backward(const tenfold::GuidedMseArgs& a, void* stream) {
  return with_every(a.dtype, [&](auto type) {
    return launch(&mse_backward_kernel<decltype(type)>, a, a.batch * blocks(a.size, kTile), kThreads, static_cast<cudaStream_t>(stream));
  });
}

const char* splice_embed(const tenfold::SpliceArgs& a, void* stream) {
  const int64_t bytes = a.width * (a.dtype == kFloat64 ? 8 : a.dtype == kFloat32 ? 4 : 2);
  const auto on = static_cast<cudaStream_t>(stream);
  uintptr_t all = static_cast<uintptr_t>(bytes);
  for (const void* p : {a.embeds, a.adv, static_cast<const void*>(a.out)}) all |= reinterpret_cast<uintptr_t>(p);
  if (all % 16 == 0) return splice<Unit16>(a, bytes, on);
  if (all % 8 == 0) return splice<uint64_t>(a, bytes, on);
  if (all % 4 == 0) return splice<uint32_t>(a, bytes, on);
  return splice<uint16_t>(a, bytes, on);
}

const char* splice_embed_backward(const tenfold::SpliceArgs& a, void* stream) {
  return with_every(a.dtype, [&](auto type) {
    return launch(&splice_backward_kernel<decltype(type)>, a, blocks(a.batch * (a.columns + a.extra) * a.width, kThreads), kThreads,
                  static_cast<cudaStream_t>(stream));
  });
}

}  // namespace tf_cuda
