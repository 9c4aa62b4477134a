// The plain structures that csrc/ fills and the Sophia kernels read, on every CPU build and on CUDA. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// A weight with what stands beside it, all contiguous and of one length; null is not there.
struct SophiaTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* hessian;
  float* exp_avg_scale;  // of 8-bit states: one per block of 256
  float* hessian_scale;
  float* master;
  void* compensation;  // Kahan
  int64_t numel;
  uint32_t stream;
};

// How states are stored: as the type of the math, in bfloat16, or in 8 bits with scales.
enum SophiaState : int { kStateMath = 0, kStateHalf = 1, kStateByte = 2 };
enum SophiaDenominator : int { kDenomMax = 0, kDenomAdd = 1, kDenomSign = 2 };

constexpr int kSophiaStats = 6;

// The scalars are those of kernels/sophia/sophia_reference.py:step_.
struct SophiaStepArgs {
  const SophiaTensor* tensors;
  int64_t count;
  int dtype, grad_dtype;  // DType of dtype.hpp
  int state;              // SophiaState of both states
  int denom;              // SophiaDenominator
  double beta1, one_minus_beta1;
  double beta2, one_minus_beta2;
  double denom_scale, eps;
  double rate, decay, shrink;  // -lr, 1 - lr * weight decay, -lr * weight decay
  bool update_hessian;         // h follows the squared gradient in the same pass
  bool maximize;
  bool skip;        // an element with a non-finite gradient stays
  bool stochastic;  // rounding of weights
  uint64_t seed;
  uint32_t step;
  const float* inv_scale;  // one number each, on the device, or null
  const float* found_inf;
  double* stats;  // kSophiaStats numbers on the device, added to, or null
  int threads;
};

// h = fma(weight * g, other, keep * h), other the probe, or g
struct SophiaHessianTensor {
  void* hessian;
  float* scale;
  const void* grad;
  const void* probe;
  int64_t numel;
  uint32_t stream;
};
struct SophiaHessianArgs {
  const SophiaHessianTensor* tensors;
  int64_t count;
  int dtype;  // of the math: kFloat32 or kFloat64
  int grad_dtype;
  int state;
  double keep, weight;
  uint64_t seed;
  uint32_t step;
  const float* inv_scale;
  const float* found_inf;
  int threads;
};

// Between float32 values and 8-bit codes with scales.
struct SophiaCodeArgs {
  float* values;
  uint8_t* codes;
  float* scales;
  int64_t numel;
  bool hessian;
  bool stochastic;  // encoding
  uint64_t seed;
  uint32_t step, stream;
  int threads;
};

// One table per instruction set.
struct SophiaKernels {
  void (*step)(const SophiaStepArgs&);
  void (*hessian)(const SophiaHessianArgs&);
  void (*encode)(const SophiaCodeArgs&);
  void (*decode)(const SophiaCodeArgs&);
};

}  // namespace tenfold
