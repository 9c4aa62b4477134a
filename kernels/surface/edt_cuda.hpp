// What csrc/overlap_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no allocation.
// Returns null, or what CUDA says about the launch.
#pragma once

#include "surface_api.hpp"

namespace tf_cuda {

// The longest row a block can hold the features of, as bits in shared memory.
constexpr int64_t kMostRow = 65536;

// As EdtArgs, in device memory. work and work_index: room like out and index (index null: not used). The result is in out and index.
const char* edt(const tenfold::EdtArgs& a, void* work, int32_t* work_index, void* stream);

}  // namespace tf_cuda
