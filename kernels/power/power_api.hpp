// The plain structures that csrc/power_door.hpp fills and the kernels of power allocation read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// Values [rows][users][carriers] with strides in values (a complex number is one); users is 1 where there is no such axis.
struct PowerView {
  const void* data;  // null: not given
  int64_t row, user, carrier;
};

struct PowerShape {
  int64_t rows, users, carriers;
  int dtype;  // kFloat32 or kFloat64, of the real and imaginary parts
};

// Results are contiguous.
struct JointArgs {
  PowerShape shape;
  PowerView gains;       // complex
  PowerView symbols;     // complex
  PowerView power;       // one per row and user: carrier is 0
  PowerView noise;       // one per row
  PowerView statistics;  // [rows][carriers], stands for |s|^2 in the search
  double tolerance;
  int64_t most;
  void* transmit;
  void* alpha;
  void* mu;
  void* objective;
  int32_t* iterations;
  int threads;
};

struct SeparableArgs {
  PowerShape shape;
  PowerView gains;  // complex
  PowerView power;
  PowerView noise;
  PowerView wanted;   // c, one per row and user
  PowerView weights;  // [rows][users][carriers]
  double tolerance;
  int64_t most;
  void* precoder;
  void* alpha;
  void* tau;
  void* objective;
  int32_t* iterations;
  int threads;
};

// p = (x - theta)_+ with sum `mass`; with `inverse` for -1 / x, where x <= 0 takes no part.
struct WaterArgs {
  PowerShape shape;
  PowerView x;
  PowerView mass;
  bool inverse;
  void* power;
  void* theta;
  int threads;
};

// p = ((sqrt(S a) / c - 1) / a)_+ with sum P.
struct MseWaterArgs {
  PowerShape shape;
  PowerView gains, weights, power;
  void* out;
  void* level;
  int threads;
};

struct NormalizeArgs {
  PowerShape shape;
  PowerView x;
  PowerView power;
  bool is_complex, mean;
  void* out;
  int threads;
};

struct PowerKernels {
  void (*joint)(const JointArgs&);
  void (*separable)(const SeparableArgs&);
  void (*water)(const WaterArgs&);
  void (*mse_water)(const MseWaterArgs&);
  void (*normalize)(const NormalizeArgs&);
};

}  // namespace tenfold
