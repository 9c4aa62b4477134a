// The plain structures that csrc/ fills and the low-rank kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

constexpr int64_t kMaxRank = 256;

// coef * U(seed, query) V^T
struct LowRankTerm {
  uint64_t seed;
  double coef;
  uint32_t query;
};

// One matrix [rows, columns]; strides in elements.
struct LowRankMatrix {
  void* data;
  const void* source;  // the clean copy, or data itself
  const float* vt;     // V transposed, [rank, columns], contiguous
  const float* u;      // explicit U [rows, rank], contiguous, or null: U is regenerated
  int64_t rows, columns;
  int64_t row_stride, column_stride;
  int64_t source_row_stride, source_column_stride;
  int32_t rank;
  uint32_t stream;
};

// W = round(decay * source + sum_k coef_k U_k V^T)
struct LowRankArgs {
  const LowRankMatrix* matrices;
  int64_t count;
  const LowRankTerm* terms;
  int64_t n_terms;
  double decay;
  int dtype;  // DType of dtype.hpp
  bool stochastic;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  int threads;
};

// A factor's elements [0, n), or the sum of several with their coefficients.
struct FactorArgs {
  const LowRankTerm* terms;
  int64_t n_terms;
  uint32_t stream, purpose;
  int64_t n;
  int dtype;
  void* out;
  int threads;
};

// One table per instruction set.
struct LowRankKernels {
  void (*lowrank)(const LowRankArgs&);
  void (*factor)(const FactorArgs&);   // of terms[0], without its coefficient
  void (*project)(const FactorArgs&);  // float32
};

}  // namespace tenfold
