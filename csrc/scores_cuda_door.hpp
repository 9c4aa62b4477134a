// The CUDA door of the kernels of sample scores, included by cuda_module.cpp; names and arguments as in scores_door.hpp, a stream for the
// threads.
#pragma once

#include "scores/scores_cuda.hpp"
#include "scores_door.hpp"

namespace tenfold {

// on_device(name, address, launch) runs `launch` on the device that owns the address and raises what it returns.
template <class OnDevice>
void bind_scores_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("score_rows", [on_device](const PyMatrix& logits, uintptr_t labels, uintptr_t norms, const std::vector<uintptr_t>& out,
                                  uintptr_t bad, uintptr_t stream) {
    const ScoreArgs a = score_args(logits, labels, norms, out, bad);
    if (a.logits.rows == 0) return;
    on_device("score_rows", std::get<0>(logits), [&] { return tf_cuda::score_rows(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("cross_entropy_rows", [on_device](const PyMatrix& logits, uintptr_t labels, uintptr_t loss, uintptr_t top, uintptr_t log_total,
                                          uintptr_t grad, uintptr_t out, int64_t out_stride, uintptr_t stream) {
    const CrossEntropyArgs a = cross_entropy_args(logits, labels, loss, top, log_total, grad, out, out_stride);
    if (a.logits.rows == 0) return;
    on_device("cross_entropy_rows", std::get<0>(logits), [&] {
      void* const on = reinterpret_cast<void*>(stream);
      return a.out == nullptr ? tf_cuda::cross_entropy_rows(a, on) : tf_cuda::cross_entropy_rows_backward(a, on);
    });
  });
  m.def("dynamics_scatter", [on_device](int64_t rows, uintptr_t indices, uintptr_t correct, uintptr_t label_margin, uintptr_t el2n,
                                        const std::vector<uintptr_t>& state, uintptr_t stream) {
    const DynamicsArgs a = dynamics_args(rows, indices, correct, label_margin, el2n, state);
    if (rows == 0) return;
    on_device("dynamics_scatter", indices, [&] { return tf_cuda::dynamics_scatter(a, reinterpret_cast<void*>(stream)); });
  });
  m.def("class_vote",
        [on_device](const PyMatrix& logits, uintptr_t targets, uintptr_t histogram, uintptr_t matrix, uintptr_t bad, uintptr_t stream) {
          const VoteArgs a = vote_args(logits, targets, histogram, matrix, bad);
          if (a.logits.rows == 0) return;
          on_device("class_vote", std::get<0>(logits), [&] { return tf_cuda::class_vote(a, reinterpret_cast<void*>(stream)); });
        });
  m.def("fgrad_column",
        [on_device](const PyMatrix& errors, const PyMatrix& hidden, uintptr_t pick, double bias, uintptr_t out, uintptr_t stream) {
          const tf_cuda::ColumnArgs a = {matrix_of(errors), matrix_of(hidden), score_pointer<const int64_t>(pick), bias,
                                         score_pointer<double>(out)};
          if (a.errors.rows == 0) return;
          on_device("fgrad_column", out, [&] { return tf_cuda::fgrad_column(a, reinterpret_cast<void*>(stream)); });
        });
}

}  // namespace tenfold
