// What csrc/softdice_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no
// allocation. Returns null, or what CUDA says about the launch.
#pragma once

#include "softdice_api.hpp"

namespace tf_cuda {

// Forward: sums of `blocks` blocks per batch item into `partial`, how many labels are outside the classes into bad [batches, blocks].
const char* soft_overlap(const tenfold::SoftdiceArgs& a, void* stream);
const char* soft_overlap_backward(const tenfold::SoftdiceArgs& a, void* stream);

}  // namespace tf_cuda
