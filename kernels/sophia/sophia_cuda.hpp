// What csrc/cuda_module.cpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no allocation, and
// numbers that a captured graph should read anew (inv_scale, found_inf) stand in device memory. Returns null, or what CUDA says.
#pragma once

#include "sophia_api.hpp"

namespace tf_cuda {

constexpr int64_t kSophiaTile = 2048;  // elements of a block of threads

// With statistics, `partials` is device memory for kSophiaStats numbers per tile of all tensors.
const char* sophia_step(const tenfold::SophiaStepArgs& a, double* partials, void* stream);
const char* sophia_hessian(const tenfold::SophiaHessianArgs& a, void* stream);
const char* sophia_encode(const tenfold::SophiaCodeArgs& a, void* stream);
const char* sophia_decode(const tenfold::SophiaCodeArgs& a, void* stream);

}  // namespace tf_cuda
