// What csrc/coverage_cuda_door.hpp calls. Launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no
// allocation. Returns null, or what CUDA says about the launch.
#pragma once

#include "coverage_api.hpp"

namespace tf_cuda {

constexpr int64_t kCoverTileRows = 128;
constexpr int64_t kCoverPieceRows = 4096;

// Some candidates against the rows, all in device memory; sums are partial: [tiles or pieces][count], to be added in order.
struct CoverTiles {
  const float* z;  // [n][d], as the kind compares points
  const float* norms;
  int64_t rows, d;  // the first `rows` points are covered
  int kind;
  float gamma;
  const int64_t* which;  // [count]
  int64_t count;
  const float* current;  // [rows]
  const float* weights;  // [rows]
  double* partial;       // [ceil(rows / kCoverTileRows)][count]
  float* values;         // [count][rows]
};
const char* cover_norms(const float* z, int64_t n, int64_t d, float* norms, void* stream);
const char* cover_gains(const CoverTiles& a, void* stream);
const char* cover_values(const CoverTiles& a, void* stream);
const char* cover_farthest(const CoverTiles& a, void* stream);  // partial: the largest squared distances

// gains[c] = the sum of partial[p][c] in the order of p.
struct CoverJoin {
  const double* partial;
  int64_t pieces, count;
  double* gains;
};
const char* cover_join(const CoverJoin& a, void* stream);

// What candidate `number` covers better than what is covered, by its values [rows].
struct CoverTake {
  const float* values;
  int64_t rows;
  float* current;
  int32_t* owner;
  int32_t number;
};
const char* cover_take(const CoverTake& a, void* stream);

struct CoverMatrix {
  const void* matrix;  // [candidates][rows]
  int dtype;
  int64_t rows;
  const int64_t* which;
  int64_t count;
  const float* current;
  const float* weights;
  double* partial;  // [ceil(rows / kCoverPieceRows)][count]
};
const char* cover_matrix_gains(const CoverMatrix& a, void* stream);

struct CoverLists {
  const int64_t* indptr;
  const int64_t* indices;
  const float* values;
  const int64_t* which;
  int64_t count;
  const float* current;
  const float* weights;
  double* gains;  // [count]
};
const char* cover_lists_gains(const CoverLists& a, void* stream);

}  // namespace tf_cuda
