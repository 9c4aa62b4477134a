// The CUDA door of the superposition channel, included by cuda_module.cpp.
#pragma once

#include "channel/channel_cuda.hpp"
#include "channel_door.hpp"

namespace tenfold {

// on_device as in lowrank_cuda_door.hpp. views and draw as in channel_door.hpp; out: what each function says.
template <class OnDevice>
void bind_channel_cuda(pybind11::module_& m, OnDevice on_device) {
  const auto bind = [&](const char* name, const char* (*run)(const ChannelArgs&, void*)) {
    m.def(name, [on_device, name, run](const PyPowerShape& shape, const std::vector<PyPowerView>& views, uint64_t seed,
                                       const std::tuple<uint32_t, int64_t, int64_t>& draw, uintptr_t out, uintptr_t stream) {
      const ChannelArgs a = channel_args(shape, views, seed, draw, out);
      on_device(name, out, [&] { return run(a, reinterpret_cast<void*>(stream)); });
    });
  };
  bind("channel", &tf_cuda::channel);
  bind("channel_gains", &tf_cuda::channel_gains);
  bind("channel_wanted", &tf_cuda::channel_wanted);
}

}  // namespace tenfold
