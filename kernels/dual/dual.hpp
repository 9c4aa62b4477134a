// The math of a perturbed weight for one element, for host and device: out = round(fma(coef, z, w)), with the z of zo.hpp.
#pragma once

#include "../zo/zo.hpp"
#include "dual_api.hpp"

namespace TF_NS {

template <class T, class O>
TF_HD O perturbed(T w, float z, math_t<T> coef) {
  return Round<O>::nearest(fma(coef, static_cast<math_t<T>>(z), to_math(w)));
}

}  // namespace TF_NS
