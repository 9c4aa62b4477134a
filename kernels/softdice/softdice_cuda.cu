// Soft overlap on CUDA. A thread owns a voxel and goes over its classes; the threads of a block read neighbouring voxels of one class
// together. Forward: the log-sum-exp is made while logits come from memory once; probabilities of 8 classes at a time then go through
// shared memory, where a warp adds the voxels of one class, so that sums need no atomics and do not depend on the order of blocks. The
// second look at the logits finds them in the first-level cache (55 classes of 128 floats: 28 KB). Bound by memory: logits once forward,
// logits and gradient once backward.
//
// A block's sums are float32 within a tile of 128 voxels and double across tiles; blocks are added outside.
#include "softdice_cuda.hpp"

#include "../core/dtype.hpp"

#include <cuda_runtime.h>

#include <cmath>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 8;  // classes in shared memory at a time
constexpr unsigned kAll = 0xFFFFFFFFu;

template <class M>
__device__ M warp_sum(M x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}

template <class T>
__device__ const T* item(const SoftdiceMap& map, int64_t b, int64_t c, int64_t v) {
  return static_cast<const T*>(map.data) + b * map.batch_stride + c * map.class_stride + v * map.voxel_stride;
}

// A label or an entry of a label map, as a number.
template <class M>
__device__ M target_at(const SoftdiceMap& map, int64_t b, int64_t c, int64_t v) {
  switch (map.dtype) {
    case kFloat32: return static_cast<M>(*item<float>(map, b, c, v));
    case kFloat64: return static_cast<M>(*item<double>(map, b, c, v));
    case kBFloat16: return static_cast<M>(to_math(*item<bfloat16>(map, b, c, v)));
    case kFloat16: return static_cast<M>(to_math(*item<float16>(map, b, c, v)));
    case kLabelU8: return static_cast<M>(*item<uint8_t>(map, b, c, v));
    case kLabelI8: return static_cast<M>(*item<int8_t>(map, b, c, v));
    case kLabelI16: return static_cast<M>(*item<int16_t>(map, b, c, v));
    case kLabelI32: return static_cast<M>(*item<int32_t>(map, b, c, v));
    default: return static_cast<M>(*item<int64_t>(map, b, c, v));
  }
}

struct Voxel {
  int64_t b, v;
  int64_t label;  // without a map of labels
  bool inside, keep, bad;
};

__device__ Voxel voxel_at(const SoftdiceArgs& a, int64_t b, int64_t v) {
  Voxel x = {b, v, -1, v < a.voxels, v < a.voxels, false};
  if (x.keep && a.mask.data != nullptr) x.keep = *item<uint8_t>(a.mask, b, 0, v) != 0;
  if (!x.inside || a.dense) return x;
  const int64_t label = target_at<int64_t>(a.target, b, 0, v);
  const bool ignored = !x.keep || (a.has_ignore && label == a.ignore);
  x.bad = !ignored && (label < 0 || label >= a.classes);
  x.keep = !ignored && !x.bad;
  x.label = x.keep ? label : -1;
  return x;
}

template <class M>
__device__ M truth(const SoftdiceArgs& a, const Voxel& x, int64_t c) {
  return a.dense ? target_at<M>(a.target, x.b, c, x.v) : static_cast<M>(x.label == c ? 1 : 0);
}

template <class T>
__device__ math_t<T> logit(const SoftdiceArgs& a, const Voxel& x, int64_t c) {
  return to_math(*item<T>(a.logits, x.b, c, x.v));
}

__device__ float exp_of(float x) { return expf(x); }
__device__ double exp_of(double x) { return exp(x); }
__device__ float log_of(float x) { return logf(x); }
__device__ double log_of(double x) { return log(x); }
__device__ float log1p_of(float x) { return log1pf(x); }
__device__ double log1p_of(double x) { return log1p(x); }
template <class M>
__device__ M larger_of(M a, M b) {
  return b > a ? b : a;
}

// q^gamma for q in [0, 1].
template <class M>
__device__ M focal(M q, M gamma) {
  return exp_of(gamma * log_of(larger_of(static_cast<M>(1e-20), q)));
}

template <class M>
struct Logistic {
  M p, q, loss_positive, loss_negative;
  __device__ explicit Logistic(M x) {
    const M size = x < 0 ? -x : x;
    const M e = exp_of(-size), tail = log1p_of(e), large = 1 / (1 + e), small = e / (1 + e);
    p = x < 0 ? small : large;
    q = x < 0 ? large : small;
    loss_positive = tail + (x < 0 ? -x : 0);
    loss_negative = tail + (x < 0 ? 0 : x);
  }
};

// The log-sum-exp of a voxel's logits, in one pass (Milakov and Gimelshein, arXiv 1805.02867).
template <class T>
__device__ math_t<T> log_sum_exp(const SoftdiceArgs& a, const Voxel& x) {
  using M = math_t<T>;
  M top = -static_cast<M>(INFINITY), sum = 0;
  for (int64_t c = 0; c < a.classes; ++c) {
    const M z = logit<T>(a, x, c);
    if (z > top) {
      sum = sum * exp_of(top - z) + 1;
      top = z;
    } else {
      sum += z == -static_cast<M>(INFINITY) ? 0 : exp_of(z - top);
    }
  }
  return top + log_of(sum);
}

// One voxel's part of five of the sums of a class; those of the label itself follow from it.
template <class M>
struct Parts {
  M p, y, positive, negative;
};

template <class T>
__device__ Parts<math_t<T>> parts_of(const SoftdiceArgs& a, const Voxel& x, int64_t c, math_t<T> lse) {
  using M = math_t<T>;
  Parts<M> out = {0, 0, 0, 0};
  if (!x.keep || c >= a.classes) return out;
  const M z = logit<T>(a, x, c), gamma = static_cast<M>(a.gamma);
  out.p = z;
  out.y = truth<M>(a, x, c);
  if (a.activation == kSoftmax) {
    out.p = exp_of(z - lse);
    if (out.y != 0) out.positive = out.y * (lse - z) * (gamma == 0 ? 1 : focal(1 - out.p, gamma));
  } else if (a.activation == kSigmoid) {
    const Logistic<M> s(z);
    out.p = s.p;
    if (out.y != 0) out.positive = out.y * s.loss_positive * (gamma == 0 ? 1 : exp_of(-gamma * s.loss_negative));
    if (out.y != 1) out.negative = (1 - out.y) * s.loss_negative * (gamma == 0 ? 1 : exp_of(-gamma * s.loss_positive));
  }
  return out;
}

template <class T>
__global__ void forward_kernel(SoftdiceArgs a) {
  using M = math_t<T>;
  __shared__ M tile[4][kRows][kThreads];
  __shared__ int64_t outside[kThreads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int64_t b = blockIdx.y;
  double* partial = a.partial + (b * a.blocks + blockIdx.x) * a.classes * kSoftdiceSums;
  int64_t bad = 0;
  for (int64_t first = int64_t{blockIdx.x} * kThreads; first < a.voxels; first += a.blocks * kThreads) {
    const bool begins = first == int64_t{blockIdx.x} * kThreads;
    const Voxel x = voxel_at(a, b, first + thread);
    bad += x.bad;
    M lse = 0;
    if (a.activation == kSoftmax) {
      if (x.keep) lse = log_sum_exp<T>(a, x);
      if (x.inside) static_cast<M*>(a.lse)[b * a.voxels + x.v] = lse;
    }
    for (int64_t chunk = 0; chunk < a.classes; chunk += kRows) {
      __syncthreads();
      for (int k = 0; k < kRows; ++k) {
        const Parts<M> part = parts_of<T>(a, x, chunk + k, lse);
        tile[0][k][thread] = part.p;
        tile[1][k][thread] = part.y;
        tile[2][k][thread] = part.positive;
        tile[3][k][thread] = part.negative;
      }
      __syncthreads();
      for (int k = warp; k < kRows; k += kWarps) {
        M sum[kSoftdiceSums] = {};
        for (int j = lane; j < kThreads; j += kWarp) {
          const M p = tile[0][k][j], y = tile[1][k][j];
          sum[kIntersection] += p * y;
          sum[kPrediction] += p;
          if (a.squares) sum[kPredictionSquared] += p * p;
          sum[kTarget] += y;
          sum[kTargetSquared] += y * y;
          if (a.logs) {
            sum[kLogPositive] += tile[2][k][j];
            sum[kLogNegative] += tile[3][k][j];
          }
        }
        for (int s = 0; s < kSoftdiceSums; ++s) {
          const double total = static_cast<double>(warp_sum(sum[s]));
          if (lane == 0 && chunk + k < a.classes) {
            double* to = partial + (chunk + k) * kSoftdiceSums + s;
            *to = begins ? total : *to + total;
          }
        }
      }
    }
  }
  outside[thread] = bad;
  __syncthreads();
  if (thread == 0) {
    int64_t total = 0;
    for (int j = 0; j < kThreads; ++j) total += outside[j];
    a.bad[b * a.blocks + blockIdx.x] = total;
  }
}

template <class T>
__global__ void backward_kernel(SoftdiceArgs a) {
  using M = math_t<T>;
  const int64_t b = blockIdx.y, v = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const Voxel x = voxel_at(a, b, v);
  if (!x.inside) return;
  T* out = static_cast<T*>(a.out.data) + b * a.out.batch_stride + v * a.out.voxel_stride;
  const double* grad = a.sums + b * a.classes * kSoftdiceSums;
  const M gamma = static_cast<M>(a.gamma);
  const bool softmax = a.activation == kSoftmax;
  const M lse = softmax ? static_cast<const M*>(a.lse)[b * a.voxels + v] : 0;
  M total = 0;
  for (int turn = softmax && x.keep ? 0 : 1; turn < 2; ++turn) {
    for (int64_t c = 0; c < a.classes; ++c) {
      if (!x.keep) {
        out[c * a.out.class_stride] = Round<T>::nearest(0);
        continue;
      }
      const double* g = grad + c * kSoftdiceSums;
      const M z = logit<T>(a, x, c), y = truth<M>(a, x, c);
      const Logistic<M> s(softmax ? 0 : z);
      const M p = softmax ? exp_of(z - lse) : (a.activation == kSigmoid ? s.p : z);
      const M slope = static_cast<M>(g[kIntersection]) * y + static_cast<M>(g[kPrediction]) + static_cast<M>(2 * g[kPredictionSquared]) * p;
      M dx = slope;
      if (softmax) {
        M own = 0;
        if (y != 0) {
          const M q = larger_of(static_cast<M>(1e-20), 1 - p);
          own = static_cast<M>(g[kLogPositive]) * y * (gamma == 0 ? 1 : focal(q, gamma) * (1 + gamma * p * (lse - z) / q));
        }
        if (turn == 0) total += p * slope - own;
        dx = p * (slope - total) - own;
      } else if (a.activation == kSigmoid) {
        M positive = s.q, negative = s.p;
        if (gamma != 0) {
          positive = exp_of(-gamma * s.loss_negative) * (s.q + gamma * s.p * s.loss_positive);
          negative = exp_of(-gamma * s.loss_positive) * (s.p + gamma * s.q * s.loss_negative);
        }
        dx = slope * s.p * s.q - static_cast<M>(g[kLogPositive]) * y * positive + static_cast<M>(g[kLogNegative]) * (1 - y) * negative;
      }
      if (turn == 1) out[c * a.out.class_stride] = Round<T>::nearest(dx);
    }
  }
}

const char* launched() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace

const char* soft_overlap(const SoftdiceArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>(a.blocks), static_cast<unsigned>(a.batches));
  switch (a.logits.dtype) {
    case kFloat64: forward_kernel<double><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    case kBFloat16: forward_kernel<bfloat16><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    case kFloat16: forward_kernel<float16><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    default: forward_kernel<float><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
  }
  return launched();
}

const char* soft_overlap_backward(const SoftdiceArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>((a.voxels + kThreads - 1) / kThreads), static_cast<unsigned>(a.batches));
  switch (a.logits.dtype) {
    case kFloat64: backward_kernel<double><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    case kBFloat16: backward_kernel<bfloat16><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    case kFloat16: backward_kernel<float16><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
    default: backward_kernel<float><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a); break;
  }
  return launched();
}

}  // namespace TF_NS
