// Distances from products, with what they may be off: |a - b|^2 = |a|^2 + |b|^2 - 2 ab lies within E (|a|^2 + |b|^2) of what is computed
// from the rounded rows that a block holds. Whatever could be nearer within that bound is measured again (exact.hpp), so that the product
// decides nothing. Rows are taken relative to a point in the middle of the data, which keeps the bound small where the data lie far from 0.
#pragma once

#include "exact.hpp"

#include "../core/parallel.hpp"

namespace TF_NS {

// The share E: the product's chains, twice (2 ab); the rounding of both rows when they are shifted or scaled (up to 8 units), of the sum
// (4), and of the distance to float32 (4).
inline float error_share(int64_t d) { return 1.01f * (product_error(d) + 24.0f * kUnit); }

#if defined(TF_ISA_AVX512)
TF_HD uint32_t lanes_set(I mask) { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)); }
TF_HD V lesser(V a, V b) { return _mm512_min_ps(a, b); }
#elif defined(TF_ISA_AVX2)
TF_HD uint32_t lanes_set(I mask) { return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask))); }
TF_HD V lesser(V a, V b) { return _mm256_min_ps(a, b); }
#else
TF_HD uint32_t lanes_set(I mask) {
  uint32_t bits = 0;
  for (uint32_t j = 0; j < kLanes; ++j) bits |= (mask[j] != 0 ? 1u : 0u) << j;
  return bits;
}
TF_HD V lesser(V a, V b) { return choose(less(a, b), a, b); }
#endif

constexpr float kInfinity = __builtin_inff();
constexpr float kLargest = 3.4028234663852886e38f;

// The few rows that all others meet, packed: -2 ab + low <= (true distance) - (1 - E) |a|^2, and likewise high with (1 + E).
struct Columns {
  const float* raw = nullptr;  // [count][d]
  int64_t count = 0, padded = 0, d = 0;
  bool cosine = false;
  const float* shift = nullptr;
  Room<float> panels, low, high;
  Room<double> scale;

  void pack(const float* rows, int64_t n, int64_t depth, bool by_angle, const float* middle) {
    raw = rows;
    count = n;
    d = depth;
    cosine = by_angle;
    shift = middle;
    padded = whole(n, kPanel);
    panels.take(padded * d);
    low.take(padded);
    high.take(padded);
    scale.take(padded);
    Room<float> some;
    some.take(kPanel * d);
    const float share = error_share(d);
    for (int64_t first = 0; first < count; first += kPanel) {
      const int64_t here = count - first < kPanel ? count - first : kPanel;
      for (int64_t j = 0; j < here; ++j) {
        float* to = some.data() + j * d;
        scale[first + j] = place(raw + (first + j) * d, to);
        const float norm = static_cast<float>(square_length(to, d));
        low[first + j] = norm * (1.0f - share);
        high[first + j] = norm * (1.0f + share);
      }
      for (int64_t j = here; j < kPanel; ++j) low[first + j] = high[first + j] = kInfinity;
      pack_panels(some.data(), d, here, d, panels.data() + first * d);
    }
  }

  // A raw row as products take it; returns its scale.
  double place(const float* row, float* to) const {
    if (!cosine) {
      copy_row(row, d, shift, to);
      return 1.0;
    }
    const double inverse = inverse_length(row, d);
    const float factor = static_cast<float>(inverse);
    for (int64_t k = 0; k < d; ++k) to[k] = row[k] * factor;
    return inverse;
  }
};

// Rows of x in the form that products take.
struct Block {
  int64_t capacity, stride;
  Room<float> rows, norms, buffer;

  explicit Block(int64_t d) : capacity(block_rows(d)), stride(whole(d, 16) + 16) {  // no two rows on one set of the first-level cache
    rows.take(capacity * stride);
    norms.take(capacity);
    buffer.take(d);
  }

  static int64_t block_rows(int64_t d) {
    const int64_t most = 9 * 14 / kRows * kRows;
    const int64_t fit = (int64_t{1} << 18) / d / kRows * kRows;  // a MiB
    return fit < 2 * kRows ? 2 * kRows : fit < most ? fit : most;
  }

  void put(int64_t place, const RowShards& x, int64_t row, const Columns& columns) {
    float* to = rows.data() + place * stride;
    if (columns.cosine) {
      columns.place(raw_row(x, row, buffer.data()), to);
    } else {
      fetch_row(x, row, columns.shift, to);
    }
    norms[place] = static_cast<float>(square_length(to, x.d));
  }
  // Zeros up to whole groups; returns their number.
  int64_t fill(int64_t count) {
    const int64_t end = whole(count, kRows);
    for (int64_t r = count; r < end; ++r) memset(rows.data() + r * stride, 0, static_cast<size_t>(stride) * sizeof(float));
    return end;
  }
};

// A point amid the rows: the mean of up to 256 of them, evenly spaced. Any point would do; see the head of this file.
inline void find_middle(const RowShards& x, float* middle) {
  const int64_t samples = x.rows < 256 ? x.rows : 256;
  Room<double> sums;
  Room<float> buffer;
  sums.zeros(x.d);
  buffer.take(x.d);
  for (int64_t s = 0; s < samples; ++s) {
    const float* row = raw_row(x, x.rows * s / samples, buffer.data());
    for (int64_t k = 0; k < x.d; ++k) sums[k] += static_cast<double>(row[k]);
  }
  for (int64_t k = 0; k < x.d; ++k) middle[k] = static_cast<float>(sums[k] / static_cast<double>(samples > 0 ? samples : 1));
}

}  // namespace TF_NS
