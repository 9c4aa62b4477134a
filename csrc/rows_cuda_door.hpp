// The CUDA door of the row kernels, included by cuda_module.cpp; names and arguments as in rows_door.hpp, a stream for the threads.
#pragma once

#include "logprob/rows_cuda.hpp"
#include "rows_door.hpp"

namespace tenfold {

// on_device(name, address, launch) runs `launch` on the device that owns the address and raises what it returns.
template <class OnDevice>
struct CudaRowCalls {
  OnDevice on_device;
  template <class Launch>
  void run(const char* name, const Rows& rows, const Launch& launch) const {
    if (rows.rows > 0) on_device(name, reinterpret_cast<uintptr_t>(rows.data), launch);
  }
  void forward(const RowForwardArgs& a, uintptr_t stream) const {
    run("row_forward", a.logits, [&] { return tf_cuda::row_forward(a, reinterpret_cast<void*>(stream)); });
  }
  void softmax(const RowSoftmaxArgs& a, uintptr_t stream) const {
    run("row_softmax", a.logits, [&] { return tf_cuda::row_softmax(a, reinterpret_cast<void*>(stream)); });
  }
  void sample(const RowSampleArgs& a, uintptr_t stream) const {
    run("row_sample", a.logits, [&] { return tf_cuda::row_sample(a, reinterpret_cast<void*>(stream)); });
  }
  void ceu(const RowCeuArgs& a, uintptr_t stream) const {
    run("row_ceu", a.logits, [&] { return tf_cuda::row_ceu(a, reinterpret_cast<void*>(stream)); });
  }
  void divergence(const RowDivergenceArgs& a, bool backward, uintptr_t stream) const {
    run("row_divergence", a.logits, [&] { return tf_cuda::row_divergence(a, backward, reinterpret_cast<void*>(stream)); });
  }
};

template <class OnDevice>
void bind_rows_cuda(pybind11::module_& m, OnDevice on_device) {
  bind_row_kernels<uintptr_t>(m, CudaRowCalls<OnDevice>{on_device});
}

}  // namespace tenfold
