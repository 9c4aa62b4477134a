// What csrc/scores_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no allocation.
// Returns null, or what CUDA says about the launch.
#pragma once

#include "scores_api.hpp"

namespace tf_cuda {

// Inner products of every factored gradient with that of row *pick, in double: one column of the pursuit.
struct ColumnArgs {
  tenfold::Matrix errors;  // float32
  tenfold::Matrix hidden;  // float32
  const int64_t* pick;     // in device memory
  double bias;
  double* out;  // [rows]
};

const char* score_rows(const tenfold::ScoreArgs& a, void* stream);
const char* cross_entropy_rows(const tenfold::CrossEntropyArgs& a, void* stream);
const char* cross_entropy_rows_backward(const tenfold::CrossEntropyArgs& a, void* stream);
const char* dynamics_scatter(const tenfold::DynamicsArgs& a, void* stream);
const char* class_vote(const tenfold::VoteArgs& a, void* stream);
const char* fgrad_column(const ColumnArgs& a, void* stream);

}  // namespace tf_cuda
