// What csrc/distance_cuda_door.hpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and
// no allocation. Each returns null, or what CUDA says about the launch.
#pragma once

#include <cstdint>

namespace tf_cuda {

// n rows of x (float32, bfloat16 or float16: DType of dtype.hpp) and what a matrix product said about their distances to m others.
struct MeetRows {
  const void* x;  // [n][d]
  int64_t n, d;
  int dtype;
  const float* products;   // [n][m]
  const float* row_norms;  // [n], squared
  const float* errors;     // [n]: the share of |a|^2 + |b|^2 by which a distance from products may be off
  const float* others;     // [m][d], as they are
  const float* norms;      // [m], squared
  int64_t m;
  const double* row_scale;    // [n]: 1 / length, or null
  const double* other_scale;  // [m], where there is a row_scale
};

struct LookLaunch {
  MeetRows rows;
  int k;
  int32_t* index;  // [n][k]
  float* nearest;  // [n][k]
};

// distance and owner are those of the rows; a row at distance -1 is left alone.
struct CoverLaunch {
  MeetRows rows;
  const int64_t* numbers;  // [m]: what owners are called
  float* distance;         // [n]
  int32_t* owner;          // [n]
  float* out;              // null, or [m][out_pitch]: min(distance, that to each), and distance and owner stay
  int64_t out_pitch;
};

struct PoolLaunch {
  const void* x;  // [size][d]
  int64_t size, d;
  int dtype;
  const double* scale;  // [size] or null
  float* out;           // [size][size]
};

struct ChooseLaunch {
  const float* between;   // [size][size]
  const float* distance;  // [size], descending
  const int64_t* rows;    // [size]
  int64_t size;
  int most;
  bool complete;  // the pool holds every row that is left
  int64_t* chosen;  // [most]
  float* value;     // [most]
  int32_t* count;   // [1]
};

struct SumLaunch {
  const void* x;
  int64_t d, clusters;
  int dtype;
  const int64_t* order;   // rows of x, cluster after cluster
  const int64_t* starts;  // [clusters + 1]
  double* sums;           // [clusters][d], added to
};

const char* distance_look(const LookLaunch& a, void* stream);
const char* distance_cover(const CoverLaunch& a, void* stream);
const char* distance_pool(const PoolLaunch& a, void* stream);
const char* distance_choose(const ChooseLaunch& a, void* stream);
const char* distance_sums(const SumLaunch& a, void* stream);

}  // namespace tf_cuda
