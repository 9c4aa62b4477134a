// What csrc/mmd_cuda_door.hpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and
// no allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include <cstdint>

namespace tf_cuda {

// Points are centred float32 [problems][points][d]; the first `sources` of them are x. inverse holds 1 / width, [problems][kernels].
struct PairLaunch {
  const float* z;
  const float* v;  // [problems or 1][points][columns]
  const float* inverse;
  double* partial;  // [problems][tiles of 64 points]
  float* gradient;  // [problems][points][d], or null
  int64_t points, sources, d, columns, v_set;
  float within_x, within_y;
  int kernels, problems;
  bool doubling, unbiased;
};

struct ContrastLaunch {
  const float* z;
  const int64_t* labels;  // [problems][points]
  const float* inverse;   // [problems][classes][classes][kernels]
  const float* weights;   // [problems][classes][classes][4]: within the source class, within the target class, between, unused
  double* sums;           // [problems][points][classes][2], zero before
  float* gradient;        // [2][problems][points][d], or null
  int64_t points, sources, d, classes;
  int kernels, problems;
  bool doubling, clamp;
};

const char* mmd_pairs(const PairLaunch& a, void* stream);
const char* mmd_contrast(const ContrastLaunch& a, void* stream);

}  // namespace tf_cuda
