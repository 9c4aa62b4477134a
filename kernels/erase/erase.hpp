// The math of one weight, for host and device. Every operation is rounded once and none is contracted, so that all backends and the
// PyTorch reference have the same bits.
#pragma once

#include "../core/dtype.hpp"
#include "erase_api.hpp"

namespace TF_NS {

template <class M>
struct MaskedAdamScalars {
  M keep, new1, beta2, new2, inverse, eps, rate;
};

template <class M>
TF_HD MaskedAdamScalars<M> masked_adam_scalars(const tenfold::EraseAdamArgs& a) {
  return {static_cast<M>(a.keep),    static_cast<M>(a.new1), static_cast<M>(a.beta2), static_cast<M>(a.new2),
          static_cast<M>(a.inverse), static_cast<M>(a.eps),  static_cast<M>(a.rate)};
}

// Kingma and Ba 2014 with decoupled weight decay, keep = 1 - lr wd.
template <class M>
TF_HD void masked_adam_element(M g, M& p, M& m, M& v, const MaskedAdamScalars<M>& s) {
  m = m + (g - m) * s.new1;
  v = v * s.beta2 + g * g * s.new2;
  p = p * s.keep - divide(m, sqrt(v) * s.inverse + s.eps) * s.rate;
}

TF_HD float magnitude(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }
TF_HD double magnitude(double x) { return bit_cast<double>(bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFu); }

template <int kMode, class A>
TF_HD A saliency(A acc, A g, A w) {
  if (kMode == tenfold::kSigned) return acc + g;
  return acc + magnitude(kMode == tenfold::kProduct ? g * w : g);
}

TF_HD int32_t magnitude_key32(float x) { return static_cast<int32_t>(bits_of(x) & 0x7FFFFFFFu); }
TF_HD int64_t magnitude_key64(double x) { return static_cast<int64_t>(bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFu); }

constexpr int32_t kInfinite32 = 0x7F800000;
constexpr int64_t kInfinite64 = 0x7FF0000000000000;

}  // namespace TF_NS
