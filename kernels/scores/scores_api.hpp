// The plain structures that csrc/ fills and the kernels of sample scores read. No math, no target namespace. What the numbers mean:
// scores_reference.py.
#pragma once

#include <cstdint>

namespace tenfold {

// [rows, columns] of float32, bfloat16 or float16 (DType of dtype.hpp), columns of stride 1.
struct Matrix {
  const void* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;  // of rows, in elements
  int dtype;
};

struct ScoreArgs {
  Matrix logits;
  const int64_t* labels;
  const float* norms;  // ||h||^2, or null where grand is
  float* el2n;         // null: not wanted, likewise the next ones
  float* grand;
  float* loss;
  float* entropy;
  float* margin;
  float* least_confidence;
  float* label_margin;
  uint8_t* correct;
  int64_t* histogram;  // added to
  int64_t* bad;        // [2], lowered to the first row that is not finite, and whose label is no class
  int threads;
};

struct CrossEntropyArgs {
  Matrix logits;
  const int64_t* labels;
  float* loss;
  float* top;
  float* log_total;
  const float* grad;  // backward
  void* out;          // backward: of the dtype of logits
  int64_t out_stride;
  int threads;
};

// Training dynamics of the samples `indices`, all different.
struct DynamicsArgs {
  int64_t rows;
  const int64_t* indices;
  const uint8_t* correct;
  const float* label_margin;
  const float* el2n;
  uint8_t* last;
  int32_t* forget;
  int32_t* hits;
  float* aum;
  float* el2n_sum;
  uint8_t* ever;
  int32_t* seen;
};

struct VoteArgs {
  Matrix logits;
  const int64_t* targets;  // or null
  int64_t* histogram;      // [columns], added to
  int64_t* matrix;         // [target classes, columns], added to, or null
  int64_t* bad;            // lowered to the first row without a largest entry
  int threads;
};

struct MaskArgsOfClasses {
  const void* labels;
  int bytes;  // of a label: 1, 2, 4 or 8
  bool is_signed;
  int64_t rows;
  const uint8_t* keep;
  int64_t classes;
  int64_t* counts;  // per piece of kMaskPiece rows; first pass
  int64_t* bad;     // lowered to the first row whose label is no class; first pass
  int64_t* out;     // second pass: indices, piece p at the sum of the counts before it; null in the first
  int threads;
};
constexpr int64_t kMaskPiece = 65536;

struct MedianArgs {
  Matrix x;
  const int64_t* labels;  // in [0, classes)
  int64_t classes;
  float* medians;    // [classes, columns]
  float* distances;  // [rows]; second pass
  uint8_t* bad;      // set where an entry is not finite
  int threads;
};

// Orthogonal matching pursuit on factored gradients: see fgrad_reference.py.
struct OmpArgs {
  Matrix errors;
  Matrix hidden;
  bool bias;
  int64_t k;
  double lam;
  double target_squared;
  const double* q;    // [rows]: <g, target>
  double* columns;    // [k, rows] of room
  double* c;          // [rows] of room
  int64_t* indices;   // [k]
  double* gram;       // [k, k]
  double* chol;       // [k, k], zeros
  double* residuals;  // [k]
  int threads;
};

// One table per instruction set.
struct ScoreKernels {
  void (*score)(const ScoreArgs&);
  void (*cross_entropy)(const CrossEntropyArgs&);
  void (*cross_entropy_backward)(const CrossEntropyArgs&);
  void (*dynamics)(const DynamicsArgs&);
  void (*vote)(const VoteArgs&);
  void (*mask)(const MaskArgsOfClasses&);
};

struct MedianKernels {
  void (*medians)(const MedianArgs&);
  void (*distances)(const MedianArgs&);
};

struct FgradKernels {
  void (*omp)(const OmpArgs&);
};

}  // namespace tenfold
