// What csrc/dual_cuda_door.hpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and
// no allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include "dual_api.hpp"

namespace tf_cuda {

const char* dual_fill(const tenfold::FillArgs& a, void* stream);
const char* dual_embed(const tenfold::EmbedArgs& a, void* stream);

}  // namespace tf_cuda
