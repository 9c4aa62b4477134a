// What csrc/lowrank_cuda_door.hpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and
// no allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include "lowrank_api.hpp"

namespace tf_cuda {

const char* lowrank(const tenfold::LowRankArgs& a, void* stream);
const char* lowrank_factor(const tenfold::FactorArgs& a, void* stream);
const char* lowrank_project(const tenfold::FactorArgs& a, void* stream);

}  // namespace tf_cuda
