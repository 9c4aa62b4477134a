// The distance from each element of one surface to the nearest element of another, exact.
//
// Three ways, for three kinds of elements; each takes over what the one before has left:
//   near    offsets in order of their length, each tried for 64 elements at a time: a shift and an AND per row. An element that meets one
//           at the first offset that hits has its distance. Two surfaces that nearly agree are done after a few offsets.
//   middle  element by element: rows in order of their distance, in each the nearest set bit, until no row can be nearer. The element
//           before it gives a bound to begin with.
//   far     separable: the nearest element along c for each row of the other surface, lower envelopes along b (Felzenszwalb and
//           Huttenlocher, Theory of Computing 8, 2012), and the best plane along a. Only rows with elements and only columns that are asked
//           for are worked on, so two structures far apart cost what their own boxes hold, not what lies between.
//
// A squared distance is ((d0 s0)^2 + (d1 s1)^2) + (d2 s2)^2 in the caller's order of axes, in float64.
#pragma once

#include <algorithm>
#include <cmath>

#include "bit_rows.hpp"

namespace TF_NS {

// Internal axes are the caller's in another order: axis[i] of the caller is internal axis i.
struct Metric {
  double spacing[3];  // the caller's order
  int axis[3];
  double of(int internal) const { return spacing[axis[internal]]; }
  double square(int64_t da, int64_t db, int64_t dc) const {
    double d[3];
    d[axis[0]] = static_cast<double>(da) * spacing[axis[0]];
    d[axis[1]] = static_cast<double>(db) * spacing[axis[1]];
    d[axis[2]] = static_cast<double>(dc) * spacing[axis[2]];
    return (d[0] * d[0] + d[1] * d[1]) + d[2] * d[2];
  }
};

// `weight` of surface (area, or a number of elements) at distance sqrt(square); `count` elements.
struct Record {
  double square;
  double weight;
  int64_t count;
};

struct Offset {
  int32_t a, b, c;
  double square;
};

struct RowOffset {
  int32_t a, b;
  double square;  // of the row, a little less than computed: a bound whatever the rounding
};

constexpr int64_t kNearOffsets = 96;
constexpr int64_t kRowOffsets = 4096;
constexpr int32_t kMostShift = 63;

// The first offsets (a, b, c >= 0) and row offsets (a, b >= 0) by length, for one spacing.
struct Offsets {
  Room<Offset> near;
  Room<RowOffset> rows;
  double near_limit;  // every offset shorter than this is in `near`
  double rows_limit;  // every row offset shorter than this is in `rows`
};

inline double make_offsets(const Metric& m, double radius, bool flat, Room<Offset>& out) {
  out.clear();
  const auto most = [&](int axis) { return std::min<int64_t>(static_cast<int64_t>(radius / m.of(axis)), kMostShift); };
  for (int64_t a = 0; a <= (flat ? 0 : most(0)); ++a) {
    for (int64_t b = 0; b <= most(1); ++b) {
      for (int64_t c = 0; c <= most(2); ++c) {
        const double square = m.square(a, b, c);
        if (square <= radius * radius) out.push({static_cast<int32_t>(a), static_cast<int32_t>(b), static_cast<int32_t>(c), square});
      }
    }
  }
  double limit = radius * radius;
  for (int axis = flat ? 1 : 0; axis < 3; ++axis) {
    const double beyond = static_cast<double>(kMostShift + 1) * m.of(axis);
    limit = std::min(limit, beyond * beyond);
  }
  return limit;
}

inline void find_offsets(const Metric& m, bool flat, Offsets& out) {
  const double finest = std::min(m.of(1), m.of(2));
  double radius = finest;  // grown until there are enough
  const double coarsest = std::max(std::max(flat ? 0.0 : m.of(0), m.of(1)), m.of(2));
  for (int step = 0; step < 400; ++step) {
    out.near_limit = make_offsets(m, radius, flat, out.near);
    if (out.near.size() >= kNearOffsets || radius > kMostShift * coarsest) break;
    radius *= 1.1;
  }
  std::sort(out.near.begin(), out.near.end(), [](const Offset& x, const Offset& y) {
    if (x.square != y.square) return x.square < y.square;
    return x.a != y.a ? x.a < y.a : x.b < y.b;
  });
  int64_t kept = 0;
  while (kept < out.near.size() && out.near[kept].square < out.near_limit) ++kept;
  out.near.resize_down(kept);

  // rows: an ellipse with about kRowOffsets of them in its quadrant
  const double s0 = m.of(0), s1 = m.of(1);
  const double reach = flat ? s1 * static_cast<double>(kRowOffsets) : 1.13 * std::sqrt(static_cast<double>(kRowOffsets) * s0 * s1);
  out.rows.clear();
  for (int64_t a = 0; a <= (flat ? 0 : static_cast<int64_t>(reach / s0)); ++a) {
    for (int64_t b = 0; b <= static_cast<int64_t>(reach / s1); ++b) {
      const double square = m.square(a, b, 0) * (1 - 1e-14);
      if (square <= reach * reach) out.rows.push({static_cast<int32_t>(a), static_cast<int32_t>(b), square});
    }
  }
  std::sort(out.rows.begin(), out.rows.end(), [](const RowOffset& x, const RowOffset& y) {
    if (x.square != y.square) return x.square < y.square;
    return x.a < y.a;
  });
  out.rows_limit = reach * reach * (1 - 1e-14);
}

// ---- near -----------------------------------------------------------------------------------------------------------------------

// A word of elements that have no distance yet.
struct Active {
  uint64_t bits;
  int32_t a, b, w;
};

// The word of row (a, b) of `e`, moved by c: bit i is the element i + c behind the beginning of word w.
inline uint64_t shifted(const Elements& e, int64_t a, int64_t b, int64_t w, int32_t c) {
  const uint64_t* const row = e.row(a, b) + w;
  if (c == 0) return row[0];
  return c > 0 ? row[0] >> c | row[1] << (64 - c) : row[0] << -c | row[-1] >> (64 + c);
}

inline uint64_t hits(const Elements& e, const Active& at, const Offset& o) {
  uint64_t found = 0;
  for (int sa = 0; sa < (o.a == 0 ? 1 : 2); ++sa) {
    const int64_t a = sa == 0 ? at.a + o.a : at.a - o.a;
    if (a < 0 || a >= e.rows_a) continue;
    for (int sb = 0; sb < (o.b == 0 ? 1 : 2); ++sb) {
      const int64_t b = sb == 0 ? at.b + o.b : at.b - o.b;
      if (b < 0 || b >= e.rows_b || !e.occupied[a * e.rows_b + b]) continue;
      found |= shifted(e, a, b, at.w, o.c);
      if (o.c != 0) found |= shifted(e, a, b, at.w, -o.c);
    }
  }
  return found & at.bits;
}

// How much surface the elements `bits` of a word are.
struct Weigher {
  const Grid& grid;
  const uint64_t* voxels;
  const double* areas;  // null: each element counts 1
  int64_t histogram[256] = {};
  int64_t count = 0;

  void add(const Active& at, uint64_t bits) {
    count += __builtin_popcountll(bits);
    if (areas == nullptr) return;
    const CodeWords words = code_words(grid, voxels, at.a, at.b, at.w);
    for (; bits != 0; bits &= bits - 1) ++histogram[words.code(lowest_bit(bits))];
  }
  Record take(double square) {
    Record out = {square, static_cast<double>(count), count};
    if (areas != nullptr) {
      out.weight = 0.0;
      for (int code = 1; code < 255; ++code) {
        if (histogram[code] != 0) out.weight += static_cast<double>(histogram[code]) * areas[code];
        histogram[code] = 0;
      }
    }
    count = 0;
    return out;
  }
  // Of the one element `bit` of a word, past the histogram.
  Record single(const Active& at, int bit, double square) const {
    return {square, areas == nullptr ? 1.0 : areas[code_words(grid, voxels, at.a, at.b, at.w).code(bit)], 1};
  }
};

inline void list_active(const Elements& e, Room<Active>& active) {
  active.clear();
  for (int64_t a = 0; a < e.rows_a; ++a) {
    for (int64_t b = 0; b < e.rows_b; ++b) {
      if (!e.occupied[a * e.rows_b + b]) continue;
      const uint64_t* const row = e.row(a, b);
      for (int64_t w = 0; w < e.words; ++w) {
        if (row[w] != 0) active.push({row[w], static_cast<int32_t>(a), static_cast<int32_t>(b), static_cast<int32_t>(w)});
      }
    }
  }
}

// Takes offsets in turn and leaves in `active` what none of them reached. Stops early when few are left: one by one is then cheaper.
inline void search_near(const Elements& other, const Offsets& offsets, Weigher& weigher, Room<Active>& active, Room<Record>& records) {
  int64_t left = 0;
  for (const Active& at : active) left += __builtin_popcountll(at.bits);
  for (int64_t i = 0; i < offsets.near.size() && active.size() > 0; ++i) {
    const Offset& o = offsets.near[i];
    int64_t kept = 0;
    for (int64_t k = 0; k < active.size(); ++k) {
      Active at = active[k];
      const uint64_t found = hits(other, at, o);
      if (found != 0) {
        weigher.add(at, found);
        at.bits &= ~found;
      }
      active[kept] = at;
      kept += at.bits != 0;
    }
    active.resize_down(kept);
    if (weigher.count > 0) {
      left -= weigher.count;
      records.push(weigher.take(o.square));
    }
  }
}

// ---- middle ---------------------------------------------------------------------------------------------------------------------

struct Place {
  int32_t a, b, c;
};

// Distance in bits from c to the nearest set bit of a row of `words` words, at most `most`; -1 if there is none as near.
inline int64_t nearest_bit(const uint64_t* row, int64_t words, int64_t c, int64_t most) {
  const int64_t w = c / 64;
  const int r = static_cast<int>(c % 64);
  int64_t best = most + 1;
  uint64_t here = w < words ? row[w] >> r : 0;
  if (here != 0) {
    best = std::min<int64_t>(best, lowest_bit(here));
  } else {
    for (int64_t k = w + 1; k < words && k * 64 - c < best; ++k) {
      if (row[k] != 0) {
        best = std::min<int64_t>(best, k * 64 - c + lowest_bit(row[k]));
        break;
      }
    }
  }
  here = row[w] << (63 - r);
  if (here != 0) {
    best = std::min<int64_t>(best, __builtin_clzll(here));
  } else {
    for (int64_t k = w - 1; k >= 0 && c - (k * 64 + 63) < best; --k) {
      if (row[k] != 0) {
        best = std::min<int64_t>(best, c - (k * 64 + 63) + __builtin_clzll(row[k]));
        break;
      }
    }
  }
  return best <= most ? best : -1;
}

// The nearest element of a row to p, if nearer than `best`; then `best` and `nearest` are its.
inline void look_into_row(const Elements& e, const Metric& m, const Place& p, int64_t a, int64_t b, double row_square, double& best,
                          Place& nearest) {
  if (a < 0 || a >= e.rows_a || b < 0 || b >= e.rows_b || !e.occupied[a * e.rows_b + b]) return;
  const double reach = std::sqrt(best - row_square) / m.of(2) + 1.0;
  const int64_t most = reach < 1e9 ? static_cast<int64_t>(reach) : int64_t{1000000000};
  const uint64_t* const row = e.row(a, b);
  const int64_t dc = nearest_bit(row, e.words, p.c, most);
  if (dc < 0) return;
  const double square = m.square(a - p.a, b - p.b, dc);
  if (square < best) {
    best = square;
    const int64_t right = p.c + dc;
    const bool is_right = right < e.words * 64 && (row[right / 64] >> (right % 64) & 1);
    nearest = {static_cast<int32_t>(a), static_cast<int32_t>(b), static_cast<int32_t>(is_right ? right : p.c - dc)};
  }
}

// Whether p's nearest element was found within the listed rows; `visits` counts down.
inline bool search_rows(const Elements& e, const Metric& m, const Offsets& offsets, const Place& p, double& best, Place& nearest,
                        int64_t& visits) {
  for (int64_t i = 0; i < offsets.rows.size(); ++i) {
    const RowOffset& o = offsets.rows[i];
    if (o.square >= best) return true;
    for (int sa = 0; sa < (o.a == 0 ? 1 : 2); ++sa) {
      for (int sb = 0; sb < (o.b == 0 ? 1 : 2); ++sb) {
        look_into_row(e, m, p, sa == 0 ? p.a + o.a : p.a - o.a, sb == 0 ? p.b + o.b : p.b - o.b, o.square, best, nearest);
      }
    }
    if (--visits < 0) return false;
  }
  return offsets.rows_limit >= best;
}

}  // namespace TF_NS
