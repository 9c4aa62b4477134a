// The CPU door of the row kernels, included by cpu_module.cpp; rows_cuda_door.hpp has the same names and arguments for CUDA.
#pragma once

#include "args.hpp"
#include "logprob/rows_api.hpp"

namespace tenfold {

// (address, rows, inner, outer stride, inner stride)
using PyRows = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;
// (vocabulary, dtype, softcap, inverse temperature)
using PyRowShape = std::tuple<int64_t, int, float, float>;

inline Rows rows_of(const PyRows& from) {
  const auto& [address, rows, inner, outer_stride, inner_stride] = from;
  if (inner < 1) throw std::invalid_argument("rows: expected at least one row per group");
  return {reinterpret_cast<void*>(address), rows, inner, outer_stride, inner_stride};
}

inline RowShape shape_of(const PyRowShape& from) {
  const auto& [vocabulary, dtype, softcap, inverse_temperature] = from;
  if (vocabulary < 1) throw std::invalid_argument("vocabulary: expected at least one token");
  return {vocabulary, dtype, softcap, inverse_temperature};
}

template <class T>
T* row_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Binds one function per kernel; call(name, address, args, kernel) runs `kernel` and may use `last`, a thread count or a stream.
template <class Last, class Call>
void bind_row_kernels(pybind11::module_& m, const Call& call) {
  m.def("row_forward", [call](const PyRows& logits, const PyRowShape& shape, uintptr_t targets, uintptr_t logp, uintptr_t lse,
                              uintptr_t argmax, uintptr_t mean_logit, uintptr_t mean_logp, uintptr_t mean_logp2, Last last) {
    call.forward(
        {rows_of(logits), shape_of(shape), row_pointer<const int64_t>(targets), row_pointer<double>(logp), row_pointer<double>(lse),
         row_pointer<int64_t>(argmax), row_pointer<double>(mean_logit), row_pointer<double>(mean_logp), row_pointer<double>(mean_logp2), 0},
        last);
  });
  m.def("row_softmax", [call](const PyRows& out, const PyRows& logits, const PyRowShape& shape, uintptr_t targets, uintptr_t lse,
                              uintptr_t coef, uintptr_t at_target, Last last) {
    call.softmax({rows_of(out), rows_of(logits), shape_of(shape), row_pointer<const int64_t>(targets), row_pointer<const double>(lse),
                  row_pointer<const double>(coef), row_pointer<const double>(at_target), 0},
                 last);
  });
  m.def("row_sample", [call](const PyRows& logits, const PyRowShape& shape, uintptr_t uniforms, uintptr_t tokens, uintptr_t logp,
                             uintptr_t lse, Last last) {
    call.sample({rows_of(logits), shape_of(shape), row_pointer<const double>(uniforms), row_pointer<int64_t>(tokens),
                 row_pointer<double>(logp), row_pointer<double>(lse), 0},
                last);
  });
  m.def("row_ceu", [call](const PyRows& logits, const PyRowShape& shape, uintptr_t targets, uintptr_t loss, uintptr_t rest, uintptr_t logp,
                          Last last) {
    call.ceu({rows_of(logits), shape_of(shape), row_pointer<const int64_t>(targets), row_pointer<double>(loss), row_pointer<double>(rest),
              row_pointer<double>(logp), 0},
             last);
  });
  const auto divergence = [call](bool backward, const PyRows& out, const PyRows& logits, const PyRows& ref_logits, int64_t vocabulary,
                                 uintptr_t targets, float beta, int kind, uintptr_t loss, uintptr_t lse, uintptr_t ref_lse, uintptr_t grad,
                                 Last last) {
    call.divergence({rows_of(out), rows_of(logits), rows_of(ref_logits), vocabulary, row_pointer<const int64_t>(targets), beta, kind,
                     row_pointer<double>(loss), row_pointer<double>(lse), row_pointer<double>(ref_lse), row_pointer<const double>(grad), 0},
                    backward, last);
  };
  m.def("row_divergence", divergence);
}

// Calls the table of the instruction set in use without the GIL.
struct CpuRowCalls {
  const RowKernels* const* table;
  template <class Args>
  static Args with_threads(Args args, int threads) {
    args.threads = threads;
    return args;
  }
  void forward(const RowForwardArgs& a, int threads) const {
    pybind11::gil_scoped_release unlocked;
    (*table)->forward(with_threads(a, threads));
  }
  void softmax(const RowSoftmaxArgs& a, int threads) const {
    pybind11::gil_scoped_release unlocked;
    (*table)->softmax(with_threads(a, threads));
  }
  void sample(const RowSampleArgs& a, int threads) const {
    pybind11::gil_scoped_release unlocked;
    (*table)->sample(with_threads(a, threads));
  }
  void ceu(const RowCeuArgs& a, int threads) const {
    pybind11::gil_scoped_release unlocked;
    (*table)->ceu(with_threads(a, threads));
  }
  void divergence(const RowDivergenceArgs& a, bool backward, int threads) const {
    pybind11::gil_scoped_release unlocked;
    (backward ? (*table)->divergence_backward : (*table)->divergence)(with_threads(a, threads));
  }
};

inline void bind_rows(pybind11::module_& m, const RowKernels* const& table) { bind_row_kernels<int>(m, CpuRowCalls{&table}); }

}  // namespace tenfold
