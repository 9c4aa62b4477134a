// Inner products of many rows with a few hundred: the matrix product under every distance of this family, one block of rows at a time.
//
// The few (centres, candidates) are packed once into panels: kPanel of them side by side, depth after depth, so that a step of the product
// is one load per vector of a panel. The rows of a block are copied as they are wanted (float32, shifted, padded with rows of zeros to
// whole groups of kRows), which also joins shards and gathers. A group of rows times a panel stays in registers for kDepth steps; that much
// of a panel lies in the first-level cache and serves all rows of the block. The result, [rows][columns], goes to a tile in the
// second-level cache, where the caller looks at it (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS
// 34, 2008).
//
// Every sum has one order, whatever the number of threads or where blocks begin: kDepth products after each other, then the next kDepth.
#pragma once

#include "distance_api.hpp"

#include "../core/room.hpp"
#include "../logprob/rows_lanes.hpp"

namespace TF_NS {

using tenfold::RowShards;

#if defined(TF_ISA_AVX512)
constexpr int kRows = 14, kVectors = 2;  // 28 sums in 32 registers
#elif defined(TF_ISA_NEON)
constexpr int kRows = 8, kVectors = 3;
#elif defined(TF_ISA_AVX2)
constexpr int kRows = 6, kVectors = 2;  // 12 sums in 16 registers
#else
constexpr int kRows = 4, kVectors = 2;
#endif
constexpr int64_t kWidth = kLanes;
constexpr int64_t kPanel = kVectors * kWidth;
constexpr int64_t kDepth = 8192 / kPanel;  // 32 KiB of a panel
constexpr float kUnit = 5.9604645e-8f;     // half a unit in the last place of 1

constexpr int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// What a computed inner product of `depth` numbers is off at most, divided by the product of lengths: chains of kDepth, then their sum.
inline float product_error(int64_t depth) {
  const int64_t chain = depth < kDepth ? depth : kDepth;
  return 1.01f * kUnit * static_cast<float>(chain + (depth + kDepth - 1) / kDepth + 1);
}

// ---- rows -------------------------------------------------------------------------------------------------------------------------

template <class Work>
TF_HD void with_row(const RowShards& x, int64_t row, const Work& work) {
  int64_t low = 0;
  for (int64_t high = x.count; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    (x.first[middle] <= row ? low : high) = middle;
  }
  const int64_t at = (row - x.first[low]) * x.d;
  if (x.dtype == kBFloat16) {
    work(static_cast<const bfloat16*>(x.data[low]) + at);
  } else if (x.dtype == kFloat16) {
    work(static_cast<const float16*>(x.data[low]) + at);
  } else {
    work(static_cast<const float*>(x.data[low]) + at);
  }
}

template <class T>
TF_HD void copy_row(const T* from, int64_t d, const float* shift, float* to) {
  int64_t k = 0;
  if (shift == nullptr) {
    for (; k + kWidth <= d; k += kWidth) store_lanes(to + k, load_lanes(from + k));
    for (; k < d; ++k) to[k] = to_math(from[k]);
    return;
  }
  for (; k + kWidth <= d; k += kWidth) store_lanes(to + k, load_lanes(from + k) - load_lanes(shift + k));
  for (; k < d; ++k) to[k] = to_math(from[k]) - shift[k];
}

// Row `row` as float32 minus `shift` (null: as it is).
inline void fetch_row(const RowShards& x, int64_t row, const float* shift, float* to) {
  with_row(x, row, [&](auto from) { copy_row(from, x.d, shift, to); });
}

// Sum of squares in a fixed order, in lanes of float32 chains no longer than 64.
inline double square_length(const float* row, int64_t d) {
  double total = 0.0;
  int64_t k = 0;
  while (k + kWidth <= d) {
    V sum = V{};
    const int64_t end = k + 64 * kWidth <= d ? k + 64 * kWidth : k + (d - k) / kWidth * kWidth;
    for (; k < end; k += kWidth) {
      const V v = load_lanes(row + k);
      sum = multiply_add(v, v, sum);
    }
    total += sum_lanes(sum);
  }
  for (; k < d; ++k) total += static_cast<double>(row[k]) * static_cast<double>(row[k]);
  return total;
}

// ---- panels -----------------------------------------------------------------------------------------------------------------------

// Floats that `columns` packed columns of `depth` take.
constexpr int64_t panel_floats(int64_t columns, int64_t depth) { return whole(columns, kPanel) * depth; }

// Column j of the panels is row j of `rows` [columns][stride]; columns up to a whole panel are zeros.
inline void pack_panels(const float* rows, int64_t stride, int64_t columns, int64_t depth, float* to) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t here = columns - first < kPanel ? columns - first : kPanel;
    float* panel = to + first * depth;
    if (here < kPanel) memset(panel, 0, static_cast<size_t>(kPanel * depth) * sizeof(float));
    for (int64_t j = 0; j < here; ++j) {
      const float* row = rows + (first + j) * stride;
      for (int64_t k = 0; k < depth; ++k) panel[k * kPanel + j] = row[k];
    }
  }
}

// ---- the product --------------------------------------------------------------------------------------------------------------------

template <bool add>
inline void product_group(const float* a, int64_t a_row, const float* panel, int64_t depth, float* c, int64_t c_row) {
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[r][j] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V lanes[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) lanes[j] = load_lanes(panel + k * kPanel + j * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V factor = spread(a[r * a_row + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[r][j] = multiply_add(factor, lanes[j], sum[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* to = c + r * c_row + j * kWidth;
      store_lanes(to, add ? load_lanes(to) + sum[r][j] : sum[r][j]);
    }
  }
}

// Memory that is wanted next, asked for a little at a time while a product runs.
struct Ahead {
  const char* at = nullptr;
  const char* end = nullptr;
  int64_t share = 0;  // bytes for each 1024 steps of a group

  // `bytes` at `from`, over a product of `groups` groups of rows with panels, of `depth` steps.
  void plan(const void* from, int64_t bytes, int64_t groups, int64_t depth) {
    at = static_cast<const char*>(from);
    end = at + bytes;
    share = bytes * 1024 / (groups * depth) + 1;
  }
  TF_HD void fetch(int64_t steps) {
    if (at >= end) return;
    const char* stop = at + (share * steps / 1024 + 64);
    stop = stop < end ? stop : end;
    for (; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// c[r][j] = sum_k a[r * a_row + k] panels[k][j] for `rows` rows (a multiple of kRows) and `columns` columns (a multiple of kPanel).
inline void panel_product(const float* a, int64_t a_row, int64_t rows, const float* panels, int64_t columns, int64_t depth, float* c,
                          int64_t c_row, Ahead& ahead) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t steps = depth - k < kDepth ? depth - k : kDepth;
    for (int64_t j = 0; j < columns; j += kPanel) {
      const float* panel = panels + j * depth + k * kPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        ahead.fetch(steps);
        if (k == 0) {
          product_group<false>(a + r * a_row + k, a_row, panel, steps, c + r * c_row + j, c_row);
        } else {
          product_group<true>(a + r * a_row + k, a_row, panel, steps, c + r * c_row + j, c_row);
        }
      }
    }
  }
}

inline void panel_product(const float* a, int64_t a_row, int64_t rows, const float* panels, int64_t columns, int64_t depth, float* c,
                          int64_t c_row) {
  Ahead nothing;
  panel_product(a, a_row, rows, panels, columns, depth, c, c_row, nothing);
}

}  // namespace TF_NS
