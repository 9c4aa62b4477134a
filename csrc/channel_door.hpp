// The CPU door of the superposition channel, included by cpu_module.cpp.
#pragma once

#include "channel/channel_api.hpp"
#include "power_door.hpp"

namespace tenfold {

// views: transmit, gains, mean, scale, noise, alpha, power, rho; draw: offset, first, block; out: received, alpha, dual variables
inline void bind_channel(pybind11::module_& m, const ChannelKernels* const& channel) {
  namespace py = pybind11;
  m.def("channel", [&channel](const PyPowerShape& shape, const std::vector<PyPowerView>& views, uint64_t seed,
                              const std::tuple<uint32_t, int64_t, int64_t>& draw, int allocate, double tolerance, int64_t most,
                              const std::vector<uintptr_t>& out, int threads) {
    require_length("views", views.size(), 8);
    require_length("out", out.size(), 3);
    const auto& [offset, first, block] = draw;
    if (block < 1 || first < 0) throw std::invalid_argument("draw: expected first >= 0 and block >= 1");
    const ChannelArgs a = {power_shape(shape),
                           power_view(views[0]),
                           power_view(views[1]),
                           power_view(views[2]),
                           power_view(views[3]),
                           power_view(views[4]),
                           power_view(views[5]),
                           power_view(views[6]),
                           power_view(views[7]),
                           seed,
                           offset,
                           first,
                           block,
                           allocate,
                           tolerance,
                           most,
                           power_out(out[0]),
                           power_out(out[1]),
                           power_out(out[2]),
                           threads};
    py::gil_scoped_release unlocked;
    channel->channel(a);
  });
}

}  // namespace tenfold
