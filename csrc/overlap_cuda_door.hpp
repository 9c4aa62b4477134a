// The CUDA door of the overlap and distance kernels, included by cuda_module.cpp; a stream in place of the threads.
#pragma once

#include "overlap/overlap_cuda.hpp"
#include "overlap_door.hpp"
#include "surface/edt_cuda.hpp"

namespace tenfold {

// on_device(name, address, call) runs `call` on the device that owns the address and raises what it returns.
template <class OnDevice>
void bind_overlap_cuda(pybind11::module_& m, OnDevice on_device) {
  const auto handle = [](uintptr_t stream) { return reinterpret_cast<void*>(stream); };
  m.def("overlap_counts", [=](const PyLabels& target, const PyLabels& pred, int64_t num_labels, uintptr_t counts, uintptr_t box_target,
                              uintptr_t box_pred, bool clamp, uintptr_t outside, uintptr_t stream) {
    const OverlapArgs args = {labels_of(target),
                              labels_of(pred),
                              num_labels,
                              overlap_pointer<int64_t>(counts),
                              overlap_pointer<int64_t>(box_target),
                              overlap_pointer<int64_t>(box_pred),
                              clamp,
                              0};
    require_same_shape(args.target, args.pred);
    on_device("overlap_counts", counts, [&] { return tf_cuda::overlap_counts(args, overlap_pointer<int32_t>(outside), handle(stream)); });
  });
  m.def("label_lut", [=](const PyLabels& volume, uintptr_t lut, int64_t num_labels, uintptr_t words, uintptr_t outside, uintptr_t stream) {
    const LutArgs args = {labels_of(volume), overlap_pointer<const int64_t>(lut), num_labels, overlap_pointer<int64_t>(words), 0};
    on_device("label_lut", lut, [&] { return tf_cuda::label_lut(args, overlap_pointer<int32_t>(outside), handle(stream)); });
  });
  m.def("pack_bits",
        [=](uintptr_t masks, uintptr_t words, int64_t channels, int64_t count, int64_t channel_stride, bool unpack, uintptr_t stream) {
          const PackArgs args = {overlap_pointer<uint8_t>(masks), overlap_pointer<int64_t>(words), channels, count, channel_stride, 0};
          if (channels * count == 0) return;
          on_device("pack_bits", masks, [&] { return tf_cuda::pack_bits(args, unpack, handle(stream)); });
        });
  m.def("bit_counts", [=](uintptr_t a, uintptr_t b, int64_t channels, int64_t words, uintptr_t counts, bool owners, uintptr_t stream) {
    const BitCountArgs args = {
        overlap_pointer<const int64_t>(a), overlap_pointer<const int64_t>(b), channels, words, overlap_pointer<int64_t>(counts), 0};
    if (channels * words == 0) return;
    on_device("bit_counts", counts, [&] { return tf_cuda::bit_counts(args, owners, handle(stream)); });
  });
  m.def("edt", [=](uintptr_t features, int64_t batch, const std::vector<int64_t>& sizes, const std::vector<double>& spacing, bool wide,
                   bool squared, uintptr_t out, uintptr_t index, uintptr_t work, uintptr_t work_index, uintptr_t stream) {
    require_length("sizes", sizes.size(), 3);
    require_length("spacing", spacing.size(), 3);
    const EdtArgs args = {overlap_pointer<const uint8_t>(features),
                          batch,
                          {sizes[0], sizes[1], sizes[2]},
                          {spacing[0], spacing[1], spacing[2]},
                          wide,
                          squared,
                          overlap_pointer<void>(out),
                          overlap_pointer<int32_t>(index),
                          0};
    if (batch * sizes[0] * sizes[1] * sizes[2] == 0) return;
    on_device("edt", out,
              [&] { return tf_cuda::edt(args, overlap_pointer<void>(work), overlap_pointer<int32_t>(work_index), handle(stream)); });
  });
}

}  // namespace tenfold
