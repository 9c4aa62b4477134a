// Greedy choice by one column of similarities per pick, on the CPU: graph cut, log-determinants, herding. Bound by reading the points once
// for each pick; log-determinants also by reading the Cholesky factor so far.
#pragma once

#include "coverage_sources.hpp"

namespace TF_NS {

constexpr float kSpanned = 3.8e-6f;  // of the largest diagonal: what float32 similarities leave of a candidate that the picks span

// The largest score over free places, of equals the smallest row; `update(i)` brings the score of place i up to date first.
struct Chosen {
  double score;
  int64_t row, place;
};

template <class Row, class Update>
Chosen choose_best(int64_t places, int threads, const Room<char>& free, const Row& row, const Update& update) {
  const int64_t chunks = (places + kChunkRows - 1) / kChunkRows;
  Vector<Chosen> best(static_cast<size_t>(chunks));
  parallel_ranges(chunks, threads, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const int64_t begin = c * kChunkRows, end = begin + kChunkRows < places ? begin + kChunkRows : places;
      Chosen top = {0.0, -1, -1};
      update(begin, end);
      for (int64_t i = begin; i < end; ++i) {
        if (!free[i]) continue;
        const double score = update.score(i);
        const bool better = top.row < 0 || score > top.score || (score == top.score && row(i) < top.row);
        if (better) top = {score, row(i), i};
      }
      best[static_cast<size_t>(c)] = top;
    }
  });
  Chosen top = {0.0, -1, -1};
  for (const Chosen& here : best) {
    if (here.row < 0) continue;
    if (top.row < 0 || here.score > top.score || (here.score == top.score && here.row < top.row)) top = here;
  }
  return top;
}

struct GraphCut {
  double* gain;
  const float* column;  // null: nothing to subtract
  double scale, floor;
  void operator()(int64_t begin, int64_t end) const {
    if (column == nullptr) return;
    for (int64_t i = begin; i < end; ++i) gain[i] -= 2.0 * scale * (static_cast<double>(column[i]) - floor);
  }
  double score(int64_t i) const { return gain[i]; }
};

struct LogDet {
  double* left;         // s_ii - s_iS S^-1 s_Si
  const float* column;  // of the last pick, or null
  float* factor;        // [made][rows], the rows of the Cholesky factor; row `made` is written
  int64_t rows, made, place;
  double scale, floor, pivot, least;
  void operator()(int64_t begin, int64_t end) const {
    if (column == nullptr) return;
    double sum[kChunkRows];
    for (int64_t i = begin; i < end; ++i) sum[i - begin] = scale * (static_cast<double>(column[i]) - floor);
    for (int64_t b = 0; b < made; ++b) {
      const float* row = factor + b * rows;
      const double own = static_cast<double>(row[place]);
      for (int64_t i = begin; i < end; ++i) sum[i - begin] -= own * static_cast<double>(row[i]);
    }
    float* to = factor + made * rows;
    for (int64_t i = begin; i < end; ++i) {
      const double entry = sum[i - begin] / pivot;
      to[i] = static_cast<float>(entry);
      left[i] -= entry * entry;
    }
  }
  double score(int64_t i) const { return left[i] > least ? left[i] : 0.0; }
};

struct Herd {
  float* away;  // 2 <z, missing> - |z|^2, made by visit()
  void operator()(int64_t, int64_t) const {}
  double score(int64_t i) const { return static_cast<double>(away[i]); }
};

template <class Source>
void walk_similarities(const WalkArgs& a, Source& source) {
  const double floor = floor_of(a.source, source), scale = cover_scale(a.source.form, a.source.kind);
  const int64_t rows = source.rows();
  const bool cut = a.walk == kGraphCut;
  Room<double> score;
  Room<float> column, factor;
  Room<char> free;
  score.take(rows);
  free.zeros(rows);
  column.take(rows);
  if (!cut) factor.take((a.k + a.initials) * rows);
  double top = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    score[i] = 0.0;
    if (!source.real(i)) continue;
    free[i] = 1;
    const int64_t j = source.row(i);
    score[i] = cut ? a.start[j] : scale * (static_cast<double>(source.own(j)) - floor) + a.parameter;
    top = score[i] > top ? score[i] : top;
  }
  const double least = static_cast<double>(kSpanned) * top;
  int64_t made = 0;
  const auto row = [&](int64_t i) { return source.row(i); };
  // Takes j (-1: nothing) and finds the next.
  const auto next = [&](int64_t j) {
    const bool spanned = !cut && j >= 0 && !(score[source.place(j)] > least);
    const float* with = j < 0 || spanned ? nullptr : column.data();
    if (with != nullptr) source.values(j, column.data());
    if (cut) return choose_best(rows, a.threads, free, row, GraphCut{score.data(), with, scale, floor});
    const int64_t place = j < 0 ? 0 : source.place(j);
    const double pivot = with == nullptr ? 1.0 : __builtin_sqrt(score[place]);
    const LogDet update = {score.data(), with, factor.data(), rows, made, place, scale, floor, pivot, least};
    const Chosen found = choose_best(rows, a.threads, free, row, update);
    made += with != nullptr;
    return found;
  };
  for (int64_t p = 0; p < a.initials; ++p) free[source.place(a.initial[p])] = 0;
  Chosen best = next(-1);
  for (int64_t p = 0; p < a.initials; ++p) best = next(a.initial[p]);
  for (int64_t p = 0; p < a.k; ++p) {
    a.indices[p] = best.row;
    a.gains[p] = cut ? best.score : __builtin_log(best.score);
    free[best.place] = 0;
    if (p + 1 < a.k) best = next(best.row);
  }
}

inline void walk_herding(const WalkArgs& a, FromPoints<kInner>& source) {
  const int64_t d = a.source.d;
  Room<float> away, missing;
  Room<double> sum;
  Room<char> free;
  away.take(source.rows());
  free.zeros(source.rows());
  for (int64_t i = 0; i < source.z.n; ++i) free[i] = 1;
  missing.take(d);
  sum.zeros(d);
  for (int64_t p = 0; p < a.k; ++p) {
    for (int64_t k = 0; k < d; ++k) missing[k] = static_cast<float>(static_cast<double>(p + 1) * a.start[k] - sum[k]);
    source.visit(missing.data(), 0.0f,
                 [&](int64_t at, V dot) { store_lanes(away.data() + at, dot + dot - load_lanes(source.z.norms.data() + at)); });
    const Chosen best = choose_best(source.rows(), a.threads, free, [&](int64_t i) { return source.row(i); }, Herd{away.data()});
    a.indices[p] = best.row;
    free[best.place] = 0;
    fetch_point(source.z, best.place, missing.data());
    for (int64_t k = 0; k < d; ++k) sum[k] += static_cast<double>(missing[k]);
  }
}

inline void walk(const WalkArgs& a) {
  if (a.walk == kHerding) {
    FromPoints<kInner> source(a.source, a.threads);
    return walk_herding(a, source);
  }
  with_source(a.source, a.threads, [&](auto& source) { walk_similarities(a, source); });
}

}  // namespace TF_NS
