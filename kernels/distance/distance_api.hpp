// The plain structures that csrc/ fills and the distance kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// A matrix of rows in one or several pieces, each contiguous.
struct RowShards {
  const void* const* data;
  const int64_t* first;  // the number of each piece's first row, ascending
  int64_t count;         // pieces, at least 1
  int64_t rows;
  int64_t d;
  int dtype;  // DType of dtype.hpp: float32, bfloat16 or float16
};

}  // namespace tenfold
