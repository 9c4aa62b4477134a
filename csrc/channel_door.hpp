// The CPU door of the superposition channel, included by cpu_module.cpp.
#pragma once

#include "channel/channel_api.hpp"
#include "power_door.hpp"

namespace tenfold {

// views: transmit, gains, mean, scale, noise, alpha, power, rho; draw: offset, first, block. Without allocation.
inline ChannelArgs channel_args(const PyPowerShape& shape, const std::vector<PyPowerView>& views, uint64_t seed,
                                const std::tuple<uint32_t, int64_t, int64_t>& draw, uintptr_t received) {
  require_length("views", views.size(), 8);
  const auto& [offset, first, block] = draw;
  if (block < 1 || first < 0) throw std::invalid_argument("draw: expected first >= 0 and block >= 1");
  ChannelArgs a = {};
  a.shape = power_shape(shape);
  a.transmit = power_view(views[0]);
  a.gains = power_view(views[1]);
  a.mean = power_view(views[2]);
  a.scale = power_view(views[3]);
  a.noise = power_view(views[4]);
  a.alpha = power_view(views[5]);
  a.power = power_view(views[6]);
  a.rho = power_view(views[7]);
  a.seed = seed;
  a.offset = offset;
  a.first = first;
  a.block = block;
  a.received = power_out(received);
  return a;
}

// out: received, alpha, dual variables
inline void bind_channel(pybind11::module_& m, const ChannelKernels* const& channel) {
  namespace py = pybind11;
  m.def("channel", [&channel](const PyPowerShape& shape, const std::vector<PyPowerView>& views, uint64_t seed,
                              const std::tuple<uint32_t, int64_t, int64_t>& draw, int allocate, double tolerance, int64_t most,
                              const std::vector<uintptr_t>& out, int threads) {
    require_length("out", out.size(), 3);
    ChannelArgs a = channel_args(shape, views, seed, draw, out[0]);
    a.allocate = allocate;
    a.tolerance = tolerance;
    a.most = most;
    a.found = power_out(out[1]);
    a.dual = power_out(out[2]);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    channel->channel(a);
  });
}

}  // namespace tenfold
