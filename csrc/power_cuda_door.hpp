// The CUDA door of power allocation, included by cuda_module.cpp.
#pragma once

#include "power/power_cuda.hpp"
#include "power_door.hpp"

namespace tenfold {

// (address, blocks, doubles of each)
using PyPowerRoom = std::tuple<uintptr_t, int64_t, int64_t>;

inline tf_cuda::Workspace power_workspace(const PyPowerRoom& from) {
  const auto& [address, blocks, each] = from;
  return {reinterpret_cast<double*>(address), blocks, each};
}

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_power_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("power_joint_room", &tf_cuda::power_joint_room);
  m.def("power_separable_room", &tf_cuda::power_separable_room);
  m.def("power_joint", [on_device](const PyPowerShape& shape, const PyPowerViews& from, double tolerance, int64_t most,
                                   const PyPowerOut& out, const PyPowerRoom& room, uintptr_t stream) {
    const JointArgs a = joint_args(shape, from, tolerance, most, out, 0);
    const tf_cuda::Workspace space = power_workspace(room);
    on_device("power_joint", std::get<0>(out), [&] { return tf_cuda::power_joint(a, space, reinterpret_cast<void*>(stream)); });
  });
  m.def("power_separable", [on_device](const PyPowerShape& shape, const PyPowerViews& from, double tolerance, int64_t most,
                                       const PyPowerOut& out, const PyPowerRoom& room, uintptr_t stream) {
    const SeparableArgs a = separable_args(shape, from, tolerance, most, out, 0);
    const tf_cuda::Workspace space = power_workspace(room);
    on_device("power_separable", std::get<0>(out), [&] { return tf_cuda::power_separable(a, space, reinterpret_cast<void*>(stream)); });
  });
  m.def("power_water", [on_device](const PyPowerShape& shape, const PyPowerView& x, const PyPowerView& mass, bool inverse, uintptr_t out,
                                   uintptr_t theta, uintptr_t stream) {
    const WaterArgs a = {power_shape(shape), power_view(x), power_view(mass), inverse, power_out(out), power_out(theta), 0};
    on_device("power_water", out, [&] { return tf_cuda::power_water(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("power_mse_water", [on_device](const PyPowerShape& shape, const PyPowerView& gains, const PyPowerView& weights,
                                       const PyPowerView& budget, uintptr_t out, uintptr_t level, uintptr_t stream) {
    const MseWaterArgs a = {
        power_shape(shape), power_view(gains), power_view(weights), power_view(budget), power_out(out), power_out(level), 0};
    on_device("power_mse_water", out, [&] { return tf_cuda::power_mse_water(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("power_normalize", [on_device](const PyPowerShape& shape, const PyPowerView& x, const PyPowerView& budget, bool is_complex,
                                       bool mean, uintptr_t out, uintptr_t stream) {
    const NormalizeArgs a = {power_shape(shape), power_view(x), power_view(budget), is_complex, mean, power_out(out), 0};
    on_device("power_normalize", out, [&] { return tf_cuda::power_normalize(a, reinterpret_cast<void*>(stream)); });
  });
}

}  // namespace tenfold
