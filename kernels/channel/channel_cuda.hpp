// What csrc/channel_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no
// allocation. Returns null, or what CUDA says about the launch. `allocate`, `found` and `dual` are not read: see channel_device.py.
#pragma once

#include "channel_api.hpp"

namespace tf_cuda {

const char* channel(const tenfold::ChannelArgs& a, void* stream);

// The gains alone, [rows][users][carriers] in `received`.
const char* channel_gains(const tenfold::ChannelArgs& a, void* stream);

// s = sum_n sqrt(rho_n) t_n, [rows][carriers] in `received`, with t in `transmit`.
const char* channel_wanted(const tenfold::ChannelArgs& a, void* stream);

}  // namespace tf_cuda
