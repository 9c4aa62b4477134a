// The plain structures that csrc/ fills and the log-probability kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// logit[p, v] = rows[p] . weight[v] + bias[v], of which only three things are kept per row and vocabulary segment s:
//   max[s, p]         the largest logit of the segment (the lowest finite float when the segment is empty)
//   sum[s, p]         sum over the segment of exp(logit - max[s, p])
//   target_logit[p]   the logit of column targets[p]
// Joined over segments (join in logprob_chunks.py) they give log p(target) = target_logit - log sum exp.
// How many segments there are is the caller's choice and decides the order of summation; the number of threads does not.
struct LogprobArgs {
  const float* rows;       // [n_rows, width], contiguous
  const int64_t* targets;  // [n_rows], each in [0, vocabulary)
  const void* weight;      // [vocabulary, width], unit stride along width
  const float* bias;       // [vocabulary] or null
  int64_t n_rows;
  int64_t width;
  int64_t vocabulary;
  int64_t weight_stride;  // elements from one vocabulary row to the next
  int weight_dtype;       // DType of dtype.hpp: float32, bfloat16 or float16
  int64_t segments;
  float* max;           // [segments, n_rows]
  float* sum;           // [segments, n_rows]
  float* target_logit;  // [n_rows]
  int threads;
};

// One table per instruction set.
struct LogprobKernels {
  void (*token_logprobs)(const LogprobArgs&);
};

// The same three numbers from products that already exist (cuBLAS wrote them): columns [first, first + columns) of the vocabulary.
// Each row's columns are cut into `splits` runs, one per thread block, so that few rows still fill the device.
struct LseArgs {
  const float* products;   // [n_rows, columns], rows `stride` elements apart
  const int64_t* targets;  // [n_rows]
  const float* bias;       // [columns], the part of the bias that belongs to these columns, or null
  int64_t n_rows;
  int64_t columns;
  int64_t stride;
  int64_t first;
  int64_t splits;       // at most 65535
  int64_t part_stride;  // elements from one split's row of `max` and `sum` to the next; at least n_rows
  float* max;           // [splits, n_rows]
  float* sum;           // [splits, n_rows]
  float* target_logit;  // [n_rows], written where first <= targets[p] < first + columns
};

}  // namespace tenfold
