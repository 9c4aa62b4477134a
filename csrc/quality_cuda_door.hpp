// The CUDA door of the picture-quality kernels, included by cuda_module.cpp.
#pragma once

#include "quality/quality_cuda.hpp"
#include "quality_door.hpp"

namespace tenfold {

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_quality_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("image_similarity_parts", [](const PyQualityShape& shape, const PyQualityOptions& options) {
    return tf_cuda::quality_tiles(quality_args({}, shape, options, {}, 0));
  });
  m.def("image_squared_error_parts", [](const PyQualityShape& shape) { return tf_cuda::quality_pieces(quality_args({}, shape, 0)); });
  m.def("image_similarity", [on_device](const PyQualityPair& pictures, const PyQualityShape& shape, const PyQualityOptions& options,
                                        const PyQualityPair& pooled, uintptr_t means, uintptr_t stream) {
    QualityArgs a = quality_args(pictures, shape, options, pooled, 0);
    a.means = reinterpret_cast<double*>(means);
    on_device("image_similarity", means, [&] { return tf_cuda::image_similarity(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("image_similarity_backward", [on_device](const PyQualityPair& pictures, const PyQualityShape& shape,
                                                 const PyQualityOptions& options, const PyQualityPair& pooled, uintptr_t grad,
                                                 const PyQualityPair& out, uintptr_t stream) {
    QualityArgs a = quality_args(pictures, shape, options, pooled, 0);
    set_gradients(a, grad, out);
    on_device("image_similarity_backward", grad, [&] { return tf_cuda::image_similarity_backward(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("image_squared_error", [on_device](const PyQualityPair& pictures, const PyQualityShape& shape, uintptr_t means, uintptr_t stream) {
    QualityArgs a = quality_args(pictures, shape, 0);
    a.means = reinterpret_cast<double*>(means);
    on_device("image_squared_error", means, [&] { return tf_cuda::image_squared_error(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("image_squared_error_backward", [on_device](const PyQualityPair& pictures, const PyQualityShape& shape, uintptr_t grad,
                                                    const PyQualityPair& out, uintptr_t stream) {
    QualityArgs a = quality_args(pictures, shape, 0);
    set_gradients(a, grad, out);
    on_device("image_squared_error_backward", grad,
              [&] { return tf_cuda::image_squared_error_backward(a, reinterpret_cast<void*>(stream)); });
  });
}

}  // namespace tenfold
