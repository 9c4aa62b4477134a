// The plain structures that csrc/ fills and the soft-overlap kernels read. No math, no target namespace. What the numbers mean:
// softdice_reference.py.
#pragma once

#include <cstdint>

namespace tenfold {

constexpr int64_t kSoftdiceSums = 7;  // SUMS of softdice_reference.py, in that order
enum SoftdiceSum : int { kIntersection, kPrediction, kPredictionSquared, kTarget, kTargetSquared, kLogPositive, kLogNegative };
enum Activation : int { kSoftmax = 0, kSigmoid = 1, kNone = 2 };

// Dtypes of labels and of label maps: DType of dtype.hpp, then the integers.
enum LabelType : int { kLabelU8 = 4, kLabelI8 = 5, kLabelI16 = 6, kLabelI32 = 7, kLabelI64 = 8 };

// [batches, classes, voxels] with strides in elements; class_stride is 0 for labels and masks.
struct SoftdiceMap {
  void* data;
  int dtype;
  int64_t batch_stride;
  int64_t class_stride;
  int64_t voxel_stride;
};

struct SoftdiceArgs {
  SoftdiceMap logits;
  SoftdiceMap target;  // labels, or a map with `dense`
  SoftdiceMap mask;    // uint8; data null: every voxel counts
  int64_t batches;
  int64_t classes;
  int64_t voxels;
  bool dense;
  bool has_ignore;
  int64_t ignore;
  int activation;
  double gamma;
  bool squares;
  bool logs;
  void* lse;        // [batches, voxels] in the dtype of the arithmetic; softmax only
  double* sums;     // [batches, classes, kSoftdiceSums]: written forward, the gradient backward
  int64_t* bad;     // forward: how many labels are outside the classes
  SoftdiceMap out;  // backward: the gradient of the logits, of their dtype
  double* partial;  // CUDA forward: [batches, blocks, classes, kSoftdiceSums]
  int64_t blocks;   // CUDA
  int threads;
};

struct SoftdiceKernels {
  void (*forward)(const SoftdiceArgs&);
  void (*backward)(const SoftdiceArgs&);
};

}  // namespace tenfold
