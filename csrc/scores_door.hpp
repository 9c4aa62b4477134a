// The CPU door of the kernels of sample scores, included by cpu_module.cpp; scores_cuda_door.hpp has the same names and arguments for CUDA.
#pragma once

#include "args.hpp"
#include "scores/scores_api.hpp"

namespace tenfold {

// (address, rows, columns, stride of rows, dtype)
using PyMatrix = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int>;

inline Matrix matrix_of(const PyMatrix& from) {
  const auto& [address, rows, columns, stride, dtype] = from;
  return {reinterpret_cast<const void*>(address), rows, columns, stride, dtype};
}

template <class T>
T* score_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// el2n, grand, loss, entropy, margin, least_confidence, label_margin, correct, histogram; 0 where not wanted
inline ScoreArgs score_args(const PyMatrix& logits, uintptr_t labels, uintptr_t norms, const std::vector<uintptr_t>& out, uintptr_t bad) {
  require_length("out", out.size(), 9);
  if (std::get<2>(logits) < 1) throw std::invalid_argument("logits: expected at least one class");
  return {matrix_of(logits),
          score_pointer<const int64_t>(labels),
          score_pointer<const float>(norms),
          score_pointer<float>(out[0]),
          score_pointer<float>(out[1]),
          score_pointer<float>(out[2]),
          score_pointer<float>(out[3]),
          score_pointer<float>(out[4]),
          score_pointer<float>(out[5]),
          score_pointer<float>(out[6]),
          score_pointer<uint8_t>(out[7]),
          score_pointer<int64_t>(out[8]),
          score_pointer<int64_t>(bad),
          0};
}

inline CrossEntropyArgs cross_entropy_args(const PyMatrix& logits, uintptr_t labels, uintptr_t loss, uintptr_t top, uintptr_t log_total,
                                           uintptr_t grad, uintptr_t out, int64_t out_stride) {
  if (std::get<2>(logits) < 1) throw std::invalid_argument("logits: expected at least one class");
  return {matrix_of(logits),
          score_pointer<const int64_t>(labels),
          score_pointer<float>(loss),
          score_pointer<float>(top),
          score_pointer<float>(log_total),
          score_pointer<const float>(grad),
          score_pointer<void>(out),
          out_stride,
          0};
}

// State: last, forget, correct, aum, el2n, ever, seen.
inline DynamicsArgs dynamics_args(int64_t rows, uintptr_t indices, uintptr_t correct, uintptr_t label_margin, uintptr_t el2n,
                                  const std::vector<uintptr_t>& state) {
  require_length("state", state.size(), 7);
  return {rows,
          score_pointer<const int64_t>(indices),
          score_pointer<const uint8_t>(correct),
          score_pointer<const float>(label_margin),
          score_pointer<const float>(el2n),
          score_pointer<uint8_t>(state[0]),
          score_pointer<int32_t>(state[1]),
          score_pointer<int32_t>(state[2]),
          score_pointer<float>(state[3]),
          score_pointer<float>(state[4]),
          score_pointer<uint8_t>(state[5]),
          score_pointer<int32_t>(state[6])};
}

inline VoteArgs vote_args(const PyMatrix& logits, uintptr_t targets, uintptr_t histogram, uintptr_t matrix, uintptr_t bad) {
  if (std::get<2>(logits) < 1) throw std::invalid_argument("logits: expected at least one class");
  return {matrix_of(logits),
          score_pointer<const int64_t>(targets),
          score_pointer<int64_t>(histogram),
          score_pointer<int64_t>(matrix),
          score_pointer<int64_t>(bad),
          0};
}

inline void bind_scores(pybind11::module_& m, const ScoreKernels* const& scores, const MedianKernels* const& medians,
                        const FgradKernels* const& fgrad) {
  namespace py = pybind11;
  m.def("score_rows", [&scores](const PyMatrix& logits, uintptr_t labels, uintptr_t norms, const std::vector<uintptr_t>& out, uintptr_t bad,
                                int threads) {
    ScoreArgs a = score_args(logits, labels, norms, out, bad);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    scores->score(a);
  });
  m.def("cross_entropy_rows", [&scores](const PyMatrix& logits, uintptr_t labels, uintptr_t loss, uintptr_t top, uintptr_t log_total,
                                        uintptr_t grad, uintptr_t out, int64_t out_stride, int threads) {
    CrossEntropyArgs a = cross_entropy_args(logits, labels, loss, top, log_total, grad, out, out_stride);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    (a.out == nullptr ? scores->cross_entropy : scores->cross_entropy_backward)(a);
  });
  m.def("dynamics_scatter", [&scores](int64_t rows, uintptr_t indices, uintptr_t correct, uintptr_t label_margin, uintptr_t el2n,
                                      const std::vector<uintptr_t>& state, int) {
    const DynamicsArgs a = dynamics_args(rows, indices, correct, label_margin, el2n, state);
    py::gil_scoped_release unlocked;
    scores->dynamics(a);
  });
  m.def("class_vote",
        [&scores](const PyMatrix& logits, uintptr_t targets, uintptr_t histogram, uintptr_t matrix, uintptr_t bad, int threads) {
          VoteArgs a = vote_args(logits, targets, histogram, matrix, bad);
          a.threads = threads;
          py::gil_scoped_release unlocked;
          scores->vote(a);
        });
  m.def("class_mask", [&scores](uintptr_t labels, int bytes, bool is_signed, int64_t rows, uintptr_t keep, int64_t classes,
                                uintptr_t counts, uintptr_t bad, uintptr_t out, int threads) {
    const MaskArgsOfClasses a = {score_pointer<const void>(labels),
                                 bytes,
                                 is_signed,
                                 rows,
                                 score_pointer<const uint8_t>(keep),
                                 classes,
                                 score_pointer<int64_t>(counts),
                                 score_pointer<int64_t>(bad),
                                 score_pointer<int64_t>(out),
                                 threads};
    py::gil_scoped_release unlocked;
    scores->mask(a);
  });
  m.attr("class_mask_piece") = kMaskPiece;
  m.def("class_medians",
        [&medians](const PyMatrix& x, uintptr_t labels, int64_t classes, uintptr_t out, uintptr_t distances, uintptr_t bad, int threads) {
          const MedianArgs a = {matrix_of(x),
                                score_pointer<const int64_t>(labels),
                                classes,
                                score_pointer<float>(out),
                                score_pointer<float>(distances),
                                score_pointer<uint8_t>(bad),
                                threads};
          py::gil_scoped_release unlocked;
          (a.distances == nullptr ? medians->medians : medians->distances)(a);
        });
  m.def("omp_factored",
        [&fgrad](const PyMatrix& errors, const PyMatrix& hidden, bool bias, int64_t k, double lam, double target_squared, uintptr_t q,
                 uintptr_t columns, uintptr_t c, uintptr_t indices, uintptr_t gram, uintptr_t chol, uintptr_t residuals, int threads) {
          if (k > std::get<1>(errors)) throw std::invalid_argument("k: expected at most as many picks as rows");
          const OmpArgs a = {matrix_of(errors),
                             matrix_of(hidden),
                             bias,
                             k,
                             lam,
                             target_squared,
                             score_pointer<const double>(q),
                             score_pointer<double>(columns),
                             score_pointer<double>(c),
                             score_pointer<int64_t>(indices),
                             score_pointer<double>(gram),
                             score_pointer<double>(chol),
                             score_pointer<double>(residuals),
                             threads};
          py::gil_scoped_release unlocked;
          fgrad->omp(a);
        });
}

}  // namespace tenfold
