// What csrc/quality_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no
// allocation. Returns null, or what CUDA says about the launch.
#pragma once

#include "quality_api.hpp"

namespace tf_cuda {

// Tiles of a plane, and pieces of a picture's squared error: `means` of the forward calls is [planes, tiles] or [pictures, pieces], sums
// that are to be added up and divided.
int64_t quality_tiles(const tenfold::QualityArgs& a);
int64_t quality_pieces(const tenfold::QualityArgs& a);

const char* image_similarity(const tenfold::QualityArgs& a, void* stream);
const char* image_similarity_backward(const tenfold::QualityArgs& a, void* stream);
const char* image_squared_error(const tenfold::QualityArgs& a, void* stream);
const char* image_squared_error_backward(const tenfold::QualityArgs& a, void* stream);

}  // namespace tf_cuda
