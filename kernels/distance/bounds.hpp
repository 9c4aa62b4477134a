// Distances from products, with what they may be off: |a - b|^2 = |a|^2 + |b|^2 - 2 ab lies within E (|a|^2 + |b|^2) of what is computed
// from the rounded rows that a block holds, with a share E of each row. Whatever could be nearer within that bound is measured again
// (exact.hpp), so that the product decides nothing. Rows are taken relative to a point in the middle of the data, which keeps the bound
// small where the data lie far from 0.
#pragma once

#include "exact.hpp"
#include "panel16.hpp"

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

// Keeps the lowest number that is not negative.
inline void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t now = least;
  while (value >= 0 && value < now && !least.compare_exchange_weak(now, value)) {
  }
}

constexpr int64_t kIntegersPay = 64;  // columns from which integer products pay where nobody asked for them
constexpr float kInfinity = __builtin_inff();
constexpr float kLargest = 3.4028234663852886e38f;

// The few rows that all others meet, packed.
struct Columns {
  const float* raw = nullptr;  // [count][d]
  int64_t count = 0, padded = 0, d = 0;
  bool cosine = false, integers = false;
  const float* shift = nullptr;
  float share = 0.0f;                  // with integers: the largest part of a column that they leave out
  Room<float> panels, norms, factors;  // norms of columns that only fill a panel: infinity
  Room<int16_t> panels16;
  Room<double> scale;

  void pack(const float* rows, int64_t n, int64_t depth, bool by_angle, const float* middle, bool reduced) {
    raw = rows;
    count = n;
    d = depth;
    cosine = by_angle;
    integers = reduced && has_integer_products();
    shift = middle;
    share = 0.0f;
    padded = whole(n, kPanel);
    norms.take(padded);
    scale.take(padded);
    Room<float> some;
    some.take(kPanel * d);
    if (integers) {
      factors.zeros(padded);
      panels16.take(padded * even(d));
    } else {
      panels.take(padded * d);
    }
    for (int64_t first = 0; first < count; first += kPanel) {
      const int64_t here = count - first < kPanel ? count - first : kPanel;
      for (int64_t j = 0; j < here; ++j) {
        float* to = some.data() + j * d;
        scale[first + j] = place(raw + (first + j) * d, to);
        norms[first + j] = static_cast<float>(square_length(to, d));
      }
      for (int64_t j = here; j < kPanel; ++j) norms[first + j] = kInfinity;
      if (integers) {
        pack_integers(some.data(), first, here);
      } else {
        pack_panels(some.data(), d, here, d, panels.data() + first * d);
      }
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

 private:
  void pack_integers([[maybe_unused]] const float* rows, [[maybe_unused]] int64_t first, [[maybe_unused]] int64_t here) {
#if defined(TF_ISA_AVX512)
    Room<int16_t> some;
    some.take(kPanel * even(d));
    for (int64_t j = 0; j < here; ++j) {
      float left_out;
      factors[first + j] = quantise(rows + j * d, d, norms[first + j], some.data() + j * even(d), &left_out);
      share = left_out > share ? left_out : share;
    }
    pack_panels16(some.data(), even(d), here, even(d), panels16.data() + first * even(d));
#endif
  }
};

// Rows of x in the form that products take.
struct Block {
  const RowShards& x;
  const Columns& columns;
  int64_t capacity, stride;
  float share;                                       // E of float32 products
  int64_t bad = -1;                                  // the first row seen that is not finite
  Room<float> rows, norms, errors, factors, buffer;  // errors: E of each row
  Room<int16_t> integers;
  Ahead ahead;

  Block(const RowShards& from, const Columns& with) : x(from), columns(with), capacity(block_rows(from.d)), share(error_share(from.d)) {
    stride = whole(x.d, 32) + 32;  // no two rows on one set of the first-level cache
    rows.take(columns.integers ? stride : capacity * stride);
    if (columns.integers) integers.take(capacity * stride);
    norms.take(capacity);
    errors.take(capacity);
    factors.take(capacity);
    buffer.take(x.d);
  }

  static int64_t block_rows(int64_t d) {
    const int64_t most = 9 * 14 / kRows * kRows;
    const int64_t fit = (int64_t{1} << 18) / d / kRows * kRows;  // a MiB
    return fit < 2 * kRows ? 2 * kRows : fit < most ? fit : most;
  }

  void put(int64_t place, int64_t row) {
    float* to = rows.data() + (columns.integers ? 0 : place * stride);
    if (columns.cosine) {
      columns.place(raw_row(x, row, buffer.data()), to);
    } else {
      fetch_row(x, row, columns.shift, to);
    }
    const float square = static_cast<float>(square_length(to, x.d));
    norms[place] = square;
    errors[place] = share;
    if (!(square < kInfinity)) look_closely(row);
#if defined(TF_ISA_AVX512)
    if (columns.integers) {
      float left_out;
      factors[place] = quantise(to, x.d, square, integers.data() + place * stride, &left_out);
      errors[place] += left_out + columns.share * (1.0f + left_out);
    }
#endif
  }

  // Row `row`, at `place`, as float32.
  const float* raw(int64_t place, int64_t row, float* to) const {
    const bool held = columns.shift == nullptr && !columns.cosine && !columns.integers;
    return held ? rows.data() + place * stride : raw_row(x, row, to);
  }

  // The rows from `row` on, as far as they lie behind each other, come closer while the next product runs.
  void expect(int64_t row, int64_t count, int64_t groups) {
    ahead.end = ahead.at;
    if (row >= x.rows) return;
    const int64_t bytes = x.d * (x.dtype == kFloat32 ? 4 : 2);
    int64_t shard = 0;
    while (x.first[shard + 1] <= row) ++shard;
    const int64_t most = x.first[shard + 1] - row;
    const char* from = static_cast<const char*>(x.data[shard]) + (row - x.first[shard]) * bytes;
    ahead.plan(from, (count < most ? count : most) * bytes, groups, x.d);
  }

  // to[r][j] = row r times column first + j, for `n` columns (a multiple of kPanel).
  void multiply(int64_t count, int64_t first, int64_t n, float* to, int64_t to_row) {
    const int64_t groups = whole(count, kRows);
#if defined(TF_ISA_AVX512)
    if (columns.integers) {
      const int64_t depth = even(x.d);
      for (int64_t r = count; r < groups; ++r) {
        memset(integers.data() + r * stride, 0, static_cast<size_t>(depth) * sizeof(int16_t));
        factors[r] = 0.0f;
      }
      panel_product16(integers.data(), stride, factors.data(), groups, columns.panels16.data() + first * depth,
                      columns.factors.data() + first, n, depth, to, to_row, ahead);
      return;
    }
#endif
    for (int64_t r = count; r < groups; ++r) memset(rows.data() + r * stride, 0, static_cast<size_t>(x.d) * sizeof(float));
    panel_product(rows.data(), stride, groups, columns.panels.data() + first * x.d, n, x.d, to, to_row, ahead);
  }

 private:
  void look_closely(int64_t row) {
    if (bad >= 0 && bad < row) return;
    const float* raw = raw_row(x, row, buffer.data());
    for (int64_t k = 0; k < x.d; ++k) {
      if (!(raw[k] - raw[k] == 0.0f)) bad = row;
    }
  }
};

// A point amid the rows, if they lie far enough from 0 for it to matter, else null: the mean of up to 256 of them, evenly spaced. Any
// point would do; see the head of this file.
inline const float* find_middle(const RowShards& x, float* middle) {
  const int64_t samples = x.rows < 256 ? x.rows : 256;
  Room<double> sums;
  Room<float> buffer;
  sums.zeros(x.d);
  buffer.take(x.d);
  double squares = 0.0;
  for (int64_t s = 0; s < samples; ++s) {
    const float* row = raw_row(x, x.rows * s / samples, buffer.data());
    for (int64_t k = 0; k < x.d; ++k) sums[k] += static_cast<double>(row[k]);
    squares += square_length(row, x.d);
  }
  double length = 0.0;
  for (int64_t k = 0; k < x.d; ++k) {
    middle[k] = static_cast<float>(sums[k] / static_cast<double>(samples > 0 ? samples : 1));
    length += static_cast<double>(middle[k]) * static_cast<double>(middle[k]);
  }
  return 2.0 * length * static_cast<double>(samples) > squares ? middle : nullptr;  // the mean outweighs the spread about it
}

}  // namespace TF_NS
