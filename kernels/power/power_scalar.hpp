// What the double-precision methods are made of on every device: their limits, and arithmetic that knows zero.
//
// power_dual.hpp and power_separable.hpp are written once, for threads that walk along a row together. How they do is the argument W:
//   V                      what a thread holds of neighbouring carriers: a register of doubles, or one double
//   get(p), put(p, v)      such a part of a row in memory
//   begin(), kStep         the carriers where this thread starts, and how far its parts stand apart
//   total(v)               the sum over all threads' parts, the same in every thread
//   padded(n)              how much memory n carriers take, zero behind the last
//   rank(), kRanks         this thread among the others: it takes every kRanks-th of some things
//   sync()                 what was written before it is seen by all threads behind it
#pragma once

#include "../core/scalar.hpp"

#if defined(__CUDACC__)
#define TF_TOGETHER __device__
#else
#define TF_TOGETHER inline
#endif

namespace TF_NS {

constexpr double kInfinity = __builtin_inf();

TF_HD double inverse_of(double x) { return x == 0.0 ? 0.0 : 1.0 / x; }
TF_HD double size_of(double x) { return x < 0.0 ? -x : x; }
TF_HD bool is_finite(double x) { return x * 0.0 == 0.0; }
TF_HD double log_of(double x) {
#if defined(__CUDA_ARCH__)
  return ::log(x);
#else
  return __builtin_log(x);
#endif
}
TF_HD double exp_of(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  return __builtin_exp(x);
#endif
}

constexpr int kNewtonSteps = 12;

struct InteriorMethod {
  int64_t most;
  double centring, reach;
};
constexpr InteriorMethod kInterior = {32, 0.1, 0.995};
constexpr InteriorMethod kCareful = {64, 0.5, 0.7};

}  // namespace TF_NS
