// The CPU door of the low-rank passes, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "lowrank/lowrank_api.hpp"

namespace tenfold {

// (data, source, vt, u, rows, columns, row stride, column stride, source's two strides, rank, stream); u is 0 for a regenerated U.
using PyLowRankMatrix =
    std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, uint32_t>;
// (seed, query, coef)
using PyLowRankTerm = std::tuple<uint64_t, uint32_t, double>;

inline std::vector<LowRankMatrix> lowrank_matrices(const std::vector<PyLowRankMatrix>& from) {
  std::vector<LowRankMatrix> out;
  out.reserve(from.size());
  for (const auto& [data, source, vt, u, rows, columns, rs, cs, srs, scs, rank, stream] : from) {
    if (rank < 1 || rank > kMaxRank) throw std::invalid_argument("rank: expected 1 to 256");
    out.push_back({reinterpret_cast<void*>(data), reinterpret_cast<const void*>(source), reinterpret_cast<const float*>(vt),
                   reinterpret_cast<const float*>(u), rows, columns, rs, cs, srs, scs, rank, stream});
  }
  return out;
}

inline std::vector<LowRankTerm> lowrank_terms(const std::vector<PyLowRankTerm>& from) {
  if (from.empty() || from.size() > 64) throw std::invalid_argument("terms: expected 1 to 64");
  std::vector<LowRankTerm> out;
  out.reserve(from.size());
  for (const auto& [seed, query, coef] : from) out.push_back({seed, coef, query});
  return out;
}

// `table` is the module's pointer to the kernels of the instruction set in use.
inline void bind_lowrank(pybind11::module_& m, const LowRankKernels* const& table) {
  m.def("lowrank", [&table](const std::vector<PyLowRankMatrix>& matrices, const std::vector<PyLowRankTerm>& terms, double decay, int dtype,
                            bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads) {
    const auto targets = lowrank_matrices(matrices);
    const auto summands = lowrank_terms(terms);
    pybind11::gil_scoped_release unlocked;
    table->lowrank({targets.data(), static_cast<int64_t>(targets.size()), summands.data(), static_cast<int64_t>(summands.size()), decay,
                    dtype, stochastic, rounding_seed, rounding_query, threads});
  });
  const auto draw = [&table](bool sum, const std::vector<PyLowRankTerm>& terms, uint32_t stream, uint32_t purpose, int64_t n, int dtype,
                             uintptr_t out, int threads) {
    const auto summands = lowrank_terms(terms);
    const FactorArgs args = {summands.data(), static_cast<int64_t>(summands.size()), stream, purpose, n,
                             dtype,           reinterpret_cast<void*>(out),          threads};
    pybind11::gil_scoped_release unlocked;
    (sum ? table->project : table->factor)(args);
  };
  m.def("lowrank_factor", [draw](const std::vector<PyLowRankTerm>& terms, uint32_t stream, uint32_t purpose, int64_t n, int dtype,
                                 uintptr_t out, int threads) { draw(false, terms, stream, purpose, n, dtype, out, threads); });
  m.def("lowrank_project", [draw](const std::vector<PyLowRankTerm>& terms, uint32_t stream, uint32_t purpose, int64_t n, int dtype,
                                  uintptr_t out, int threads) { draw(true, terms, stream, purpose, n, dtype, out, threads); });
}

}  // namespace tenfold
