// The CPU door of the volume kernels, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "volume/volume_api.hpp"

#include <array>

namespace tenfold {

using PySize = std::array<int64_t, 3>;
static_assert(sizeof(Component) == 8 * sizeof(int64_t), "Python reads components as rows of eight integers");

inline ComponentArgs component_args(uintptr_t volume, int item_bytes, const PySize& size, int connectivity, bool multilabel) {
  return {reinterpret_cast<const void*>(volume), item_bytes, {size[0], size[1], size[2]}, connectivity, multilabel};
}

// `volumes` and `components` are the module's pointers to the kernels of the instruction set in use.
inline void bind_volume(pybind11::module_& m, const VolumeKernels* const& volumes, const ComponentKernels* const& components) {
  m.def("resample_argmax", [&volumes](uintptr_t logits, int dtype, int64_t classes, const PySize& in, const PySize& stride,
                                      const PySize& out, bool align_corners, uintptr_t labels, int label_bytes, int threads) {
    const ResampleArgs a = {reinterpret_cast<const void*>(logits),
                            dtype,
                            classes,
                            {in[0], in[1], in[2]},
                            {stride[0], stride[1], stride[2]},
                            {out[0], out[1], out[2]},
                            align_corners,
                            reinterpret_cast<void*>(labels),
                            label_bytes,
                            threads};
    pybind11::gil_scoped_release unlocked;
    volumes->resample_argmax(a);
  });
  m.def("components",
        [&components](uintptr_t volume, int item_bytes, const PySize& size, int connectivity, bool multilabel, uintptr_t labels) {
          std::vector<Component> found;
          const ComponentSink sink = {&found, [](void* context, int64_t count) {
                                        auto* room = static_cast<std::vector<Component>*>(context);
                                        room->resize(static_cast<size_t>(count));
                                        return room->data();
                                      }};
          {
            pybind11::gil_scoped_release unlocked;
            components->label(component_args(volume, item_bytes, size, connectivity, multilabel), reinterpret_cast<int32_t*>(labels), sink);
          }
          return pybind11::bytes(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(Component));
        });
  m.def("keep_largest", [&components](uintptr_t volume, int item_bytes, const PySize& size, int connectivity, bool multilabel,
                                      const std::vector<int64_t>& chosen, bool all, bool largest_only, int64_t least_voxels) {
    pybind11::gil_scoped_release unlocked;
    return components->keep_largest(component_args(volume, item_bytes, size, connectivity, multilabel), all ? nullptr : chosen.data(),
                                    static_cast<int64_t>(chosen.size()), largest_only, least_voxels);
  });
  m.def("fill_holes", [&components](uintptr_t volume, int item_bytes, const PySize& size, const std::vector<int64_t>& chosen, bool all) {
    pybind11::gil_scoped_release unlocked;
    return components->fill_holes(component_args(volume, item_bytes, size, 6, true), all ? nullptr : chosen.data(),
                                  static_cast<int64_t>(chosen.size()));
  });
}

}  // namespace tenfold
