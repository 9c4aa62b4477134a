// The plain structures that csrc/ fills and the distance kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// A matrix of rows in one or several pieces, each contiguous.
struct RowShards {
  const void* const* data;
  const int64_t* first;  // the number of each piece's first row, ascending
  int64_t count;         // pieces, at least 1
  int64_t rows;
  int64_t d;
  int dtype;  // DType of dtype.hpp: float32, bfloat16 or float16
};

// The k nearest of `centers` for n rows of x.
struct AssignArgs {
  RowShards x;
  const int64_t* rows;  // [n] row numbers, or null for 0 .. n - 1
  int64_t n;
  const float* centers;  // [m][d]
  int64_t m;
  int k;
  bool cosine;
  bool reduced;    // products of 16-bit integers find the candidates
  int32_t* index;  // [n][k]
  float* nearest;  // [n][k]
  int threads;
};

// One pass of Lloyd's algorithm: labels, distances, and the sums of each cluster's rows.
struct LloydArgs {
  RowShards x;
  const float* centers;  // [m][d]
  int64_t m;
  int32_t* labels;   // [rows]
  float* distances;  // [rows]
  double* sums;      // [m][d]
  int64_t* counts;   // [m]
  int threads;
};

// out[t][i] = min(distance[i], squared distance of row i to candidate t)
struct CoverArgs {
  RowShards x;
  const int64_t* candidates;  // [l] row numbers
  int64_t l;
  const float* distance;  // [rows]
  bool cosine;
  float* out;  // [l][rows]
  int threads;
};

struct KCenterArgs {
  RowShards x;
  int64_t k;
  const int64_t* start;  // rows that are centres already
  int64_t starts;
  int64_t first;  // the first pick, or -1: the farthest row
  bool cosine;
  int lookahead;
  bool prune;
  int64_t* picked;  // [k]
  float* radius;    // [k], squared
  float* distance;  // [rows], squared
  int32_t* owner;   // [rows], row numbers
  int threads;
};

struct DistanceKernels {
  int64_t (*first_bad_row)(const RowShards&, int threads);  // or -1
  void (*mean)(const RowShards&, bool cosine, double* out, int threads);
  int64_t (*farthest_from)(const RowShards&, const double* point, bool cosine, int threads);
  int64_t (*assign)(const AssignArgs&);  // the first row seen that is not finite, or -1
  void (*lloyd)(const LloydArgs&);
  void (*cover)(const CoverArgs&);
};

struct KCenterKernels {
  int64_t (*kcenter)(const KCenterArgs&);  // the first row seen that is not finite, or -1
};

}  // namespace tenfold
