// The three forms of similarity behind the same few functions, for greedy choice on the CPU:
//   rows()                           length of arrays over rows, in the order of the form; real(i): whether it stands for a row, row(i):
//   which values(j, out)                   v of candidate j over all rows;  own(j): v of candidate j and itself take(j, number, cover)
//   candidate j covers what it covers best, at the latest with the next gains() or settle() gains(which, n, cover, out)      sum_i w_i
//   max(0, v_ij - current_i) for n <= kBatch candidates
#pragma once

#include "coverage_points.hpp"

#include <type_traits>

namespace TF_NS {

// What is covered: by value and by whom, and the weights of rows (0 where a place stands for none).
struct Covered {
  Room<float> current, weights;
  Room<int32_t> owner;
};

// Candidate `number` with values v.
TF_HD void cover_lanes(Covered& cover, int64_t at, V value, int32_t number) {
  float* current = cover.current.data() + at;
  int32_t* owner = cover.owner.data() + at;
  const V before = load_lanes(current);
  const I better = less(before, value);
  I mine;
  memcpy(&mine, owner, sizeof(I));
  mine = better ? number - I{} : mine;
  memcpy(owner, &mine, sizeof(I));
  store_lanes(current, larger(before, value));
}
inline void cover_all(Covered& cover, int64_t rows, const float* values, int32_t number) {
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= rows; i += kLanes) cover_lanes(cover, i, load_lanes(values + i), number);
  for (; i < rows; ++i) {
    if (!(values[i] > cover.current[i])) continue;
    cover.current[i] = values[i];
    cover.owner[i] = number;
  }
}

TF_HD double sum_of(const D& a) {
  double total = 0.0;
  for (int64_t j = 0; j < kLane; ++j) total += a[j];
  return total;
}

// ---- points -------------------------------------------------------------------------------------------------------------------------

template <int kind, int rows>
TF_HD void cover_tile(const Points& z, int64_t p, const float* candidates, const float* norms, const Covered& cover, D* sums) {
  const float* here = z.norms.data() + p * kPanel;
  const float* current = cover.current.data() + p * kPanel;
  const float* weights = cover.weights.data() + p * kPanel;
  V total[rows];
  panel_product<rows>(z.panel(p), z.d, candidates, [&](int r, int j, V dot) {
    const V value = value_of<kind>(dot, load_lanes(here + j * kLane), spread(norms[r]), z.gamma);
    const V gain = larger(value - load_lanes(current + j * kLane), V{}) * load_lanes(weights + j * kLane);
    total[r] = j == 0 ? gain : total[r] + gain;
  });
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r] += __builtin_convertvector(total[r], D);
}

template <int kind>
struct FromPoints {
  Points z;
  int threads;
  Room<float> candidates, pending;
  float pending_norm = 0.0f;
  int32_t pending_number = -1;

  FromPoints(const CoverSource& s, int t) : threads(t) { pack_points(s, z, t); }
  int64_t rows() const { return z.panels * kPanel; }
  bool real(int64_t i) const { return i < z.n; }
  int64_t row(int64_t i) const { return z.point[i]; }
  int64_t place(int64_t j) const { return z.place[j]; }

  // The points are read once for it and the gains that are asked for next.
  void take(int64_t j, int32_t number, Covered& cover) {
    settle(cover);
    fetch_point(z, z.place[j], pending.take(z.d));
    pending_norm = z.norms[z.place[j]];
    pending_number = number;
  }
  void settle(Covered& cover) {
    if (pending_number < 0) return;
    visit(pending.data(), pending_norm, [&](int64_t at, V value) { cover_lanes(cover, at, value, pending_number); });
    pending_number = -1;
  }

  void gains(const int64_t* which, int64_t n, Covered& cover, double* out) {
    candidates.take(kBatch * z.d);
    float norms[kBatch];
    for (int64_t r = 0; r < n; ++r) {
      fetch_point(z, z.place[which[r]], candidates.data() + r * z.d);
      norms[r] = z.norms[z.place[which[r]]];
    }
    const int64_t chunks = z.chunks();
    Vector<double> partial(static_cast<size_t>(chunks * n));
    parallel_ranges(chunks, threads, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        D sums[kBatch];
        for (int64_t r = 0; r < n; ++r) sums[r] = D{};
        const int64_t end = (c + 1) * kChunk < z.panels ? (c + 1) * kChunk : z.panels;
        for (int64_t p = c * kChunk; p < end; ++p) {
          if (pending_number >= 0) cover_panel(p, cover);
          int64_t r = 0;
          const auto at = [&] { return candidates.data() + r * z.d; };
          for (; r + kTile <= n; r += kTile) cover_tile<kind, kTile>(z, p, at(), norms + r, cover, sums + r);
          for (; r + 2 <= n; r += 2) cover_tile<kind, 2>(z, p, at(), norms + r, cover, sums + r);
          for (; r < n; ++r) cover_tile<kind, 1>(z, p, at(), norms + r, cover, sums + r);
        }
        for (int64_t r = 0; r < n; ++r) partial[static_cast<size_t>(c * n + r)] = sum_of(sums[r]);
      }
    });
    pending_number = -1;
    for (int64_t r = 0; r < n; ++r) {
      out[r] = 0.0;
      for (int64_t c = 0; c < chunks; ++c) out[r] += partial[static_cast<size_t>(c * n + r)];
    }
  }
  void cover_panel(int64_t p, Covered& cover) const {
    const float* here = z.norms.data() + p * kPanel;
    panel_product<1>(z.panel(p), z.d, pending.data(), [&](int, int j, V dot) {
      const V value = value_of<kind>(dot, load_lanes(here + j * kLane), spread(pending_norm), z.gamma);
      cover_lanes(cover, p * kPanel + j * kLane, value, pending_number);
    });
  }

  float own(int64_t j) const {
    const float norm = z.norms[z.place[j]];
    return value_of<kind>(norm, norm, norm, z.gamma);
  }
  // each(first place of a vector, v) over all rows
  template <class Each>
  void visit(const float* candidate, float norm, const Each& each) {
    parallel_ranges(z.chunks(), threads, [&](int64_t first, int64_t last) {
      const int64_t end = last * kChunk < z.panels ? last * kChunk : z.panels;
      for (int64_t p = first * kChunk; p < end; ++p) {
        const float* here = z.norms.data() + p * kPanel;
        panel_product<1>(z.panel(p), z.d, candidate, [&](int, int j, V dot) {
          each(p * kPanel + j * kLane, value_of<kind>(dot, load_lanes(here + j * kLane), spread(norm), z.gamma));
        });
      }
    });
  }
  void values(int64_t j, float* out) {
    fetch_point(z, z.place[j], candidates.take(kBatch * z.d));
    visit(candidates.data(), z.norms[z.place[j]], [&](int64_t at, V value) { store_lanes(out + at, value); });
  }
};

// ---- matrices and lists ---------------------------------------------------------------------------------------------------------------

template <class T>
struct FromMatrix {
  const T* matrix;
  int64_t n;
  int threads;
  Room<float> column;

  FromMatrix(const CoverSource& s, int t) : matrix(static_cast<const T*>(s.matrix)), n(s.rows), threads(t) {}
  int64_t rows() const { return n; }
  bool real(int64_t) const { return true; }
  int64_t row(int64_t i) const { return i; }
  int64_t place(int64_t j) const { return j; }

  void gains(const int64_t* which, int64_t count, Covered& cover, double* out) {
    const int64_t chunks = (n + kChunkRows - 1) / kChunkRows;
    Vector<double> partial(static_cast<size_t>(chunks * count));
    parallel_ranges(chunks, threads, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t begin = c * kChunkRows, end = begin + kChunkRows < n ? begin + kChunkRows : n;
        for (int64_t r = 0; r < count; ++r) partial[static_cast<size_t>(c * count + r)] = piece(which[r], begin, end, cover);
      }
    });
    for (int64_t r = 0; r < count; ++r) {
      out[r] = 0.0;
      for (int64_t c = 0; c < chunks; ++c) out[r] += partial[static_cast<size_t>(c * count + r)];
    }
  }
  double piece(int64_t j, int64_t begin, int64_t end, const Covered& cover) const {
    const T* row = matrix + j * n;
    D sum = D{};
    int64_t i = begin;
    for (; i + kLane <= end; i += kLane) {
      const V gain = larger(load_lanes(row + i) - load_lanes(cover.current.data() + i), V{}) * load_lanes(cover.weights.data() + i);
      sum += __builtin_convertvector(gain, D);
    }
    double total = sum_of(sum);
    for (; i < end; ++i) total += static_cast<double>(larger(to_math(row[i]) - cover.current[i], 0.0f) * cover.weights[i]);
    return total;
  }
  void take(int64_t j, int32_t number, Covered& cover) {
    values(j, column.take(n));
    cover_all(cover, n, column.data(), number);
  }
  void settle(Covered&) {}
  void values(int64_t j, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = to_math(matrix[j * n + i]);
  }
  float own(int64_t j) const { return to_math(matrix[j * n + j]); }
};

struct FromLists {
  const CoverSource& s;
  int threads;

  FromLists(const CoverSource& source, int t) : s(source), threads(t) {}
  int64_t rows() const { return s.rows; }
  bool real(int64_t) const { return true; }
  int64_t row(int64_t i) const { return i; }
  int64_t place(int64_t j) const { return j; }

  void gains(const int64_t* which, int64_t count, Covered& cover, double* out) {
    parallel_ranges(
        count, threads,
        [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; ++r) {
            double total = 0.0;
            for (int64_t e = s.indptr[which[r]]; e < s.indptr[which[r] + 1]; ++e) {
              const int64_t i = s.indices[e];
              total += static_cast<double>(larger(s.values[e] - cover.current[i], 0.0f) * cover.weights[i]);
            }
            out[r] = total;
          }
        },
        16);
  }
  void take(int64_t j, int32_t number, Covered& cover) {
    for (int64_t e = s.indptr[j]; e < s.indptr[j + 1]; ++e) {
      const int64_t i = s.indices[e];
      if (!(s.values[e] > cover.current[i])) continue;
      cover.current[i] = s.values[e];
      cover.owner[i] = number;
    }
  }
  void settle(Covered&) {}
  void values(int64_t j, float* out) {
    memset(out, 0, static_cast<size_t>(s.rows) * sizeof(float));
    for (int64_t e = s.indptr[j]; e < s.indptr[j + 1]; ++e) out[s.indices[e]] = s.values[e];
  }
  float own(int64_t j) const {
    for (int64_t e = s.indptr[j]; e < s.indptr[j + 1]; ++e) {
      if (s.indices[e] == j) return s.values[e];
    }
    return 0.0f;
  }
};

// work(source) with the form and kind of `s`.
template <class Work>
void with_source(const CoverSource& s, int threads, const Work& work) {
  if (s.form == kFromLists) {
    FromLists source(s, threads);
    work(source);
  } else if (s.form == kFromMatrix) {
    with_rows(s.dtype, s.matrix, [&](auto from) {
      FromMatrix<std::remove_const_t<std::remove_pointer_t<decltype(from)>>> source(s, threads);
      work(source);
    });
  } else {
    switch (s.kind) {
      case kSquared: {
        FromPoints<kSquared> source(s, threads);
        return work(source);
      }
      case kDistance: {
        FromPoints<kDistance> source(s, threads);
        return work(source);
      }
      case kCosine01: {
        FromPoints<kCosine01> source(s, threads);
        return work(source);
      }
      case kCosine2: {
        FromPoints<kCosine2> source(s, threads);
        return work(source);
      }
      case kGaussian: {
        FromPoints<kGaussian> source(s, threads);
        return work(source);
      }
      default: {
        FromPoints<kInner> source(s, threads);
        return work(source);
      }
    }
  }
}

template <int kind>
double floor_of(const CoverSource& s, const FromPoints<kind>& source) {
  if (kind == kCosine01) return -1.0;
  if (!is_distance(kind)) return 0.0;
  if (s.bound >= 0.0) return -s.bound;
  const double square = largest_square(source.z, s.order != nullptr, source.threads);
  return kind == kSquared ? -square : -static_cast<double>(root(static_cast<float>(square)));
}
template <class Source>
double floor_of(const CoverSource&, const Source&) {
  return 0.0;
}

}  // namespace TF_NS
