// The CUDA door of the Sophia passes, included by cuda_module.cpp; names and arguments as in sophia_door.hpp, a stream for the threads and,
// for a step, the address of the partial statistics before it.
#pragma once

#include "sophia/sophia_cuda.hpp"
#include "sophia_door.hpp"

namespace tenfold {

// on_device(name, address, call) runs `call` on the device that owns the address and raises what it returns.
template <class OnDevice>
void bind_sophia_cuda(pybind11::module_& m, OnDevice on_device) {
  m.attr("sophia_tile") = tf_cuda::kSophiaTile;
  m.def("sophia_step", [on_device](const std::vector<PySophiaTensor>& py_tensors, int dtype, int grad_dtype, int state, int denom,
                                   const PySophiaScalars& scalars, const PySophiaFlags& flags, uint64_t seed, uint32_t step,
                                   uintptr_t inv_scale, uintptr_t found_inf, uintptr_t stats, uintptr_t partials, uintptr_t stream) {
    const auto tensors = sophia_tensors(py_tensors);
    if (tensors.empty()) return;
    const auto args =
        sophia_step_args(tensors, dtype, grad_dtype, state, denom, scalars, flags, seed, step, inv_scale, found_inf, stats, 0);
    on_device("sophia_step", reinterpret_cast<uintptr_t>(tensors[0].param),
              [&] { return tf_cuda::sophia_step(args, at_address<double>(partials), reinterpret_cast<void*>(stream)); });
  });
  m.def("sophia_hessian",
        [on_device](const std::vector<PySophiaHessian>& py_tensors, int dtype, int grad_dtype, int state, double keep, double weight,
                    uint64_t seed, uint32_t step, uintptr_t inv_scale, uintptr_t found_inf, uintptr_t stream) {
          const auto tensors = sophia_hessians(py_tensors);
          if (tensors.empty()) return;
          const SophiaHessianArgs args = {tensors.data(),
                                          static_cast<int64_t>(tensors.size()),
                                          dtype,
                                          grad_dtype,
                                          state,
                                          keep,
                                          weight,
                                          seed,
                                          step,
                                          at_address<const float>(inv_scale),
                                          at_address<const float>(found_inf),
                                          0};
          on_device("sophia_hessian", reinterpret_cast<uintptr_t>(tensors[0].hessian),
                    [&] { return tf_cuda::sophia_hessian(args, reinterpret_cast<void*>(stream)); });
        });
  m.def("sophia_encode", [on_device](const PySophiaCode& code, uintptr_t stream) {
    on_device("sophia8_quantize", std::get<1>(code),
              [&] { return tf_cuda::sophia_encode(sophia_code(code, 0), reinterpret_cast<void*>(stream)); });
  });
  m.def("sophia_decode", [on_device](const PySophiaCode& code, uintptr_t stream) {
    on_device("sophia8_dequantize", std::get<1>(code),
              [&] { return tf_cuda::sophia_decode(sophia_code(code, 0), reinterpret_cast<void*>(stream)); });
  });
}

}  // namespace tenfold
