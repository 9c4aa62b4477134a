// Distances of elements that lie far from the other surface (see search.hpp): separable, over the rows that have elements and the columns
// that are asked for.
#pragma once

#include "search.hpp"

namespace TF_NS {

constexpr int64_t kColumnBlock = 32;  // columns of c worked on at a time; what bounds the memory

struct FarRoom {
  Room<int32_t> along_c;   // [a][b][column]: steps to the nearest element of the row, or kNone
  Room<int32_t> best_row;  // [a][b asked for][column]: the row of the nearest element in the plane, or -1
  Room<int32_t> hull;
  Room<double> border;
};

constexpr int32_t kNone = INT32_MAX;

// Planes and rows that have elements.
struct Extent {
  int64_t a0 = INT64_MAX, a1 = 0, b0 = INT64_MAX, b1 = 0;
  void add(int64_t a, int64_t b) {
    a0 = std::min(a0, a), a1 = std::max(a1, a + 1);
    b0 = std::min(b0, b), b1 = std::max(b1, b + 1);
  }
};

inline Extent extent_of(const Elements& e) {
  Extent out;
  for (int64_t a = 0; a < e.rows_a; ++a) {
    for (int64_t b = 0; b < e.rows_b; ++b) {
      if (e.occupied[a * e.rows_b + b]) out.add(a, b);
    }
  }
  return out;
}

// Steps from each of the columns first .. first + n - 1 to the nearest set bit of the row.
inline void nearest_along_row(const uint64_t* row, int64_t words, int64_t first, int64_t n, int32_t* out) {
  int64_t at = -1;  // the last set bit before or at the column
  for (int64_t w = first / 64; w >= 0 && at < 0; --w) {
    const uint64_t bits = w == first / 64 ? row[w] & (~uint64_t{0} >> (63 - first % 64)) : row[w];
    if (bits != 0) at = w * 64 + 63 - __builtin_clzll(bits);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = first + i;
    if (row[c / 64] >> (c % 64) & 1) at = c;
    out[i] = at < 0 ? kNone : static_cast<int32_t>(c - at);
  }
  at = -1;  // the first set bit after or at it
  const int64_t end = first + n - 1;
  for (int64_t w = end / 64; w < words && at < 0; ++w) {
    const uint64_t bits = w == end / 64 ? row[w] & (~uint64_t{0} << (end % 64)) : row[w];
    if (bits != 0) at = w * 64 + lowest_bit(bits);
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    const int64_t c = first + i;
    if (row[c / 64] >> (c % 64) & 1) at = c;
    if (at >= 0) out[i] = std::min(out[i], static_cast<int32_t>(at - c));
  }
}

// For each row b0 .. b0 + n - 1 of one plane and column, the row of the plane's nearest element: the lower envelope of the parabolas
// (b - row)^2 s1^2 + steps^2 s2^2. `steps` are of rows first .. first + rows - 1, kColumnBlock apart; so are those of `out`.
inline void nearest_rows(const int32_t* steps, int64_t first, int64_t rows, double s1, double s2, int64_t b0, int64_t n, FarRoom& room,
                         int32_t* out) {
  int32_t* const hull = room.hull.data();
  double* const border = room.border.data();  // from which b on the parabola is the lowest
  int64_t top = -1;
  const double ratio = s2 * s2 / (s1 * s1);
  const auto height = [&](int64_t row) {
    const double d = static_cast<double>(steps[(row - first) * kColumnBlock]);
    return d * d * ratio + static_cast<double>(row) * static_cast<double>(row);
  };
  for (int64_t row = first; row < first + rows; ++row) {
    if (steps[(row - first) * kColumnBlock] == kNone) continue;
    const double mine = height(row);
    double from = -INFINITY;
    while (top >= 0) {
      from = (mine - height(hull[top])) / (2.0 * static_cast<double>(row - hull[top]));
      if (from > border[top]) break;
      --top;
      from = -INFINITY;
    }
    ++top;
    hull[top] = static_cast<int32_t>(row);
    border[top] = from;
  }
  int64_t k = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double b = static_cast<double>(b0 + i);
    while (k < top && border[k + 1] <= b) ++k;
    out[i * kColumnBlock] = top < 0 ? -1 : hull[k];
  }
}

// Squared distances of `places` (of one block of columns) to the elements of `e`, which has some.
inline void search_far_block(const Elements& e, const Metric& m, const Extent& has, const Place* places, int64_t count, FarRoom& room,
                             double* squares) {
  const int64_t first = places[0].c / kColumnBlock * kColumnBlock;
  const int64_t columns = std::min<int64_t>(kColumnBlock, e.words * 64 - first);
  int64_t b0 = INT64_MAX, b1 = 0;
  bool wanted[kColumnBlock] = {};
  for (int64_t i = 0; i < count; ++i) {
    b0 = std::min<int64_t>(b0, places[i].b);
    b1 = std::max<int64_t>(b1, places[i].b + 1);
    wanted[places[i].c - first] = true;
  }
  const int64_t planes = has.a1 - has.a0, rows = has.b1 - has.b0, asked = b1 - b0;
  int32_t* const along_c = room.along_c.take(planes * rows * kColumnBlock);
  int32_t* const best_row = room.best_row.take(planes * asked * kColumnBlock);
  room.hull.take(rows);
  room.border.take(rows);
  for (int64_t a = 0; a < planes; ++a) {
    for (int64_t b = 0; b < rows; ++b) {
      int32_t* const out = along_c + (a * rows + b) * kColumnBlock;
      if (e.occupied[(has.a0 + a) * e.rows_b + has.b0 + b]) {
        nearest_along_row(e.row(has.a0 + a, has.b0 + b), e.words, first, columns, out);
      } else {
        for (int64_t i = 0; i < kColumnBlock; ++i) out[i] = kNone;
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      if (!wanted[c]) continue;
      nearest_rows(along_c + a * rows * kColumnBlock + c, has.b0, rows, m.of(1), m.of(2), b0, asked, room,
                   best_row + a * asked * kColumnBlock + c);
    }
  }
  const double s0 = m.of(0) * (1 - 1e-14);
  for (int64_t i = 0; i < count; ++i) {
    const Place& p = places[i];
    double best = INFINITY;
    const auto plane = [&](int64_t a) {
      const int32_t row = best_row[((a - has.a0) * asked + p.b - b0) * kColumnBlock + p.c - first];
      if (row < 0) return;
      const int32_t steps = along_c[((a - has.a0) * rows + row - has.b0) * kColumnBlock + p.c - first];
      best = std::min(best, m.square(a - p.a, row - p.b, steps));
    };
    for (int64_t d = 0;; ++d) {  // planes in order of their distance
      const double step = static_cast<double>(d) * s0;
      const int64_t before = p.a - d, after = p.a + d;
      if (step * step > best || (before < has.a0 && after >= has.a1)) break;
      if (before >= has.a0 && before < has.a1) plane(before);
      if (d > 0 && after >= has.a0 && after < has.a1) plane(after);
    }
    squares[i] = best;
  }
}

}  // namespace TF_NS
