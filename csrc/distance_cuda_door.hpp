// The CUDA door of the distance kernels, included by cuda_module.cpp.
#pragma once

#include "args.hpp"
#include "distance/distance_cuda.hpp"

namespace tenfold {

// (x, n, d, dtype, products, row norms, errors, others, norms, m, row scale, other scale)
using PyMeetRows =
    std::tuple<uintptr_t, int64_t, int64_t, int, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t>;

inline tf_cuda::MeetRows meet_rows(const PyMeetRows& from) {
  const auto& [x, n, d, dtype, products, row_norms, errors, others, norms, m, row_scale, other_scale] = from;
  return {reinterpret_cast<const void*>(x),
          n,
          d,
          dtype,
          reinterpret_cast<const float*>(products),
          reinterpret_cast<const float*>(row_norms),
          reinterpret_cast<const float*>(errors),
          reinterpret_cast<const float*>(others),
          reinterpret_cast<const float*>(norms),
          m,
          reinterpret_cast<const double*>(row_scale),
          reinterpret_cast<const double*>(other_scale)};
}

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_distance_cuda(pybind11::module_& m, OnDevice on_device) {
  const auto handle = [](uintptr_t stream) { return reinterpret_cast<void*>(stream); };
  m.def("distance_look", [=](const PyMeetRows& rows, int k, uintptr_t index, uintptr_t nearest, uintptr_t stream) {
    const tf_cuda::LookLaunch args = {meet_rows(rows), k, reinterpret_cast<int32_t*>(index), reinterpret_cast<float*>(nearest)};
    if (k < 1 || k > 32) throw std::invalid_argument("k: expected 1 to 32");
    if (args.rows.n == 0) return;
    on_device("distance_look", index, [&] { return tf_cuda::distance_look(args, handle(stream)); });
  });
  m.def("distance_cover", [=](const PyMeetRows& rows, uintptr_t numbers, uintptr_t distance, uintptr_t owner, uintptr_t out,
                              int64_t out_pitch, uintptr_t stream) {
    const tf_cuda::CoverLaunch args = {meet_rows(rows),
                                       reinterpret_cast<const int64_t*>(numbers),
                                       reinterpret_cast<float*>(distance),
                                       reinterpret_cast<int32_t*>(owner),
                                       reinterpret_cast<float*>(out),
                                       out_pitch};
    if (args.rows.n == 0) return;
    on_device("distance_cover", distance, [&] { return tf_cuda::distance_cover(args, handle(stream)); });
  });
  m.def("distance_pool", [=](uintptr_t x, int64_t size, int64_t d, int dtype, uintptr_t scale, uintptr_t out, uintptr_t stream) {
    const tf_cuda::PoolLaunch args = {reinterpret_cast<const void*>(x), size, d, dtype, reinterpret_cast<const double*>(scale),
                                      reinterpret_cast<float*>(out)};
    on_device("distance_pool", out, [&] { return tf_cuda::distance_pool(args, handle(stream)); });
  });
  m.def("distance_choose", [=](uintptr_t between, uintptr_t distance, uintptr_t rows, int64_t size, int most, bool complete,
                               uintptr_t chosen, uintptr_t value, uintptr_t count, uintptr_t stream) {
    const tf_cuda::ChooseLaunch args = {reinterpret_cast<const float*>(between),
                                        reinterpret_cast<const float*>(distance),
                                        reinterpret_cast<const int64_t*>(rows),
                                        size,
                                        most,
                                        complete,
                                        reinterpret_cast<int64_t*>(chosen),
                                        reinterpret_cast<float*>(value),
                                        reinterpret_cast<int32_t*>(count)};
    on_device("distance_choose", chosen, [&] { return tf_cuda::distance_choose(args, handle(stream)); });
  });
  m.def("distance_sums",
        [=](uintptr_t x, int64_t d, int64_t clusters, int dtype, uintptr_t order, uintptr_t starts, uintptr_t sums, uintptr_t stream) {
          const tf_cuda::SumLaunch args = {reinterpret_cast<const void*>(x),
                                           d,
                                           clusters,
                                           dtype,
                                           reinterpret_cast<const int64_t*>(order),
                                           reinterpret_cast<const int64_t*>(starts),
                                           reinterpret_cast<double*>(sums)};
          if (clusters == 0) return;
          on_device("distance_sums", sums, [&] { return tf_cuda::distance_sums(args, handle(stream)); });
        });
}

}  // namespace tenfold
