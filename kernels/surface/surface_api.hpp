// What crosses the boundary between Python's door and the surface kernels: plain structures, no code.
#pragma once

#include <cstdint>

#include "../overlap/overlap_api.hpp"

namespace tenfold {

// One call over all organs of a pair of volumes (kernels/surface/surface_reference.py). counts [K, K] and boxes [K, 2 * ndim] are those of
// the overlap kernel, with labels of no organ counted as K - 1. O organs, T tolerances for each, P percentiles; arrays are row-major:
// voxels [O, 3], elements [O, 2], area [O, 2], within [O, 2, T], distance_sum [O, 2], hd [O, 2, P], hd_pooled [O, P].
struct SurfaceArgs {
  Labels target;
  Labels pred;
  int64_t num_labels;
  const int64_t* counts;
  const int64_t* box_target;
  const int64_t* box_pred;
  const int64_t* organ_labels;
  const int64_t* organ_starts;
  int64_t organs;
  double spacing[3];
  const double* areas;  // of the 256 codes
  const double* tolerances;
  int64_t n_tolerances;
  const double* percentiles;
  int64_t n_percentiles;
  bool edge;
  int64_t* voxels;
  int64_t* elements;
  double* area;
  double* within;
  double* distance_sum;
  double* hd;
  double* hd_pooled;
  int threads;
};

// The surface of one mask (labels 0 and 1) in its box [2 * ndim]: how many elements there are, and, where at is not null, their
// coordinates [n, ndim], codes [n] and areas [n] in row-major order.
struct SurfelArgs {
  Labels mask;
  const int64_t* box;
  const double* areas;
  bool edge;
  int64_t* at;
  uint8_t* codes;
  double* area;
};

// Distance of each voxel to the nearest feature (kernels/surface/edt.hpp). features: bytes, 0 or not, row-major, batch volumes of
// sizes[3]; out: float or double; index: null, or int32 [3, voxels of one volume] per volume.
struct EdtArgs {
  const uint8_t* features;
  int64_t batch;
  int64_t sizes[3];
  double spacing[3];
  bool wide;     // float64 in place of float32
  bool squared;  // the square of the distance
  void* out;
  int32_t* index;
  int threads;
};

struct SurfaceKernels {
  void (*metrics)(const SurfaceArgs&);
  int64_t (*surfels)(const SurfelArgs&);
};

struct EdtKernels {
  void (*edt)(const EdtArgs&);
};

}  // namespace tenfold
