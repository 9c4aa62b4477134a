// The CPU door of the soft-overlap kernels, included by cpu_module.cpp; softdice_cuda_door.hpp has the same names and arguments for CUDA.
#pragma once

#include "args.hpp"
#include "softdice/softdice_api.hpp"

namespace tenfold {

// (address, dtype, stride of batch items, of classes, of voxels)
using PySoftdiceMap = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;
// (batches, classes, voxels, dense)
using PySoftdiceShape = std::tuple<int64_t, int64_t, int64_t, bool>;
// (has ignore, ignore, activation, gamma, squares, logs)
using PySoftdiceOptions = std::tuple<bool, int64_t, int, double, bool, bool>;

inline SoftdiceMap softdice_map(const PySoftdiceMap& from) {
  const auto& [address, dtype, batch, label, voxel] = from;
  return {reinterpret_cast<void*>(address), dtype, batch, label, voxel};
}

inline SoftdiceArgs softdice_args(const PySoftdiceMap& logits, const PySoftdiceMap& target, const PySoftdiceMap& mask,
                                  const PySoftdiceShape& shape, const PySoftdiceOptions& options, uintptr_t lse, uintptr_t sums) {
  const auto& [batches, classes, voxels, dense] = shape;
  const auto& [has_ignore, ignore, activation, gamma, squares, logs] = options;
  if (classes < 1) throw std::invalid_argument("classes: expected at least one");
  SoftdiceArgs a = {};
  a.logits = softdice_map(logits);
  a.target = softdice_map(target);
  a.mask = softdice_map(mask);
  a.batches = batches;
  a.classes = classes;
  a.voxels = voxels;
  a.dense = dense;
  a.has_ignore = has_ignore;
  a.ignore = ignore;
  a.activation = activation;
  a.gamma = gamma;
  a.squares = squares;
  a.logs = logs;
  a.lse = reinterpret_cast<void*>(lse);
  a.sums = reinterpret_cast<double*>(sums);
  return a;
}

// `table` is the module's pointer to the kernels of the instruction set in use.
inline void bind_softdice(pybind11::module_& m, const SoftdiceKernels* const& table) {
  m.def("soft_overlap",
        [&table](const PySoftdiceMap& logits, const PySoftdiceMap& target, const PySoftdiceMap& mask, const PySoftdiceShape& shape,
                 const PySoftdiceOptions& options, uintptr_t lse, uintptr_t sums, uintptr_t bad, int threads) {
          SoftdiceArgs a = softdice_args(logits, target, mask, shape, options, lse, sums);
          a.bad = reinterpret_cast<int64_t*>(bad);
          a.threads = threads;
          pybind11::gil_scoped_release unlocked;
          table->forward(a);
        });
  m.def("soft_overlap_backward",
        [&table](const PySoftdiceMap& logits, const PySoftdiceMap& target, const PySoftdiceMap& mask, const PySoftdiceShape& shape,
                 const PySoftdiceOptions& options, uintptr_t lse, uintptr_t grad, const PySoftdiceMap& out, int threads) {
          SoftdiceArgs a = softdice_args(logits, target, mask, shape, options, lse, grad);
          a.out = softdice_map(out);
          a.threads = threads;
          pybind11::gil_scoped_release unlocked;
          table->backward(a);
        });
}

}  // namespace tenfold
