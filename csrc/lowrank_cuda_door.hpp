// The CUDA door of the low-rank passes, included by cuda_module.cpp; names and arguments as in lowrank_door.hpp, a stream for the threads.
#pragma once

#include "lowrank/lowrank_cuda.hpp"
#include "lowrank_door.hpp"

namespace tenfold {

// on_device(name, address, call) runs `call` on the device that owns the address and raises what it returns.
template <class OnDevice>
void bind_lowrank_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("lowrank", [on_device](const std::vector<PyLowRankMatrix>& matrices, const std::vector<PyLowRankTerm>& terms, double decay,
                               int dtype, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, uintptr_t stream) {
    const auto targets = lowrank_matrices(matrices);
    const auto summands = lowrank_terms(terms);
    if (targets.empty()) return;
    const LowRankArgs args = {targets.data(),  static_cast<int64_t>(targets.size()),
                              summands.data(), static_cast<int64_t>(summands.size()),
                              decay,           dtype,
                              stochastic,      rounding_seed,
                              rounding_query,  0};
    on_device("zo_lowrank", reinterpret_cast<uintptr_t>(targets[0].data),
              [&] { return tf_cuda::lowrank(args, reinterpret_cast<void*>(stream)); });
  });
  const auto draw = [on_device](bool sum, const std::vector<PyLowRankTerm>& terms, uint32_t stream_id, uint32_t purpose, int64_t n,
                                int dtype, uintptr_t out, uintptr_t stream) {
    const auto summands = lowrank_terms(terms);
    const FactorArgs args = {summands.data(), static_cast<int64_t>(summands.size()), stream_id, purpose, n,
                             dtype,           reinterpret_cast<void*>(out),          0};
    if (n == 0) return;
    on_device("lowrank_factor", out, [&] {
      return sum ? tf_cuda::lowrank_project(args, reinterpret_cast<void*>(stream))
                 : tf_cuda::lowrank_factor(args, reinterpret_cast<void*>(stream));
    });
  };
  m.def("lowrank_factor", [draw](const std::vector<PyLowRankTerm>& terms, uint32_t stream_id, uint32_t purpose, int64_t n, int dtype,
                                 uintptr_t out, uintptr_t stream) { draw(false, terms, stream_id, purpose, n, dtype, out, stream); });
  m.def("lowrank_project", [draw](const std::vector<PyLowRankTerm>& terms, uint32_t stream_id, uint32_t purpose, int64_t n, int dtype,
                                  uintptr_t out, uintptr_t stream) { draw(true, terms, stream_id, purpose, n, dtype, out, stream); });
}

}  // namespace tenfold
