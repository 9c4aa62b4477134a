// What csrc/cuda_module.cpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no allocation.
// Returns null, or what CUDA says about the launch.
#pragma once

#include "logprob_api.hpp"

namespace tf_cuda {

const char* lse_partials(const tenfold::LseArgs& a, void* stream);

}  // namespace tf_cuda
