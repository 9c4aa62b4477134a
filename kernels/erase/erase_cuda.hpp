// What csrc/erase_cuda_door.hpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and
// no allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include "erase_api.hpp"

namespace tf_cuda {

const char* erase_sum(const tenfold::EraseSumArgs& a, void* stream);
const char* erase_adam(const tenfold::EraseAdamArgs& a, void* stream);

}  // namespace tf_cuda
