// What csrc/rows_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no allocation.
// Returns null, or what CUDA says about the launch.
#pragma once

#include "rows_api.hpp"

namespace tf_cuda {

// The blocks of a row that `row_sample` keeps in shared memory: a vocabulary of 2,097,152.
constexpr int64_t kMostBlocks = 1024;

const char* row_forward(const tenfold::RowForwardArgs& a, void* stream);
const char* row_softmax(const tenfold::RowSoftmaxArgs& a, void* stream);
const char* row_sample(const tenfold::RowSampleArgs& a, void* stream);
const char* row_ceu(const tenfold::RowCeuArgs& a, void* stream);
const char* row_divergence(const tenfold::RowDivergenceArgs& a, bool backward, void* stream);

}  // namespace tf_cuda
