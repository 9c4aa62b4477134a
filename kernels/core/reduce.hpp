// Sums whose rounding depends on the data alone, not on threads or instruction set: values are added in a fixed number of interleaved
// partial sums inside a piece, and pieces are joined by pairwise summation (Higham, "The accuracy of floating point summation", 1993).
#pragma once

#include "portable.hpp"

namespace TF_NS {

TF_HD double pairwise_sum(const double* values, int64_t n) {
  // Iterative form of the recursion "sum of halves": pairs are joined as a binary counter carries.
  double partial[64];
  int depth = 0;
  for (int64_t i = 0; i < n; ++i) {
    double sum = values[i];
    for (int64_t carry = i; carry & 1; carry >>= 1) sum = partial[--depth] + sum;
    partial[depth++] = sum;
  }
  double total = 0.0;
  while (depth > 0) total = partial[--depth] + total;
  return total;
}

// Eight interleaved partial sums of f(x[i]), joined as a tree.
template <class Map>
TF_HD double piece_sum(const float* x, int64_t n, const Map& map) {
  double partial[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) partial[j] += map(static_cast<double>(x[i + j]));
  }
  for (int j = 0; i < n; ++i, ++j) partial[j] += map(static_cast<double>(x[i]));
  return ((partial[0] + partial[1]) + (partial[2] + partial[3])) + ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

}  // namespace TF_NS
