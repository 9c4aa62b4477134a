// The CUDA door of the discrepancy kernels, included by cuda_module.cpp.
#pragma once

#include "args.hpp"
#include "mmd/mmd_cuda.hpp"

namespace tenfold {

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_mmd_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("mmd_pairs", [on_device](uintptr_t z, uintptr_t v, uintptr_t inverse, uintptr_t partial, uintptr_t gradient, int64_t points,
                                 int64_t sources, int64_t d, int64_t columns, int64_t v_set, float within_x, float within_y, int kernels,
                                 int problems, bool doubling, bool unbiased, uintptr_t stream) {
    if (problems == 0) return;
    const tf_cuda::PairLaunch args = {reinterpret_cast<const float*>(z),
                                      reinterpret_cast<const float*>(v),
                                      reinterpret_cast<const float*>(inverse),
                                      reinterpret_cast<double*>(partial),
                                      reinterpret_cast<float*>(gradient),
                                      points,
                                      sources,
                                      d,
                                      columns,
                                      v_set,
                                      within_x,
                                      within_y,
                                      kernels,
                                      problems,
                                      doubling,
                                      unbiased};
    on_device("mmd_pairs", z, [&] { return tf_cuda::mmd_pairs(args, reinterpret_cast<void*>(stream)); });
  });
  m.def("mmd_contrast",
        [on_device](uintptr_t z, uintptr_t labels, uintptr_t inverse, uintptr_t weights, uintptr_t sums, uintptr_t gradient, int64_t points,
                    int64_t sources, int64_t d, int64_t classes, int kernels, int problems, bool doubling, bool clamp, uintptr_t stream) {
          if (problems == 0) return;
          const tf_cuda::ContrastLaunch args = {reinterpret_cast<const float*>(z),
                                                reinterpret_cast<const int64_t*>(labels),
                                                reinterpret_cast<const float*>(inverse),
                                                reinterpret_cast<const float*>(weights),
                                                reinterpret_cast<double*>(sums),
                                                reinterpret_cast<float*>(gradient),
                                                points,
                                                sources,
                                                d,
                                                classes,
                                                kernels,
                                                problems,
                                                doubling,
                                                clamp};
          on_device("mmd_contrast", z, [&] { return tf_cuda::mmd_contrast(args, reinterpret_cast<void*>(stream)); });
        });
}

}  // namespace tenfold
