// The CUDA door of the soft-overlap kernels, included by cuda_module.cpp.
#pragma once

#include "softdice/softdice_cuda.hpp"
#include "softdice_door.hpp"

namespace tenfold {

// on_device(name, address, launch) runs `launch` on the device that owns the address and raises what it returns.
template <class OnDevice>
void bind_softdice_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("soft_overlap",
        [on_device](const PySoftdiceMap& logits, const PySoftdiceMap& target, const PySoftdiceMap& mask, const PySoftdiceShape& shape,
                    const PySoftdiceOptions& options, uintptr_t lse, uintptr_t partial, uintptr_t bad, int64_t blocks, uintptr_t stream) {
          SoftdiceArgs a = softdice_args(logits, target, mask, shape, options, lse, 0);
          a.partial = reinterpret_cast<double*>(partial);
          a.bad = reinterpret_cast<int64_t*>(bad);
          a.blocks = blocks;
          if (a.batches * a.voxels == 0) return;
          on_device("soft_overlap", std::get<0>(logits), [&] { return tf_cuda::soft_overlap(a, reinterpret_cast<void*>(stream)); });
        });
  m.def("soft_overlap_backward",
        [on_device](const PySoftdiceMap& logits, const PySoftdiceMap& target, const PySoftdiceMap& mask, const PySoftdiceShape& shape,
                    const PySoftdiceOptions& options, uintptr_t lse, uintptr_t grad, const PySoftdiceMap& out, uintptr_t stream) {
          SoftdiceArgs a = softdice_args(logits, target, mask, shape, options, lse, grad);
          a.out = softdice_map(out);
          if (a.batches * a.voxels == 0) return;
          on_device("soft_overlap_backward", std::get<0>(logits),
                    [&] { return tf_cuda::soft_overlap_backward(a, reinterpret_cast<void*>(stream)); });
        });
}

}  // namespace tenfold
