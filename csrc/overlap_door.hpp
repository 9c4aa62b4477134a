// The CPU door of the overlap kernels, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "overlap/overlap_api.hpp"

namespace tenfold {

// (address, bytes per label, signed, sizes, strides in elements)
using PyLabels = std::tuple<uintptr_t, int, bool, std::vector<int64_t>, std::vector<int64_t>>;

inline Labels labels_of(const PyLabels& from) {
  const auto& [address, bytes, is_signed, sizes, strides] = from;
  if (sizes.size() != strides.size() || sizes.empty() || sizes.size() > kMostAxes) {
    throw std::invalid_argument("labels: expected 1 to 8 axes, with a size and a stride each");
  }
  if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) throw std::invalid_argument("labels: expected 1, 2, 4 or 8 bytes");
  Labels out = {reinterpret_cast<const void*>(address), bytes, is_signed, static_cast<int32_t>(sizes.size()), {}, {}};
  for (size_t i = 0; i < sizes.size(); ++i) {
    out.sizes[i] = sizes[i];
    out.strides[i] = strides[i];
  }
  return out;
}

inline void require_same_shape(const Labels& a, const Labels& b) {
  bool same = a.ndim == b.ndim;
  for (int i = 0; same && i < a.ndim; ++i) same = a.sizes[i] == b.sizes[i];
  if (!same) throw std::invalid_argument("labels: expected one shape");
}

template <class T>
T* overlap_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void bind_overlap(pybind11::module_& m, const OverlapKernels* const& table) {
  const OverlapKernels* const* kernels = &table;
  m.def("overlap_counts", [kernels](const PyLabels& target, const PyLabels& pred, int64_t num_labels, uintptr_t counts,
                                    uintptr_t box_target, uintptr_t box_pred, bool clamp, int threads) {
    const OverlapArgs args = {labels_of(target),
                              labels_of(pred),
                              num_labels,
                              overlap_pointer<int64_t>(counts),
                              overlap_pointer<int64_t>(box_target),
                              overlap_pointer<int64_t>(box_pred),
                              clamp,
                              threads};
    require_same_shape(args.target, args.pred);
    pybind11::gil_scoped_release unlocked;
    return (*kernels)->counts(args);
  });
  m.def("label_lut", [kernels](const PyLabels& volume, uintptr_t lut, int64_t num_labels, uintptr_t words, int threads) {
    const LutArgs args = {labels_of(volume), overlap_pointer<const int64_t>(lut), num_labels, overlap_pointer<int64_t>(words), threads};
    pybind11::gil_scoped_release unlocked;
    return (*kernels)->lut(args);
  });
  m.def("pack_bits", [kernels](uintptr_t masks, uintptr_t words, int64_t channels, int64_t count, int64_t channel_stride, bool unpack,
                               int threads) {
    const PackArgs args = {overlap_pointer<uint8_t>(masks), overlap_pointer<int64_t>(words), channels, count, channel_stride, threads};
    pybind11::gil_scoped_release unlocked;
    (unpack ? (*kernels)->unpack : (*kernels)->pack)(args);
  });
  m.def("bit_counts", [kernels](uintptr_t a, uintptr_t b, int64_t channels, int64_t words, uintptr_t counts, bool owners, int threads) {
    const BitCountArgs args = {
        overlap_pointer<const int64_t>(a), overlap_pointer<const int64_t>(b), channels, words, overlap_pointer<int64_t>(counts), threads};
    pybind11::gil_scoped_release unlocked;
    (owners ? (*kernels)->owners : (*kernels)->multihot)(args);
  });
}

}  // namespace tenfold
