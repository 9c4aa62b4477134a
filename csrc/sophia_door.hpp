// The CPU door of the Sophia passes, included by cpu_module.cpp; what it makes of Python's arguments serves the CUDA door as well.
#pragma once

#include "args.hpp"
#include "sophia/sophia_api.hpp"

namespace tenfold {

// (param, grad, exp_avg, hessian, exp_avg scale, hessian scale, master, compensation, numel, stream); 0 is not there
using PySophiaTensor =
    std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, uint32_t>;
// (hessian, scale, grad, probe, numel, stream)
using PySophiaHessian = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, uint32_t>;
// (beta1, 1 - beta1, beta2, 1 - beta2, denom_scale, eps, -lr, decay, shrink)
using PySophiaScalars = std::vector<double>;
// (update_hessian, maximize, skip, stochastic)
using PySophiaFlags = std::tuple<bool, bool, bool, bool>;
// (values, codes, scales, numel, hessian, stochastic, seed, step, stream)
using PySophiaCode = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, bool, bool, uint64_t, uint32_t, uint32_t>;

template <class T>
T* at_address(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline std::vector<SophiaTensor> sophia_tensors(const std::vector<PySophiaTensor>& from) {
  std::vector<SophiaTensor> out;
  out.reserve(from.size());
  for (const auto& [param, grad, exp_avg, hessian, exp_avg_scale, hessian_scale, master, compensation, numel, stream] : from) {
    out.push_back({at_address<void>(param), at_address<const void>(grad), at_address<void>(exp_avg), at_address<void>(hessian),
                   at_address<float>(exp_avg_scale), at_address<float>(hessian_scale), at_address<float>(master),
                   at_address<void>(compensation), numel, stream});
  }
  return out;
}

inline SophiaStepArgs sophia_step_args(const std::vector<SophiaTensor>& tensors, int dtype, int grad_dtype, int state, int denom,
                                       const PySophiaScalars& s, const PySophiaFlags& flags, uint64_t seed, uint32_t step,
                                       uintptr_t inv_scale, uintptr_t found_inf, uintptr_t stats, int threads) {
  require_length("scalars", s.size(), 9);
  const auto [update_hessian, maximize, skip, stochastic] = flags;
  for (const SophiaTensor& t : tensors) {
    const bool bytes = state == kStateByte && (t.exp_avg_scale == nullptr || (t.hessian != nullptr && t.hessian_scale == nullptr));
    if (bytes || (denom != kDenomSign && t.hessian == nullptr)) throw std::invalid_argument("sophia: a state is missing");
  }
  return {tensors.data(),
          static_cast<int64_t>(tensors.size()),
          dtype,
          grad_dtype,
          state,
          denom,
          s[0],
          s[1],
          s[2],
          s[3],
          s[4],
          s[5],
          s[6],
          s[7],
          s[8],
          update_hessian,
          maximize,
          skip,
          stochastic,
          seed,
          step,
          at_address<const float>(inv_scale),
          at_address<const float>(found_inf),
          at_address<double>(stats),
          threads};
}

inline std::vector<SophiaHessianTensor> sophia_hessians(const std::vector<PySophiaHessian>& from) {
  std::vector<SophiaHessianTensor> out;
  out.reserve(from.size());
  for (const auto& [hessian, scale, grad, probe, numel, stream] : from) {
    out.push_back(
        {at_address<void>(hessian), at_address<float>(scale), at_address<const void>(grad), at_address<const void>(probe), numel, stream});
  }
  return out;
}

inline SophiaCodeArgs sophia_code(const PySophiaCode& from, int threads) {
  const auto [values, codes, scales, numel, hessian, stochastic, seed, step, stream] = from;
  return {at_address<float>(values),
          at_address<uint8_t>(codes),
          at_address<float>(scales),
          numel,
          hessian,
          stochastic,
          seed,
          step,
          stream,
          threads};
}

// `table` is the module's pointer to the kernels of the instruction set in use.
inline void bind_sophia(pybind11::module_& m, const SophiaKernels* const& table) {
  m.def("sophia_step", [&table](const std::vector<PySophiaTensor>& py_tensors, int dtype, int grad_dtype, int state, int denom,
                                const PySophiaScalars& scalars, const PySophiaFlags& flags, uint64_t seed, uint32_t step,
                                uintptr_t inv_scale, uintptr_t found_inf, uintptr_t stats, int threads) {
    const auto tensors = sophia_tensors(py_tensors);
    const auto args =
        sophia_step_args(tensors, dtype, grad_dtype, state, denom, scalars, flags, seed, step, inv_scale, found_inf, stats, threads);
    pybind11::gil_scoped_release unlocked;
    table->step(args);
  });
  m.def("sophia_hessian", [&table](const std::vector<PySophiaHessian>& py_tensors, int dtype, int grad_dtype, int state, double keep,
                                   double weight, uint64_t seed, uint32_t step, uintptr_t inv_scale, uintptr_t found_inf, int threads) {
    const auto tensors = sophia_hessians(py_tensors);
    pybind11::gil_scoped_release unlocked;
    table->hessian({tensors.data(), static_cast<int64_t>(tensors.size()), dtype, grad_dtype, state, keep, weight, seed, step,
                    at_address<const float>(inv_scale), at_address<const float>(found_inf), threads});
  });
  m.def("sophia_encode", [&table](const PySophiaCode& code, int threads) {
    pybind11::gil_scoped_release unlocked;
    table->encode(sophia_code(code, threads));
  });
  m.def("sophia_decode", [&table](const PySophiaCode& code, int threads) {
    pybind11::gil_scoped_release unlocked;
    table->decode(sophia_code(code, threads));
  });
}

}  // namespace tenfold
