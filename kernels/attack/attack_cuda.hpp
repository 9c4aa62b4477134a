// What csrc/attack_cuda_door.hpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and
// no allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include "attack_api.hpp"

namespace tf_cuda {

const char* simplex_project(const tenfold::SimplexProjectArgs& a, void* stream);
// `ready` only: the products with the table are made outside.
const char* ste_adam_simplex(const tenfold::SteAdamArgs& a, void* stream);
const char* sample_rows(const tenfold::DrawArgs& a, void* stream);
// products [rows, columns] and, without inv_norm, weights [columns] are room.
const char* nearest_token(const tenfold::NearestArgs& a, float* products, float* weights, void* stream);
const char* attack_rows(const tenfold::LatentArgs& a, void* stream);
const char* guided_mse(const tenfold::GuidedMseArgs& a, void* stream);
const char* guided_mse_backward(const tenfold::GuidedMseArgs& a, void* stream);
const char* splice_embed(const tenfold::SpliceArgs& a, void* stream);
const char* splice_embed_backward(const tenfold::SpliceArgs& a, void* stream);

}  // namespace tf_cuda
