// The math of the low-rank passes for one element, for host and device (LOZO, Chen et al., arXiv 2410.07698).
//
//   s   = fma(u[l], v[l], s) for l in order, from 0
//   acc = fma(coef, s, acc)  for the terms in order, from decay * W
//
// u[l] of row i is normal number i * rank + l of its sequence: block (i * rank + l) / 4, position (i * rank + l) % 4, purpose kLowRankU.
#pragma once

#include "../core/dtype.hpp"
#include "../core/normal.hpp"
#include "../core/philox.hpp"
#include "lowrank_api.hpp"

namespace TF_NS {

TF_HD void factor_block(uint64_t block, const Sequence& s, float z[4]) {
  const PhiloxBlock<uint32_t> x = philox_block(block, s);
  box_muller(x.w0, x.w1, z[0], z[1]);
  box_muller(x.w2, x.w3, z[2], z[3]);
}

// The product of one row of U and one of V, of the type of the math; F is a scalar or a register of lanes.
template <class V>
TF_HD void add_rank(V u, V v, V& s) {
  s = fma(u, v, s);
}

}  // namespace TF_NS
