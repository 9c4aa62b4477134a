// What the double-precision dual method is made of on every device: its limits, and the reciprocal that knows zero.
#pragma once

#include "../core/portable.hpp"

namespace TF_NS {

TF_HD double inverse_of(double x) { return x == 0.0 ? 0.0 : 1.0 / x; }

constexpr int kNewtonSteps = 12;

struct InteriorMethod {
  int64_t most;
  double centring, reach;
};
constexpr InteriorMethod kInterior = {32, 0.1, 0.995};
constexpr InteriorMethod kCareful = {64, 0.5, 0.7};

}  // namespace TF_NS
