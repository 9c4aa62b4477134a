// What csrc/overlap_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no allocation.
// Returns null, or what CUDA says about the launch.
#pragma once

#include "overlap_api.hpp"

namespace tf_cuda {

// As OverlapArgs, in device memory: counts hold 0 and boxes INT64_MAX and 0 before; *outside becomes 1 where a label is wrong.
const char* overlap_counts(const tenfold::OverlapArgs& a, int32_t* outside, void* stream);
const char* label_lut(const tenfold::LutArgs& a, int32_t* outside, void* stream);
const char* pack_bits(const tenfold::PackArgs& a, bool unpack, void* stream);
// counts hold 0 before.
const char* bit_counts(const tenfold::BitCountArgs& a, bool owners, void* stream);

}  // namespace tf_cuda
