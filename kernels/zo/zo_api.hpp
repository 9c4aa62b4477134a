// The plain structures that csrc/ fills and the kernels read, shared by every CPU build and by CUDA. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// A tensor as memory. ndim == 0 means contiguous; otherwise `sizes` and `strides` (in elements) give the logical row-major order,
// which is the order random numbers are counted in.
struct View {
  void* data;
  int64_t numel;
  int32_t ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

// coef * z(seed, query), one summand of a chain. dist is a Purpose: 0 Gaussian, 1 Rademacher, 2 uniform.
struct Term {
  uint64_t seed;
  double coef;
  uint32_t query;
  uint32_t dist;
};

constexpr int kNoRounding = -1;  // z_round: keep z in float32
constexpr int kMaxTerms = 64;

// theta = round(decay * source + sum_k coef_k z_k)
struct ChainArgs {
  const View* params;
  const View* sources;  // the clean copies, or params itself
  const uint32_t* streams;
  int64_t count;
  const Term* terms;
  int64_t n_terms;
  double decay;
  int dtype;    // DType of dtype.hpp
  int z_round;  // DType that z is rounded to first, or kNoRounding
  bool stochastic;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  int threads;
};

// Adam on g = sum_k coef_k z_k; the scalars are those of kernels/zo/zo_reference.py:adam_.
struct AdamArgs {
  ChainArgs chain;  // params, terms, decay, rounding
  const View* exp_avgs;
  const View* exp_avg_sqs;
  double beta1, beta2;
  double one_minus_beta1, one_minus_beta2;
  double inverse_correction;  // 1 / sqrt(1 - beta2^step)
  double eps;
  double rate;  // -lr / (1 - beta1^step)
};

struct SampleArgs {
  uint64_t seed;
  uint32_t stream, query, dist;
  uint64_t first;
  int64_t n;
  int dtype;
  void* out;
  int threads;
};

struct WordsArgs {
  uint64_t seed;
  uint32_t stream, query, purpose;
  uint64_t first_block;
  int64_t blocks;
  int64_t* out;  // blocks x 4
  int threads;
};

// out = stochastic rounding of float32 x
struct RoundArgs {
  const float* x;
  int64_t n;
  void* out;
  int dtype;
  uint64_t seed;
  uint32_t stream, query;
  uint64_t first;
  int threads;
};

struct Moments {
  double sum, sum_of_squares;
};

// One table per instruction set.
struct ZoKernels {
  void (*chain)(const ChainArgs&);
  void (*adam)(const AdamArgs&);
  void (*sample)(const SampleArgs&);
  void (*words)(const WordsArgs&);
  void (*stochastic_round)(const RoundArgs&);
  Moments (*moments)(const SampleArgs&);  // of the elements sample would give, in float64, nothing written
};

}  // namespace tenfold
