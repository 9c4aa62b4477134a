// The operations of coverage.hpp on registers of floats. They stand before it: a template finds functions of plain vector types where it is
// written, not where it is used.
#pragma once

#include "../logprob/rows_lanes.hpp"

namespace TF_NS {

TF_HD V smaller(V a, V b) { return -larger(-a, -b); }
TF_HD V exp_of(V a) { return exp_lanes(a); }
TF_HD V root(V a) {
#if defined(TF_ISA_AVX512) || defined(TF_ISA_AVX2) || defined(TF_ISA_NEON)
  return sqrt(F{a}).v;
#else
  V out;
  for (uint32_t j = 0; j < kLanes; ++j) out[j] = sqrt(a[j]);
  return out;
#endif
}

}  // namespace TF_NS

#include "coverage.hpp"
