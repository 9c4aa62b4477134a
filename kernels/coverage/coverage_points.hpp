// Points packed for products with a few candidates at a time, on the CPU.
//
// A panel holds kPanel points side by side, depth after depth, so that a step of the product is one load per vector of rows and one
// broadcast per candidate, and the sums of kTile candidates with a panel stay in registers. What follows the product (similarity, what is
// covered already, the sum) is done on these registers. Points are packed once; candidates are fetched from the panels.
//
// Every inner product has one order of additions, wherever its row and candidate lie in a tile, so a similarity has the same bits each time
// it is computed. Rounding is monotone, hence so are sums in a fixed order: a gain never rises from step to step, to the last bit, and a
// gain of an earlier step is an upper bound.
#pragma once

#include "coverage_lanes.hpp"

#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {

#if defined(TF_ISA_AVX512) || defined(TF_ISA_NEON)
constexpr int kTile = 6, kAcross = 4;  // 24 sums in 32 registers
#else
constexpr int kTile = 6, kAcross = 2;  // 12 sums in 16 registers
#endif
constexpr int64_t kLane = kLanes;
constexpr int64_t kPanel = kAcross * kLane;
constexpr int64_t kChunkRows = 1024;  // rows whose sums are joined first; a piece of work for a thread
constexpr int64_t kChunk = kChunkRows / kPanel;
constexpr int64_t kBatch = 48;  // candidates at a time

typedef double D __attribute__((vector_size(8 * kLanes)));

struct Points {
  int64_t n, d, panels;
  int kind;
  float gamma;
  Room<float> packed;   // [panels][d][kPanel]
  Room<float> norms;    // [panels * kPanel], inner products with themselves
  Room<int64_t> place;  // of a point among the packed, and
  Room<int64_t> point;  // the point at a place

  const float* panel(int64_t p) const { return packed.data() + p * d * kPanel; }
  int64_t chunks() const { return (panels + kChunk - 1) / kChunk; }
};

template <class Work>
void with_rows(int dtype, const void* from, const Work& work) {
  if (dtype == kBFloat16) {
    work(static_cast<const bfloat16*>(from));
  } else if (dtype == kFloat16) {
    work(static_cast<const float16*>(from));
  } else {
    work(static_cast<const float*>(from));
  }
}

template <class T>
void pack_point(const T* row, int64_t d, const float* shift, bool unit, float* to) {
  float scale = 1.0f;
  if (unit) {
    double square = 0.0;
    for (int64_t k = 0; k < d; ++k) square += static_cast<double>(to_math(row[k])) * static_cast<double>(to_math(row[k]));
    scale = square > 0.0 ? static_cast<float>(1.0 / __builtin_sqrt(square)) : 0.0f;
  }
  for (int64_t k = 0; k < d; ++k) {
    const float value = to_math(row[k]);
    to[k * kPanel] = unit ? value * scale : value - (shift == nullptr ? 0.0f : shift[k]);
  }
}

// dot[r][j] = inner products of `rows` candidates [rows][d] with a panel; each(r, j, dot) for all.
template <int rows, class Each>
TF_HD void panel_product(const float* panel, int64_t d, const float* candidates, const Each& each) {
  V sum[rows][kAcross];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kAcross; ++j) sum[r][j] = V{};
  }
  for (int64_t k = 0; k < d; ++k) {
    V lanes[kAcross];
#pragma GCC unroll 4
    for (int j = 0; j < kAcross; ++j) lanes[j] = load_lanes(panel + k * kPanel + j * kLane);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const V factor = spread(candidates[r * d + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kAcross; ++j) sum[r][j] = multiply_add(factor, lanes[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kAcross; ++j) each(r, j, sum[r][j]);
  }
}

inline void fetch_point(const Points& z, int64_t place, float* to) {
  const float* from = z.panel(place / kPanel) + place % kPanel;
  for (int64_t k = 0; k < z.d; ++k) to[k] = from[k * kPanel];
}

inline void pack_points(const CoverSource& s, Points& z, int threads) {
  z.n = s.candidates;
  z.d = s.d;
  z.kind = s.kind;
  z.gamma = s.gamma;
  z.panels = (z.n + kPanel - 1) / kPanel;
  float* packed = z.packed.take(z.panels * z.d * kPanel);
  z.norms.take(z.panels * kPanel);
  z.place.take(z.n);
  z.point.take(z.n);
  for (int64_t p = 0; p < z.n; ++p) {
    z.point[p] = s.order == nullptr ? p : s.order[p];
    z.place[z.point[p]] = p;
  }
  const bool unit = s.kind == kCosine01 || s.kind == kCosine2;
  parallel_ranges(
      z.panels, threads,
      [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) {
          float* to = packed + p * z.d * kPanel;
          if ((p + 1) * kPanel > z.n) memset(to, 0, static_cast<size_t>(z.d * kPanel) * sizeof(float));
          for (int64_t j = 0; j < kPanel && p * kPanel + j < z.n; ++j) {
            const int64_t row = z.point[p * kPanel + j];
            with_rows(s.dtype, s.x, [&](auto from) { pack_point(from + row * z.d, z.d, s.shift, unit, to + j); });
          }
          for (int j = 0; j < kAcross; ++j) {
            V sum = V{};
            for (int64_t k = 0; k < z.d; ++k) {
              const V v = load_lanes(to + k * kPanel + j * kLane);
              sum = multiply_add(v, v, sum);
            }
            store_lanes(z.norms.data() + p * kPanel + j * kLane, sum);
          }
        }
      },
      4);
}

// ---- the largest distance -----------------------------------------------------------------------------------------------------------

// The farthest square from a candidate to the points of panels [first, last), and where it is.
struct Farthest {
  float square;
  int64_t place;
};

inline Farthest farthest_from(const Points& z, int64_t place) {
  Vector<float> candidate(static_cast<size_t>(z.d));
  fetch_point(z, place, candidate.data());
  const V norm = spread(z.norms[place]);
  Farthest best = {0.0f, place};
  for (int64_t p = 0; p < z.panels; ++p) {
    const float* norms = z.norms.data() + p * kPanel;
    panel_product<1>(z.panel(p), z.d, candidate.data(), [&](int, int j, V dot) {
      const V square = -minus_square(dot, load_lanes(norms + j * kLane), norm);
      for (int64_t l = 0; l < kLane; ++l) {
        const int64_t at = p * kPanel + j * kLane + l;
        if (square[l] > best.square && at < z.n) best = {square[l], at};
      }
    });
  }
  return best;
}

// The largest square within panel a and between it and panels b < a while radii allow more than `least`.
inline float farthest_of_panel(const Points& z, int64_t a, double least, float* candidates) {
  const auto radius = [&](int64_t p) { return __builtin_sqrt(static_cast<double>(z.norms[p * kPanel])); };
  const double own = radius(a);
  const double needed = __builtin_sqrt(least) * (1.0 - 1e-6);
  const int64_t count = (z.n - a * kPanel < kPanel) ? z.n - a * kPanel : kPanel;
  bool fetched = false;
  V top = V{};
  for (int64_t b = 0; b <= a && own + radius(b) >= needed; ++b) {
    if (!fetched) {
      for (int64_t r = 0; r < kPanel + kTile; ++r) fetch_point(z, a * kPanel + (r < count ? r : 0), candidates + r * z.d);
      fetched = true;
    }
    const float* norms = z.norms.data() + b * kPanel;
    for (int64_t r = 0; r < count; r += kTile) {
      panel_product<kTile>(z.panel(b), z.d, candidates + r * z.d, [&](int q, int j, V dot) {
        const float norm = z.norms[a * kPanel + (r + q < count ? r + q : 0)];
        const V square = -minus_square(dot, load_lanes(norms + j * kLane), spread(norm));
        const bool whole = (b + 1) * kPanel <= z.n;
        if (whole) {
          top = larger(top, square);
        } else {
          for (int64_t l = 0; l < kLane; ++l) {
            if (b * kPanel + j * kLane + l < z.n && square[l] > top[l]) top[l] = square[l];
          }
        }
      });
    }
  }
  return max_lanes(top);
}

// Exact: a pair is left out only where the triangle inequality says that it is nearer than one that was found. Panels are ordered by
// falling radius, which packing by CoverSource.order has seen to; without an order nothing is left out.
inline double largest_square(const Points& z, bool ordered, int threads) {
  constexpr int64_t kRound = 8;  // panels between two looks at what was found: the same ones for any number of threads
  float least = 0.0f;
  if (ordered) {
    Farthest end = farthest_from(z, 0);
    for (int hop = 0; hop < 3; ++hop) {
      const Farthest next = farthest_from(z, end.place);
      if (!(next.square > end.square)) break;
      end = next;
    }
    least = end.square;
  }
  for (int64_t first = 0; first < z.panels; first += kRound) {
    const int64_t here = z.panels - first < kRound ? z.panels - first : kRound;
    float found[kRound];
    const float before = ordered ? least : 0.0f;
    parallel_ranges(here, threads, [&](int64_t from, int64_t to) {
      Vector<float> candidates(static_cast<size_t>((kPanel + kTile) * z.d));
      for (int64_t p = from; p < to; ++p) {
        found[p] = ordered ? farthest_of_panel(z, first + p, static_cast<double>(before), candidates.data())
                           : farthest_of_panel(z, first + p, 0.0, candidates.data());
      }
    });
    for (int64_t p = 0; p < here; ++p) least = larger(least, found[p]);
  }
  return static_cast<double>(least);
}

}  // namespace TF_NS
