// The plain structures that csrc/ fills and the coverage kernels read. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

enum CoverKind : int { kSquared = 0, kDistance, kCosine01, kCosine2, kGaussian, kInner, kCoverKinds };
enum CoverForm : int { kFromPoints = 0, kFromMatrix, kFromLists };
enum CoverOptimizer : int { kLazy = 0, kNaive, kStochastic, kLazier };
enum CoverWalk : int { kGraphCut = 0, kLogDet, kHerding };

// How well candidate j covers row i: one of three forms.
struct CoverSource {
  int form;
  int64_t candidates, rows;
  // kFromPoints: candidates are the rows of x [n][d], less shift [d] (null: 0), as `kind` compares them
  const void* x;
  int64_t d;
  int dtype;  // of x or matrix: float32, bfloat16, float16
  int kind;
  float gamma;
  const float* shift;
  const int64_t* order;  // rows from the farthest from the shift to the nearest (distances), or null: as they come
  double bound;          // the largest distance, squared for kSquared; negative: to be found
  // kFromMatrix: [candidates][rows]
  const void* matrix;
  // kFromLists: the rows that a candidate covers, ascending
  const int64_t* indptr;
  const int64_t* indices;
  const float* values;
};

// What bounds all gains after one pick p from above (kSquared). With a_i = |z_i - z_p|^2 - |z_i - z_j|^2, which is linear in z_i,
//   sum_i w_i max(0, a_i) = (sum w a + sum w |a|) / 2 <= (sum w a + sqrt(W sum w a^2)) / 2,
// and both sums follow from the moments of the points.
struct CoverMoments {
  double mass;           // W = sum_i w_i; 0: there are no moments
  const double* slope;   // [n] z_j . sum_i w_i z_i
  const double* square;  // [n] z_j^T M z_j
  const double* second;  // [d][d] M = sum_i w_i z_i z_i^T
  double slack;          // what float32 may add to a gain
};

// Greedy facility location: f(S) = scale sum_i w_i (max(floor, max_{j in S} v_ij) - floor).
struct GreedyArgs {
  CoverSource source;
  int64_t k;
  int optimizer;
  const int64_t* words;  // [k][sample] random words, for kStochastic and kLazier
  int64_t sample;
  const int64_t* initial;
  int64_t initials;
  const double* weights;  // [rows], or null: 1
  const double* costs;    // [candidates], or null
  double budget;
  const double* first;  // [candidates] no less than the gains of an empty cover, or null
  CoverMoments moments;
  int64_t* indices;  // [k]
  double* gains;     // [k]
  int64_t* owner;    // [rows]: position among (initial, picks) of the one that covers it
  double* objective;
  int64_t* made;         // how many picks there are
  int64_t* evaluations;  // how many gains were computed
  int threads;
};

// Picks that need one column of similarities each. Candidates are rows.
struct WalkArgs {
  CoverSource source;
  int walk;
  int64_t k;
  double parameter;     // kLogDet: what is added to the diagonal
  const double* start;  // kGraphCut: [n] lam sum_i s_ij - s_jj; kHerding: [d] the mean of the points less the shift
  const int64_t* initial;
  int64_t initials;
  int64_t* indices;  // [k]
  double* gains;     // [k]: kLogDet: log of what the pick adds; kHerding: not written
  int threads;
};

struct CoverKernels {
  void (*greedy)(const GreedyArgs&);
  void (*walk)(const WalkArgs&);
  // out[which][rows]: similarities of some candidates
  void (*values)(const CoverSource&, const int64_t* which, int64_t count, float* out, int threads);
  // out[n]: scale sum_i (v_ij - floor) and own[n]: similarity of each point with itself
  void (*sums)(const CoverSource&, double* out, float* own, int threads);
  // the largest distance of two points, squared for kSquared
  double (*largest)(const CoverSource&, int threads);
};

}  // namespace tenfold
