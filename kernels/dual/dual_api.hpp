// The plain structures that csrc/ fills and the kernels of perturbed layers read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// The weight [rows, columns], only read; strides in elements. Element (i, j) of its direction is number i * columns + j.
struct PerturbedWeight {
  const void* data;
  int64_t columns;
  int64_t row_stride, column_stride;
  int dtype;  // DType of dtype.hpp
  uint64_t seed;
  uint32_t stream, query, dist;
  int z_round;  // DType that z is rounded to first, or -1
};

// One output: out = round(fma(coef, z, W)), contiguous.
struct PerturbedOut {
  void* data;
  double coef;
  const int64_t* ids;  // for embeddings
};

constexpr int kMaxCopies = 64;

struct FillArgs {
  PerturbedWeight weight;
  int64_t row, rows;
  const PerturbedOut* outs;
  int64_t n_outs;
  int out_dtype;  // that of the weight, or float32 for half-precision weights
  int threads;
};

// Rows ids[t] of the weight for each output, which is of the weight's dtype.
struct EmbedArgs {
  PerturbedWeight weight;
  int64_t tokens;
  const PerturbedOut* outs;
  int64_t n_outs;
  int threads;
};

// One table per instruction set.
struct DualKernels {
  void (*fill)(const FillArgs&);
  void (*embed)(const EmbedArgs&);
};

}  // namespace tenfold
