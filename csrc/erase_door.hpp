// The CPU door of the selection of weights and masked Adam, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "erase/erase_api.hpp"

namespace tenfold {

// (address, elements)
using PyEraseTensor = std::pair<uintptr_t, int64_t>;
// (acc, grad, weight or 0, elements)
using PyEraseSum = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t>;
// (param, grad, exp_avg, exp_avg_sq, bits, elements)
using PyEraseAdam = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t>;

inline std::vector<EraseTensor> erase_tensors(const std::vector<PyEraseTensor>& from) {
  std::vector<EraseTensor> out;
  out.reserve(from.size());
  for (const auto& [address, numel] : from) out.push_back({reinterpret_cast<const void*>(address), numel});
  return out;
}

inline EraseKeys erase_keys(const std::vector<EraseTensor>& tensors, int dtype, bool wide, int threads) {
  return {tensors.data(), static_cast<int64_t>(tensors.size()), dtype, wide, threads};
}

inline std::vector<EraseSumTensor> erase_sums(const std::vector<PyEraseSum>& from) {
  std::vector<EraseSumTensor> out;
  out.reserve(from.size());
  for (const auto& [acc, grad, weight, numel] : from) {
    out.push_back({reinterpret_cast<void*>(acc), reinterpret_cast<const void*>(grad), reinterpret_cast<const void*>(weight), numel});
  }
  return out;
}

inline std::vector<EraseAdamTensor> erase_adam_tensors(const std::vector<PyEraseAdam>& from) {
  std::vector<EraseAdamTensor> out;
  out.reserve(from.size());
  for (const auto& [param, grad, mean, square, bits, numel] : from) {
    out.push_back({reinterpret_cast<void*>(param), reinterpret_cast<const void*>(grad), reinterpret_cast<void*>(mean),
                   reinterpret_cast<void*>(square), reinterpret_cast<const uint8_t*>(bits), numel});
  }
  return out;
}

inline EraseAdamArgs erase_adam_args(const std::vector<EraseAdamTensor>& tensors, int dtype, int state_dtype,
                                     const std::vector<double>& scalars, int threads) {
  require_length("scalars", scalars.size(), 7);
  const double* s = scalars.data();
  return {tensors.data(), static_cast<int64_t>(tensors.size()), dtype, state_dtype, s[0], s[1], s[2], s[3], s[4], s[5], s[6], threads};
}

inline void bind_erase(pybind11::module_& m, const EraseKernels* const& table) {
  m.def("erase_sample", [&table](const std::vector<PyEraseTensor>& from, int dtype, bool wide, int64_t n, uintptr_t out, int threads) {
    const auto tensors = erase_tensors(from);
    pybind11::gil_scoped_release unlocked;
    table->sample({erase_keys(tensors, dtype, wide, threads), n, reinterpret_cast<void*>(out)});
  });
  // The counts below lo, at lo, at hi, and of what is not finite; and how many keys there are in the room now.
  m.def("erase_bracket", [&table](const std::vector<PyEraseTensor>& from, int dtype, bool wide, int64_t lo, int64_t hi, uintptr_t room,
                                  int64_t capacity, int64_t stored, int threads) {
    const auto tensors = erase_tensors(from);
    std::vector<int64_t> counts(kEraseCounts);
    {
      pybind11::gil_scoped_release unlocked;
      table->bracket({erase_keys(tensors, dtype, wide, threads), lo, hi, counts.data(), reinterpret_cast<void*>(room), capacity, &stored});
    }
    return std::pair(counts, stored);
  });
  m.def("erase_bits", [&table](const std::vector<PyEraseTensor>& from, int dtype, bool wide, int64_t key, bool flip,
                               const std::vector<uintptr_t>& out, int threads) {
    const auto tensors = erase_tensors(from);
    require_length("out", out.size(), tensors.size());
    const auto bits = pointers<uint8_t>(out);
    pybind11::gil_scoped_release unlocked;
    table->bits({erase_keys(tensors, dtype, wide, threads), key, flip, bits.data()});
  });
  m.def("erase_sum", [&table](const std::vector<PyEraseSum>& from, int acc, int grad, int weight, int mode, int threads) {
    const auto tensors = erase_sums(from);
    pybind11::gil_scoped_release unlocked;
    table->sum({tensors.data(), static_cast<int64_t>(tensors.size()), acc, grad, weight, mode, threads});
  });
  m.def("erase_adam",
        [&table](const std::vector<PyEraseAdam>& from, int dtype, int state_dtype, const std::vector<double>& scalars, int threads) {
          const auto tensors = erase_adam_tensors(from);
          const EraseAdamArgs a = erase_adam_args(tensors, dtype, state_dtype, scalars, threads);
          pybind11::gil_scoped_release unlocked;
          table->adam(a);
        });
}

}  // namespace tenfold
