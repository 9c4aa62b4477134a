// The plain structures that csrc/ fills and the row kernels read. No math, no target namespace. What the numbers mean: rows_reference.py.
#pragma once

#include <cstdint>

namespace tenfold {

constexpr int64_t kRowBlock = 2048;  // vocabulary entries summed as one block; BLOCK of rows_reference.py

// Rows r = 0 .. rows - 1 of logits: row r starts (r / inner) * outer_stride + (r % inner) * inner_stride elements behind `data`.
struct Rows {
  void* data;
  int64_t rows;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
};

struct RowShape {
  int64_t vocabulary;
  int dtype;                  // DType of dtype.hpp: float32, bfloat16 or float16
  float softcap;              // 0: none
  float inverse_temperature;  // 1: none
};

struct RowForwardArgs {
  Rows logits;
  RowShape shape;
  const int64_t* targets;  // negative: the row is left out, and gets zeros
  double* logp;
  double* lse;
  int64_t* argmax;  // null: neither this nor the means
  double* mean_logit;
  double* mean_logp;
  double* mean_logp2;
  int threads;
};

struct RowSoftmaxArgs {
  Rows out;  // of the dtype of logits, which it may be
  Rows logits;
  RowShape shape;
  const int64_t* targets;
  const double* lse;
  const double* coef;
  const double* at_target;
  int threads;
};

struct RowSampleArgs {
  Rows logits;
  RowShape shape;
  const double* uniforms;  // negative: the row is left out
  int64_t* tokens;
  double* logp;
  double* lse;
  int threads;
};

struct RowCeuArgs {
  Rows logits;
  RowShape shape;
  const int64_t* targets;
  double* loss;
  double* rest;
  double* logp;
  int threads;
};

enum DivergenceKind : int { kForwardKl = 0, kReverseKl = 1, kCrossEntropy = 2 };

// Forward writes loss, lse and ref_lse; backward reads them and writes `out`. Both rows are float32.
struct RowDivergenceArgs {
  Rows out;
  Rows logits;
  Rows ref_logits;
  int64_t vocabulary;
  const int64_t* targets;
  float beta;
  int kind;
  double* loss;
  double* lse;
  double* ref_lse;
  const double* grad;
  int threads;
};

// One table per instruction set.
struct RowKernels {
  void (*forward)(const RowForwardArgs&);
  void (*softmax)(const RowSoftmaxArgs&);
  void (*sample)(const RowSampleArgs&);
  void (*ceu)(const RowCeuArgs&);
  void (*divergence)(const RowDivergenceArgs&);
  void (*divergence_backward)(const RowDivergenceArgs&);
};

}  // namespace tenfold
