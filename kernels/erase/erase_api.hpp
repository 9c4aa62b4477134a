// The plain structures that csrc/ fills and the erase kernels read, shared by every CPU build and by CUDA. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// Contiguous memory.
struct EraseTensor {
  const void* data;
  int64_t numel;
};

// Every tensor's |x| as a key: the bits of the float, or of the double if `wide`, without the sign; an integer order, NaN last.
struct EraseKeys {
  const EraseTensor* tensors;
  int64_t count;
  int dtype;
  bool wide;
  int threads;
};

// Keys at n places spread over all tensors, one at random in each of n equal parts, into `out` (int32, or int64 if wide).
struct EraseSampleArgs {
  EraseKeys keys;
  int64_t n;
  void* out;
};

// What a pass between two keys finds: how many keys are below `lo`, equal it, lie strictly between the two, equal `hi`, and are NaN or
// infinite. Those between are copied to `room`, in any order, as long as they fit; `stored` counts them all, from where it stands.
enum EraseCount : int { kBelow = 0, kAtLow = 1, kAtHigh = 2, kNotFinite = 3, kEraseCounts = 4 };
struct EraseBracketArgs {
  EraseKeys keys;
  int64_t lo, hi;
  int64_t* counts;  // kEraseCounts, added to
  void* room;
  int64_t capacity;
  int64_t* stored;
};

// Bit i % 8 of byte i / 8 of out[t] = key of element i >= `from`, flipped if `flip`; spare bits are 0.
struct EraseBitsArgs {
  EraseKeys keys;
  int64_t from;
  bool flip;
  uint8_t* const* out;
};

enum EraseMode : int { kSigned = 0, kAbs = 1, kProduct = 2 };
// acc += g, |g| or |g w|, in the type of acc.
struct EraseSumTensor {
  void* acc;
  const void* grad;
  const void* weight;  // null unless kProduct
  int64_t numel;
};
struct EraseSumArgs {
  const EraseSumTensor* tensors;
  int64_t count;
  int acc_dtype, grad_dtype, weight_dtype;
  int mode;
  int threads;
};

// The scalars are those of kernels/erase/erase_reference.py:AdamArgs. One dtype of weights and gradients, one of moments.
struct EraseAdamTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const uint8_t* bits;
  int64_t numel;
};
struct EraseAdamArgs {
  const EraseAdamTensor* tensors;
  int64_t count;
  int dtype, state_dtype;
  double keep, new1, beta2, new2, inverse, eps, rate;
  int threads;
};

struct EraseKernels {
  void (*sample)(const EraseSampleArgs&);
  void (*bracket)(const EraseBracketArgs&);
  void (*bits)(const EraseBitsArgs&);
  void (*sum)(const EraseSumArgs&);
  void (*adam)(const EraseAdamArgs&);
};

}  // namespace tenfold
