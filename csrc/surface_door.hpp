// The CPU door of the surface kernels, included by cpu_module.cpp.
#pragma once

#include "overlap_door.hpp"
#include "surface/surface_api.hpp"

namespace tenfold {

inline void bind_surface(pybind11::module_& m, const SurfaceKernels* const& table) {
  const SurfaceKernels* const* kernels = &table;
  // outs: addresses of voxels, elements, area, within, distance_sum, hd, hd_pooled
  m.def("surface_metrics",
        [kernels](const PyLabels& target, const PyLabels& pred, int64_t num_labels, uintptr_t counts, uintptr_t box_target,
                  uintptr_t box_pred, const std::vector<int64_t>& organ_labels, const std::vector<int64_t>& organ_starts,
                  const std::vector<double>& spacing, const std::vector<double>& areas, const std::vector<double>& tolerances,
                  const std::vector<double>& percentiles, bool edge, const std::vector<uintptr_t>& outs, int threads) {
          const int64_t organs = static_cast<int64_t>(organ_starts.size()) - 1;
          if (organs < 0 || organ_starts.back() != static_cast<int64_t>(organ_labels.size())) {
            throw std::invalid_argument("organ_starts: expected where each organ's labels begin, and their number");
          }
          for (const int64_t label : organ_labels) {
            if (label < 0 || label >= num_labels) throw std::invalid_argument("organ_labels: expected labels that are counted");
          }
          require_length("areas", areas.size(), 256);
          require_length("outs", outs.size(), 7);
          require_length("spacing", spacing.size(), 3);
          const int64_t per_organ = organs > 0 ? static_cast<int64_t>(tolerances.size()) / organs : 0;
          const SurfaceArgs args = {labels_of(target),
                                    labels_of(pred),
                                    num_labels,
                                    overlap_pointer<const int64_t>(counts),
                                    overlap_pointer<const int64_t>(box_target),
                                    overlap_pointer<const int64_t>(box_pred),
                                    organ_labels.data(),
                                    organ_starts.data(),
                                    organs,
                                    {spacing[0], spacing[1], spacing[2]},
                                    areas.data(),
                                    tolerances.data(),
                                    per_organ,
                                    percentiles.data(),
                                    static_cast<int64_t>(percentiles.size()),
                                    edge,
                                    overlap_pointer<int64_t>(outs[0]),
                                    overlap_pointer<int64_t>(outs[1]),
                                    overlap_pointer<double>(outs[2]),
                                    overlap_pointer<double>(outs[3]),
                                    overlap_pointer<double>(outs[4]),
                                    overlap_pointer<double>(outs[5]),
                                    overlap_pointer<double>(outs[6]),
                                    threads};
          require_same_shape(args.target, args.pred);
          if (args.target.ndim < 2 || args.target.ndim > 3) throw std::invalid_argument("target: expected 2 or 3 axes");
          pybind11::gil_scoped_release unlocked;
          (*kernels)->metrics(args);
        });
  m.def("surfels", [kernels](const PyLabels& mask, const std::vector<int64_t>& box, const std::vector<double>& areas, bool edge,
                             uintptr_t at, uintptr_t codes, uintptr_t area) {
    const SurfelArgs args = {labels_of(mask),
                             box.data(),
                             areas.data(),
                             edge,
                             overlap_pointer<int64_t>(at),
                             overlap_pointer<uint8_t>(codes),
                             overlap_pointer<double>(area)};
    require_length("areas", areas.size(), 256);
    require_length("box", box.size(), 2 * static_cast<size_t>(args.mask.ndim));
    if (args.mask.ndim < 2 || args.mask.ndim > 3) throw std::invalid_argument("mask: expected 2 or 3 axes");
    pybind11::gil_scoped_release unlocked;
    return (*kernels)->surfels(args);
  });
}

// features and out are row-major; index is 0 or the address of int32 [batch, 3, voxels].
inline void bind_edt(pybind11::module_& m, const EdtKernels* const& table) {
  const EdtKernels* const* kernels = &table;
  m.def("edt", [kernels](uintptr_t features, int64_t batch, const std::vector<int64_t>& sizes, const std::vector<double>& spacing,
                         bool wide, bool squared, uintptr_t out, uintptr_t index, int threads) {
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
                          threads};
    pybind11::gil_scoped_release unlocked;
    (*kernels)->edt(args);
  });
}

}  // namespace tenfold
