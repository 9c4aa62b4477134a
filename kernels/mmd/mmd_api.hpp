// The plain structures that csrc/ fills and the discrepancy kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

constexpr int kMaxKernels = 64;

// k(a, b) = sum_u exp(-|a - b|^2 / (base * factors[u])), factors ascending.
struct Widths {
  const double* factors;
  int kernels;
  double floor;  // the least base
  bool clamp;    // |a - b|^2 / width into [1e-5, 1e5], as CAN's code does
};

// sum_ij W_ij k(z_i, z_j) over z = [x; y], for each problem of a batch.
struct PairArgs {
  const void* x;  // [batch][n][d], contiguous
  const void* y;  // [batch][m][d], or null
  int64_t batch, n, m, d;
  int dtype;
  const float* v;  // [batch or 1][n + m][columns], W_ij = sum_c v_ic v_jc; null: 1/n for x, -1/m for y
  int64_t columns;
  bool v_shared;
  Widths widths;
  const double* base_in;  // [batch], or null: the mean of |z_i - z_j|^2 over i != j
  bool unbiased;          // no pairs i == j; within x larger by n/(n-1), within y by m/(m-1)
  bool by_column;         // a value for each column of v
  double* value;          // [batch], or [batch][columns]
  double* base;           // [batch]
  float* gradient;        // [batch][n + m][d], or null
  int threads;
};

// Counts of |x_i - x_j|^2 (i < j and j < i, and i == i) by `bits` bits of its float32 pattern below `shift`, where the bits above equal
// `prefix`.
struct PairDigitArgs {
  const void* x;  // [n][d]
  int64_t n, d;
  int dtype;
  uint32_t prefix;
  int shift, bits;
  int64_t* counts;  // [1 << bits]
  int threads;
};

struct ContrastArgs {
  const void* s;  // [batch][n][d], contiguous
  const void* t;  // [batch][m][d]
  const int64_t* ys;
  const int64_t* yt;
  int64_t batch, n, m, d, classes;
  int dtype;
  Widths widths;
  int64_t min_count;
  double* intra;          // [batch]
  double* inter;          // [batch]
  double* matrix;         // [batch][classes][classes]
  float* gradient_intra;  // [batch][n + m][d], or null
  float* gradient_inter;
  int threads;
};

// One table per instruction set.
struct MmdKernels {
  void (*pairs)(const PairArgs&);
  void (*digits)(const PairDigitArgs&);
  void (*contrast)(const ContrastArgs&);
};

}  // namespace tenfold
