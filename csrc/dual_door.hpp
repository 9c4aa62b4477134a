// The CPU door of perturbed layers, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "dual/dual_api.hpp"

namespace tenfold {

// (data, columns, row stride, column stride, dtype, seed, stream, query, dist, z_round)
using PyPerturbedWeight = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int, uint64_t, uint32_t, uint32_t, uint32_t, int>;
// (data, coef, ids); ids is 0 for a fill
using PyPerturbedOut = std::tuple<uintptr_t, double, uintptr_t>;

inline PerturbedWeight perturbed_weight(const PyPerturbedWeight& from) {
  const auto& [data, columns, row_stride, column_stride, dtype, seed, stream, query, dist, z_round] = from;
  return {reinterpret_cast<const void*>(data), columns, row_stride, column_stride, dtype, seed, stream, query, dist, z_round};
}

inline std::vector<PerturbedOut> perturbed_outs(const std::vector<PyPerturbedOut>& from) {
  std::vector<PerturbedOut> out;
  out.reserve(from.size());
  for (const auto& [data, coef, ids] : from) out.push_back({reinterpret_cast<void*>(data), coef, reinterpret_cast<const int64_t*>(ids)});
  return out;
}

// `table` is the module's pointer to the kernels of the instruction set in use.
inline void bind_dual(pybind11::module_& m, const DualKernels* const& table) {
  m.def("dual_fill", [&table](const PyPerturbedWeight& weight, int64_t row, int64_t rows, const std::vector<PyPerturbedOut>& outs,
                              int out_dtype, int threads) {
    const auto targets = perturbed_outs(outs);
    pybind11::gil_scoped_release unlocked;
    table->fill({perturbed_weight(weight), row, rows, targets.data(), static_cast<int64_t>(targets.size()), out_dtype, threads});
  });
  m.def("dual_embed", [&table](const PyPerturbedWeight& weight, int64_t tokens, const std::vector<PyPerturbedOut>& outs, int threads) {
    const auto targets = perturbed_outs(outs);
    pybind11::gil_scoped_release unlocked;
    table->embed({perturbed_weight(weight), tokens, targets.data(), static_cast<int64_t>(targets.size()), threads});
  });
}

}  // namespace tenfold
