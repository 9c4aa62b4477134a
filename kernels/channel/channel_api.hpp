// The plain structures that csrc/channel_door.hpp fills and the kernel of the superposition channel reads.
#pragma once

#include <cstdint>

#include "../power/power_api.hpp"

namespace tenfold {

struct ChannelArgs {
  PowerShape shape;
  PowerView transmit;  // complex
  PowerView gains;     // complex; null: drawn
  PowerView mean;      // one per row and user, as are scale, power and rho
  PowerView scale;
  PowerView noise;  // one per row, as is alpha
  PowerView alpha;  // null: 1
  PowerView power;
  PowerView rho;
  uint64_t seed;
  uint32_t offset;
  int64_t first;  // number of the first row
  int64_t block;  // rows that fade alike
  int allocate;   // 0: none, 1: joint
  double tolerance;
  int64_t most;
  void* received;  // [rows][carriers], complex, contiguous
  void* found;     // alpha [rows], with allocation
  void* dual;      // [rows][users], with allocation
  int threads;
};

struct ChannelKernels {
  void (*channel)(const ChannelArgs&);
};

}  // namespace tenfold
