// The CUDA door of the coverage kernels, included by cuda_module.cpp.
#pragma once

#include "args.hpp"
#include "coverage/coverage_cuda.hpp"

namespace tenfold {

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_coverage_cuda(pybind11::module_& m, OnDevice on_device) {
  m.attr("cover_tile_rows") = tf_cuda::kCoverTileRows;
  m.attr("cover_piece_rows") = tf_cuda::kCoverPieceRows;
  m.def("cover_norms", [on_device](uintptr_t z, int64_t n, int64_t d, uintptr_t norms, uintptr_t stream) {
    if (n == 0) return;
    on_device("cover_norms", z, [&] {
      return tf_cuda::cover_norms(reinterpret_cast<const float*>(z), n, d, reinterpret_cast<float*>(norms),
                                  reinterpret_cast<void*>(stream));
    });
  });
  // task: "gains", "values" or "farthest"
  m.def("cover_tiles",
        [on_device](const std::string& task, uintptr_t z, uintptr_t norms, int64_t rows, int64_t d, int kind, float gamma, uintptr_t which,
                    int64_t count, uintptr_t current, uintptr_t weights, uintptr_t partial, uintptr_t values, uintptr_t stream) {
          if (count == 0 || rows == 0) return;
          const tf_cuda::CoverTiles args = {reinterpret_cast<const float*>(z),
                                            reinterpret_cast<const float*>(norms),
                                            rows,
                                            d,
                                            kind,
                                            gamma,
                                            reinterpret_cast<const int64_t*>(which),
                                            count,
                                            reinterpret_cast<const float*>(current),
                                            reinterpret_cast<const float*>(weights),
                                            reinterpret_cast<double*>(partial),
                                            reinterpret_cast<float*>(values)};
          const auto run = task == "gains" ? tf_cuda::cover_gains : task == "values" ? tf_cuda::cover_values : tf_cuda::cover_farthest;
          on_device("cover_tiles", z, [&] { return run(args, reinterpret_cast<void*>(stream)); });
        });
  m.def("cover_join", [on_device](uintptr_t partial, int64_t pieces, int64_t count, uintptr_t gains, uintptr_t stream) {
    if (count == 0) return;
    const tf_cuda::CoverJoin args = {reinterpret_cast<const double*>(partial), pieces, count, reinterpret_cast<double*>(gains)};
    on_device("cover_join", gains, [&] { return tf_cuda::cover_join(args, reinterpret_cast<void*>(stream)); });
  });
  m.def("cover_take", [on_device](uintptr_t values, int64_t rows, uintptr_t current, uintptr_t owner, int32_t number, uintptr_t stream) {
    if (rows == 0) return;
    const tf_cuda::CoverTake args = {reinterpret_cast<const float*>(values), rows, reinterpret_cast<float*>(current),
                                     reinterpret_cast<int32_t*>(owner), number};
    on_device("cover_take", values, [&] { return tf_cuda::cover_take(args, reinterpret_cast<void*>(stream)); });
  });
  m.def("cover_matrix_gains", [on_device](uintptr_t matrix, int dtype, int64_t rows, uintptr_t which, int64_t count, uintptr_t current,
                                          uintptr_t weights, uintptr_t partial, uintptr_t stream) {
    if (count == 0 || rows == 0) return;
    const tf_cuda::CoverMatrix args = {reinterpret_cast<const void*>(matrix),
                                       dtype,
                                       rows,
                                       reinterpret_cast<const int64_t*>(which),
                                       count,
                                       reinterpret_cast<const float*>(current),
                                       reinterpret_cast<const float*>(weights),
                                       reinterpret_cast<double*>(partial)};
    on_device("cover_matrix_gains", matrix, [&] { return tf_cuda::cover_matrix_gains(args, reinterpret_cast<void*>(stream)); });
  });
  m.def("cover_lists_gains", [on_device](uintptr_t indptr, uintptr_t indices, uintptr_t values, uintptr_t which, int64_t count,
                                         uintptr_t current, uintptr_t weights, uintptr_t gains, uintptr_t stream) {
    if (count == 0) return;
    const tf_cuda::CoverLists args = {reinterpret_cast<const int64_t*>(indptr),
                                      reinterpret_cast<const int64_t*>(indices),
                                      reinterpret_cast<const float*>(values),
                                      reinterpret_cast<const int64_t*>(which),
                                      count,
                                      reinterpret_cast<const float*>(current),
                                      reinterpret_cast<const float*>(weights),
                                      reinterpret_cast<double*>(gains)};
    on_device("cover_lists_gains", indptr, [&] { return tf_cuda::cover_lists_gains(args, reinterpret_cast<void*>(stream)); });
  });
}

}  // namespace tenfold
