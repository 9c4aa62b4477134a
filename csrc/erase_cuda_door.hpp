// The CUDA door of saliency sums and masked Adam, included by cuda_module.cpp; names and arguments as in erase_door.hpp, a stream for the
// threads.
#pragma once

#include "erase/erase_cuda.hpp"
#include "erase_door.hpp"

namespace tenfold {

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_erase_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("erase_sum", [on_device](const std::vector<PyEraseSum>& from, int acc, int grad, int weight, int mode, uintptr_t stream) {
    const auto tensors = erase_sums(from);
    if (tensors.empty()) return;
    const EraseSumArgs a = {tensors.data(), static_cast<int64_t>(tensors.size()), acc, grad, weight, mode, 0};
    on_device("saliency_accum_", reinterpret_cast<uintptr_t>(tensors[0].acc),
              [&] { return tf_cuda::erase_sum(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("erase_adam", [on_device](const std::vector<PyEraseAdam>& from, int dtype, int state_dtype, const std::vector<double>& scalars,
                                  uintptr_t stream) {
    const auto tensors = erase_adam_tensors(from);
    const EraseAdamArgs a = erase_adam_args(tensors, dtype, state_dtype, scalars, 0);
    if (tensors.empty()) return;
    on_device("masked_adam_", reinterpret_cast<uintptr_t>(tensors[0].param),
              [&] { return tf_cuda::erase_adam(a, reinterpret_cast<void*>(stream)); });
  });
}

}  // namespace tenfold
