// What csrc/power_cuda_door.hpp calls. Everything is queued on `stream` (a cudaStream_t) of the current device: no synchronisation, and no
// allocation. Each returns null, or what CUDA says about the launch.
#pragma once

#include "power_api.hpp"

namespace tf_cuda {

// Memory for rows that fit no block's own: `blocks` times `each` doubles. each: what power_joint_room or power_separable_room asks for; 0
// where rows do fit, and then `room` may be null.
struct Workspace {
  double* room;
  int64_t blocks, each;
};

int64_t power_joint_room(int64_t users, int64_t carriers);
int64_t power_separable_room(int64_t users, int64_t carriers, bool weighted);

const char* power_joint(const tenfold::JointArgs& a, const Workspace& space, void* stream);
const char* power_separable(const tenfold::SeparableArgs& a, const Workspace& space, void* stream);
const char* power_water(const tenfold::WaterArgs& a, void* stream);
const char* power_mse_water(const tenfold::MseWaterArgs& a, void* stream);
const char* power_normalize(const tenfold::NormalizeArgs& a, void* stream);

// power_dual_cuda.cu: every row, or those whose `iterations` is negative.
const char* power_joint_dual(const tenfold::JointArgs& a, bool only_left, const Workspace& space, void* stream);

}  // namespace tf_cuda
