// The CPU door of the discrepancy kernels, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "mmd/mmd_api.hpp"

namespace tenfold {

// (factors, floor, clamp)
using PyWidths = std::tuple<std::vector<double>, double, bool>;

inline Widths widths_of(const PyWidths& from) {
  const auto& [factors, floor, clamp] = from;
  if (factors.empty() || factors.size() > kMaxKernels) throw std::invalid_argument("factors: expected 1 to 64 widths");
  return {factors.data(), static_cast<int>(factors.size()), floor, clamp};
}

template <class T>
T* mmd_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void bind_mmd(pybind11::module_& m, const MmdKernels* const& table) {
  m.def("mmd_pairs", [&table](uintptr_t x, uintptr_t y, int64_t batch, int64_t n, int64_t points, int64_t d, int dtype, uintptr_t v,
                              int64_t columns, bool v_shared, const PyWidths& widths, uintptr_t base_in, bool unbiased, bool by_column,
                              uintptr_t value, uintptr_t base, uintptr_t gradient, int threads) {
    const PairArgs args = {mmd_pointer<void>(x),
                           mmd_pointer<void>(y),
                           batch,
                           n,
                           points,
                           d,
                           dtype,
                           mmd_pointer<const float>(v),
                           columns,
                           v_shared,
                           widths_of(widths),
                           mmd_pointer<const double>(base_in),
                           unbiased,
                           by_column,
                           mmd_pointer<double>(value),
                           mmd_pointer<double>(base),
                           mmd_pointer<float>(gradient),
                           threads};
    pybind11::gil_scoped_release unlocked;
    table->pairs(args);
  });
  // One problem of contiguous float32 points, mean distance, plain weights: as few arguments as a small batch can afford. Returns the base.
  m.def("mmd_single", [&table](uintptr_t x, uintptr_t y, int64_t n, int64_t points, int64_t d, const PyWidths& widths, bool unbiased,
                               uintptr_t value, uintptr_t gradient, int threads) {
    double found = 0.0, base = 0.0;
    const PairArgs args = {mmd_pointer<void>(x),
                           mmd_pointer<void>(y),
                           1,
                           n,
                           points,
                           d,
                           0,
                           nullptr,
                           1,
                           true,
                           widths_of(widths),
                           nullptr,
                           unbiased,
                           false,
                           &found,
                           &base,
                           mmd_pointer<float>(gradient),
                           threads};
    pybind11::gil_scoped_release unlocked;
    table->pairs(args);
    *mmd_pointer<float>(value) = static_cast<float>(found);
    return base;
  });
  m.def("mmd_digits",
        [&table](uintptr_t x, int64_t n, int64_t d, int dtype, uint32_t prefix, int shift, int bits, uintptr_t counts, int threads) {
          if (bits < 1 || shift < 0 || shift + bits > 32) throw std::invalid_argument("bits: expected 1 or more, and shift + bits <= 32");
          const PairDigitArgs args = {mmd_pointer<void>(x), n, d, dtype, prefix, shift, bits, mmd_pointer<int64_t>(counts), threads};
          pybind11::gil_scoped_release unlocked;
          table->digits(args);
        });
  m.def("mmd_contrast", [&table](uintptr_t s, uintptr_t t, uintptr_t ys, uintptr_t yt, int64_t batch, int64_t n, int64_t points, int64_t d,
                                 int64_t classes, int dtype, const PyWidths& widths, int64_t min_count, uintptr_t intra, uintptr_t inter,
                                 uintptr_t matrix, uintptr_t gradient_intra, uintptr_t gradient_inter, int threads) {
    const ContrastArgs args = {mmd_pointer<void>(s),
                               mmd_pointer<void>(t),
                               mmd_pointer<const int64_t>(ys),
                               mmd_pointer<const int64_t>(yt),
                               batch,
                               n,
                               points,
                               d,
                               classes,
                               dtype,
                               widths_of(widths),
                               min_count,
                               mmd_pointer<double>(intra),
                               mmd_pointer<double>(inter),
                               mmd_pointer<double>(matrix),
                               mmd_pointer<float>(gradient_intra),
                               mmd_pointer<float>(gradient_inter),
                               threads};
    pybind11::gil_scoped_release unlocked;
    table->contrast(args);
  });
}

}  // namespace tenfold
