// The plain structures that csrc/ fills and the picture-quality kernels read. No math, no target namespace. What the numbers mean:
// quality_reference.py.
#pragma once

#include <cstdint>

namespace tenfold {

constexpr int kQualityByte = 4;  // beside DType of dtype.hpp: uint8
constexpr int kMostTaps = 11;

// [batches, channels, height, width] with strides in elements; data null: not there.
struct QualityImage {
  void* data;
  int dtype;
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
};

struct QualityArgs {
  QualityImage x;
  QualityImage y;
  int64_t batches;
  int64_t channels;
  int64_t height;
  int64_t width;
  int taps;  // 11 or 7, symmetric
  double weights[kMostTaps];
  double unbiased;
  double c1;
  double c2;
  double scale;
  bool contrast;
  bool wide;            // arithmetic is double
  double* means;        // forward, [batches, channels], or [batches] of the squared error; CUDA: parts of them, see quality_cuda.hpp
  const double* grad;   // backward, of the same shape
  QualityImage px, py;  // pictures of half the size, of the arithmetic's dtype: forward written, backward their gradients
  QualityImage dx, dy;  // backward, of the dtypes of x and y
  int threads;
};

struct QualityKernels {
  void (*similarity)(const QualityArgs&);
  void (*similarity_backward)(const QualityArgs&);
  void (*squared_error)(const QualityArgs&);
  void (*squared_error_backward)(const QualityArgs&);
};

}  // namespace tenfold
