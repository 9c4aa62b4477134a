// The CPU door of power allocation, included by cpu_module.cpp, and the arguments that it shares with the CUDA door.
#pragma once

#include "args.hpp"
#include "power/power_api.hpp"

namespace tenfold {

// (address, stride of rows, of users, of carriers); address 0: not given
using PyPowerView = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;
// (rows, users, carriers, dtype)
using PyPowerShape = std::tuple<int64_t, int64_t, int64_t, int>;
// gains, symbols, power, noise, statistics; or gains, power, noise, wanted, weights
using PyPowerViews = std::tuple<PyPowerView, PyPowerView, PyPowerView, PyPowerView, PyPowerView>;
// transmit or precoder, alpha, mu or tau, objective, iterations
using PyPowerOut = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

inline PowerView power_view(const PyPowerView& from) {
  const auto& [address, row, user, carrier] = from;
  return {reinterpret_cast<const void*>(address), row, user, carrier};
}

inline PowerShape power_shape(const PyPowerShape& from) {
  const auto& [rows, users, carriers, dtype] = from;
  if (rows < 0 || users < 1 || carriers < 1) throw std::invalid_argument("shape: expected rows >= 0, users and carriers >= 1");
  if (dtype != 0 && dtype != 1) throw std::invalid_argument("dtype: expected float32 or float64");
  return {rows, users, carriers, dtype};
}

inline void* power_out(uintptr_t address) { return reinterpret_cast<void*>(address); }

inline JointArgs joint_args(const PyPowerShape& shape, const PyPowerViews& from, double tolerance, int64_t most, const PyPowerOut& out,
                            int threads) {
  const auto& [gains, symbols, power, noise, statistics] = from;
  const auto& [transmit, alpha, mu, objective, iterations] = out;
  return {power_shape(shape),
          power_view(gains),
          power_view(symbols),
          power_view(power),
          power_view(noise),
          power_view(statistics),
          tolerance,
          most,
          power_out(transmit),
          power_out(alpha),
          power_out(mu),
          power_out(objective),
          reinterpret_cast<int32_t*>(iterations),
          threads};
}

inline SeparableArgs separable_args(const PyPowerShape& shape, const PyPowerViews& from, double tolerance, int64_t most,
                                    const PyPowerOut& out, int threads) {
  const auto& [gains, power, noise, wanted, weights] = from;
  const auto& [precoder, alpha, tau, objective, iterations] = out;
  return {power_shape(shape),
          power_view(gains),
          power_view(power),
          power_view(noise),
          power_view(wanted),
          power_view(weights),
          tolerance,
          most,
          power_out(precoder),
          power_out(alpha),
          power_out(tau),
          power_out(objective),
          reinterpret_cast<int32_t*>(iterations),
          threads};
}

inline void bind_power(pybind11::module_& m, const PowerKernels* const& power) {
  namespace py = pybind11;
  m.def("power_joint",
        [&power](const PyPowerShape& shape, const PyPowerViews& from, double tolerance, int64_t most, const PyPowerOut& out, int threads) {
          const JointArgs a = joint_args(shape, from, tolerance, most, out, threads);
          py::gil_scoped_release unlocked;
          power->joint(a);
        });
  m.def("power_separable",
        [&power](const PyPowerShape& shape, const PyPowerViews& from, double tolerance, int64_t most, const PyPowerOut& out, int threads) {
          const SeparableArgs a = separable_args(shape, from, tolerance, most, out, threads);
          py::gil_scoped_release unlocked;
          power->separable(a);
        });
  m.def("power_water", [&power](const PyPowerShape& shape, const PyPowerView& x, const PyPowerView& mass, bool inverse, uintptr_t out,
                                uintptr_t theta, int threads) {
    const WaterArgs a = {power_shape(shape), power_view(x), power_view(mass), inverse, power_out(out), power_out(theta), threads};
    py::gil_scoped_release unlocked;
    power->water(a);
  });
  m.def("power_mse_water", [&power](const PyPowerShape& shape, const PyPowerView& gains, const PyPowerView& weights,
                                    const PyPowerView& budget, uintptr_t out, uintptr_t level, int threads) {
    const MseWaterArgs a = {
        power_shape(shape), power_view(gains), power_view(weights), power_view(budget), power_out(out), power_out(level), threads};
    py::gil_scoped_release unlocked;
    power->mse_water(a);
  });
  m.def("power_normalize", [&power](const PyPowerShape& shape, const PyPowerView& x, const PyPowerView& budget, bool is_complex, bool mean,
                                    uintptr_t out, int threads) {
    const NormalizeArgs a = {power_shape(shape), power_view(x), power_view(budget), is_complex, mean, power_out(out), threads};
    py::gil_scoped_release unlocked;
    power->normalize(a);
  });
}

}  // namespace tenfold
