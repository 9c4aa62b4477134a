// The CPU door of the picture-quality kernels, included by cpu_module.cpp; quality_cuda_door.hpp has the same names for CUDA.
#pragma once

#include "args.hpp"
#include "quality/quality_api.hpp"

namespace tenfold {

// (address, dtype, strides of pictures, channels, rows, columns)
using PyQualityImage = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t, int64_t>;
// (pictures, channels, height, width, whether arithmetic is double)
using PyQualityShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;
// (weights of a window along one axis, unbiased, c1, c2, scale, contrast)
using PyQualityOptions = std::tuple<std::vector<double>, double, double, double, double, bool>;
// x and y, or what belongs to them
using PyQualityPair = std::pair<PyQualityImage, PyQualityImage>;

inline QualityImage quality_image(const PyQualityImage& from) {
  const auto& [address, dtype, batch, channel, row, column] = from;
  return {reinterpret_cast<void*>(address), dtype, batch, channel, row, column};
}

inline QualityArgs quality_args(const PyQualityPair& pictures, const PyQualityShape& shape, int threads) {
  const auto& [batches, channels, height, width, wide] = shape;
  if (batches < 0 || channels < 1 || height < 1 || width < 1) throw std::invalid_argument("shape: expected pictures with pixels");
  QualityArgs a = {};
  a.x = quality_image(pictures.first);
  a.y = quality_image(pictures.second);
  a.batches = batches;
  a.channels = channels;
  a.height = height;
  a.width = width;
  a.wide = wide;
  a.threads = threads;
  return a;
}

inline QualityArgs quality_args(const PyQualityPair& pictures, const PyQualityShape& shape, const PyQualityOptions& options,
                                const PyQualityPair& pooled, int threads) {
  QualityArgs a = quality_args(pictures, shape, threads);
  const auto& [weights, unbiased, c1, c2, scale, contrast] = options;
  if (weights.size() != 7 && weights.size() != kMostTaps) throw std::invalid_argument("weights: expected 7 or 11 entries");
  a.taps = static_cast<int>(weights.size());
  if (a.height < a.taps || a.width < a.taps) throw std::invalid_argument("shape: expected pictures as large as a window");
  for (size_t i = 0; i < weights.size(); ++i) a.weights[i] = weights[i];
  a.unbiased = unbiased;
  a.c1 = c1;
  a.c2 = c2;
  a.scale = scale;
  a.contrast = contrast;
  a.px = quality_image(pooled.first);
  a.py = quality_image(pooled.second);
  return a;
}

inline void set_gradients(QualityArgs& a, uintptr_t grad, const PyQualityPair& out) {
  a.grad = reinterpret_cast<const double*>(grad);
  a.dx = quality_image(out.first);
  a.dy = quality_image(out.second);
}

// `table` is the module's pointer to the kernels of the instruction set in use.
inline void bind_quality(pybind11::module_& m, const QualityKernels* const& table) {
  m.def("image_similarity", [&table](const PyQualityPair& pictures, const PyQualityShape& shape, const PyQualityOptions& options,
                                     const PyQualityPair& pooled, uintptr_t means, int threads) {
    QualityArgs a = quality_args(pictures, shape, options, pooled, threads);
    a.means = reinterpret_cast<double*>(means);
    pybind11::gil_scoped_release unlocked;
    table->similarity(a);
  });
  m.def("image_similarity_backward", [&table](const PyQualityPair& pictures, const PyQualityShape& shape, const PyQualityOptions& options,
                                              const PyQualityPair& pooled, uintptr_t grad, const PyQualityPair& out, int threads) {
    QualityArgs a = quality_args(pictures, shape, options, pooled, threads);
    set_gradients(a, grad, out);
    pybind11::gil_scoped_release unlocked;
    table->similarity_backward(a);
  });
  m.def("image_squared_error", [&table](const PyQualityPair& pictures, const PyQualityShape& shape, uintptr_t means, int threads) {
    QualityArgs a = quality_args(pictures, shape, threads);
    a.means = reinterpret_cast<double*>(means);
    pybind11::gil_scoped_release unlocked;
    table->squared_error(a);
  });
  m.def("image_squared_error_backward",
        [&table](const PyQualityPair& pictures, const PyQualityShape& shape, uintptr_t grad, const PyQualityPair& out, int threads) {
          QualityArgs a = quality_args(pictures, shape, threads);
          set_gradients(a, grad, out);
          pybind11::gil_scoped_release unlocked;
          table->squared_error_backward(a);
        });
}

}  // namespace tenfold
