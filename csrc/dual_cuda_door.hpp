// The CUDA door of perturbed layers, included by cuda_module.cpp; names and arguments as in dual_door.hpp, a stream for the threads.
#pragma once

#include "dual/dual_cuda.hpp"
#include "dual_door.hpp"

namespace tenfold {

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_dual_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("dual_fill", [on_device](const PyPerturbedWeight& weight, int64_t row, int64_t rows, const std::vector<PyPerturbedOut>& outs,
                                 int out_dtype, uintptr_t stream) {
    const auto targets = perturbed_outs(outs);
    const FillArgs args = {perturbed_weight(weight), row, rows, targets.data(), static_cast<int64_t>(targets.size()), out_dtype, 0};
    if (rows == 0 || targets.empty()) return;
    on_device("dual_fill", std::get<0>(weight), [&] { return tf_cuda::dual_fill(args, reinterpret_cast<void*>(stream)); });
  });
  m.def("dual_embed",
        [on_device](const PyPerturbedWeight& weight, int64_t tokens, const std::vector<PyPerturbedOut>& outs, uintptr_t stream) {
          const auto targets = perturbed_outs(outs);
          const EmbedArgs args = {perturbed_weight(weight), tokens, targets.data(), static_cast<int64_t>(targets.size()), 0};
          if (tokens == 0 || targets.empty()) return;
          on_device("dual_embed", std::get<0>(weight), [&] { return tf_cuda::dual_embed(args, reinterpret_cast<void*>(stream)); });
        });
}

}  // namespace tenfold
