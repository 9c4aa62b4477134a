// Low-rank passes on the CPU: traversal only. Compiled once per instruction set (CMakeLists.txt), into a namespace of its own.
//
// A thread takes groups of 16 rows, draws their U once, and walks them in blocks of 4 rows by 512 columns. Inside, 4 rows by 2 registers
// of columns are multiplied at a time: eight independent chains, which is what hides the latency of an fma. V is read transposed, so that
// its rows are registers of columns; it stays in the cache while W streams through.
#include "lowrank.hpp"

#include "../core/parallel.hpp"
#include "../core/tiles.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kGroup = 16;           // rows whose U is drawn together
constexpr int64_t kRows = 4;             // rows of a block
constexpr int64_t kColumns = 512;        // columns of a block
constexpr int64_t kHeldRank = kMaxRank;  // terms * rank up to which the U of a group is kept
constexpr int64_t kMostTerms = 64;
constexpr int64_t kTile = 2048;

// Rows of U, for one term after the other.
struct Factors {
  const float* u[kMostTerms];
  alignas(64) float held[kGroup * kHeldRank + kMostTerms * 2 * kAligned];
};

const float* draw_factor(const LowRankArgs& a, const LowRankMatrix& w, int64_t k, int64_t row, int64_t rows, float* at) {
  const Sequence s = make_sequence(a.terms[k].seed, w.stream, kLowRankU, a.terms[k].query);
  return draw(s, kGaussian, static_cast<uint64_t>(row * w.rank), rows * w.rank, at);
}

// acc[row][column] = fma(coef, u[row] . v[column], acc[row][column]) for ROWS rows and REGISTERS registers of columns.
template <int ROWS, int REGISTERS>
TF_HD void add_block(float* acc, int64_t stride, const float* u, int64_t rank, const float* vt, int64_t vt_stride, F coef) {
  F s[ROWS][REGISTERS];
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < REGISTERS; ++c) s[r][c] = splat<F>(0.0f);
  }
  for (int64_t l = 0; l < rank; ++l) {
    F v[REGISTERS];
    for (int c = 0; c < REGISTERS; ++c) v[c] = load(vt + l * vt_stride + c * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const F factor = splat<F>(u[r * rank + l]);
      for (int c = 0; c < REGISTERS; ++c) add_rank(factor, v[c], s[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < REGISTERS; ++c) {
      float* at = acc + r * stride + c * kLanes;
      store(at, fma(coef, s[r][c], load(at)));
    }
  }
}

template <int ROWS>
void add_rows(float* acc, int64_t stride, const float* u, int64_t rank, const float* vt, int64_t vt_stride, float coef, int64_t columns) {
  int64_t j = 0;
  const F c = splat<F>(coef);
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) add_block<ROWS, 2>(acc + j, stride, u, rank, vt + j, vt_stride, c);
  for (; j + kLanes <= columns; j += kLanes) add_block<ROWS, 1>(acc + j, stride, u, rank, vt + j, vt_stride, c);
  for (; j < columns; ++j) {
    for (int r = 0; r < ROWS; ++r) {
      float s = 0.0f;
      for (int64_t l = 0; l < rank; ++l) add_rank(u[r * rank + l], vt[l * vt_stride + j], s);
      acc[r * stride + j] = fma(coef, s, acc[r * stride + j]);
    }
  }
}

void add_product(float* acc, int64_t stride, int64_t rows, const float* u, int64_t rank, const float* vt, int64_t vt_stride, double coef,
                 int64_t columns) {
  const float c = static_cast<float>(coef);
  if (rows == kRows) return add_rows<kRows>(acc, stride, u, rank, vt, vt_stride, c, columns);
  for (int64_t r = 0; r < rows; ++r) add_rows<1>(acc + r * stride, stride, u + r * rank, rank, vt, vt_stride, c, columns);
}

void add_product(double* acc, int64_t stride, int64_t rows, const float* u, int64_t rank, const float* vt, int64_t vt_stride, double coef,
                 int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; ++j) {
      double s = 0.0;
      for (int64_t l = 0; l < rank; ++l) add_rank(static_cast<double>(u[r * rank + l]), static_cast<double>(vt[l * vt_stride + j]), s);
      acc[r * stride + j] = fma(coef, s, acc[r * stride + j]);
    }
  }
}

template <class T>
void store_row(const LowRankArgs& a, const LowRankMatrix& w, int64_t row, int64_t column, const math_t<T>* acc, int64_t n) {
  T* at = static_cast<T*>(w.data) + row * w.row_stride + column * w.column_stride;
  if constexpr (!kStoresMath<T>) {
    if (a.stochastic) {
      alignas(64) uint32_t words[rounding_room(kColumns)];
      const Sequence s = make_sequence(a.rounding_seed, w.stream, kRounding, a.rounding_query);
      const half_of_a_word* r16 = draw_rounding(s, static_cast<uint64_t>(row * w.columns + column), n, words);
      for (int64_t i = 0; i < n; ++i) at[i * w.column_stride] = Round<T>::stochastic(acc[i], r16[i]);
      return;
    }
  }
  narrow_row(acc, n, at, w.column_stride);
}

// A block of at most 4 rows by 512 columns; `u` points to these rows' factors, for each term.
template <class T, class UAt>
void block(const LowRankArgs& a, const LowRankMatrix& w, int64_t row, int64_t rows, int64_t column, int64_t columns, const UAt& u_at) {
  using M = math_t<T>;
  const M decay = static_cast<M>(a.decay);
  alignas(64) M buffer[kRows * kColumns];
  M* acc = buffer;
  int64_t stride = kColumns;
  bool in_place = false;
  if constexpr (kStoresMath<T>) {
    in_place = w.column_stride == 1 && w.source == w.data && decay == M(1);
    if (in_place) {
      acc = static_cast<M*>(w.data) + row * w.row_stride + column;
      stride = w.row_stride;
    }
  }
  if (!in_place) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = static_cast<const T*>(w.source) + (row + r) * w.source_row_stride + column * w.source_column_stride;
      widen_row(from, w.source_column_stride, columns, acc + r * stride);
      if (decay != M(1)) {
        for (int64_t j = 0; j < columns; ++j) acc[r * stride + j] *= decay;
      }
    }
  }
  for (int64_t k = 0; k < a.n_terms; ++k) {
    add_product(acc, stride, rows, u_at(k), w.rank, w.vt + column, w.columns, a.terms[k].coef, columns);
  }
  if (in_place) return;
  for (int64_t r = 0; r < rows; ++r) store_row<T>(a, w, row + r, column, acc + r * stride, columns);
}

template <class T>
void group(const LowRankArgs& a, const LowRankMatrix& w, int64_t first, int64_t count, Factors& f) {
  const bool held = w.u != nullptr || a.n_terms * w.rank <= kHeldRank;
  if (w.u != nullptr) {
    f.u[0] = w.u + first * w.rank;
  } else if (held) {
    float* at = f.held;
    for (int64_t k = 0; k < a.n_terms; ++k, at += drawn_room(kGroup * w.rank)) f.u[k] = draw_factor(a, w, k, first, count, at);
  }
  for (int64_t row = 0; row < count; row += kRows) {
    const int64_t rows = smaller(kRows, count - row);
    const auto u_at = [&](int64_t k) { return held ? f.u[k] + row * w.rank : draw_factor(a, w, k, first + row, rows, f.held); };
    for (int64_t column = 0; column < w.columns; column += kColumns) {
      block<T>(a, w, first + row, rows, column, smaller(kColumns, w.columns - column), u_at);
    }
  }
}

void lowrank(const LowRankArgs& a) {
  int64_t total = 0, elements = 0;
  for (int64_t t = 0; t < a.count; ++t) {
    total += pieces_of(a.matrices[t].rows, kGroup);
    elements += a.matrices[t].rows * a.matrices[t].columns;
  }
  if (elements == 0) return;
  const int64_t grain = larger(1, 32768 / larger(1, elements / total));
  parallel_ranges(
      total, a.threads,
      [&](int64_t begin, int64_t end) {
        Factors f;
        int64_t before = 0;
        for (int64_t t = 0; t < a.count && before < end; ++t) {
          const LowRankMatrix& w = a.matrices[t];
          const int64_t here = pieces_of(w.rows, kGroup);
          for (int64_t g = larger(begin - before, 0); g < smaller(end - before, here); ++g) {
            with_type(a.dtype, [&](auto type) { group<decltype(type)>(a, w, g * kGroup, smaller(kGroup, w.rows - g * kGroup), f); });
          }
          before += here;
        }
      },
      grain);
}

template <class Visit>
void each_piece(const FactorArgs& a, const Visit& visit) {
  parallel_ranges(
      pieces_of(a.n, kTile), a.threads,
      [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) visit(tile * kTile, smaller(kTile, a.n - tile * kTile));
      },
      16);
}

void factor(const FactorArgs& a) {
  const Sequence s = make_sequence(a.terms[0].seed, a.stream, a.purpose, a.terms[0].query);
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    each_piece(a, [&](int64_t first, int64_t n) {
      alignas(64) float z[drawn_room(kTile)];
      draw(s, kGaussian, static_cast<uint64_t>(first), n, z);
      T* out = static_cast<T*>(a.out) + first;
      for (int64_t i = 0; i < n; ++i) out[i] = Round<T>::nearest(static_cast<math_t<T>>(z[i]));
    });
  });
}

void project(const FactorArgs& a) {
  each_piece(a, [&](int64_t first, int64_t n) {
    alignas(64) float z[drawn_room(kTile)], acc[kTile];
    for (int64_t i = 0; i < n; ++i) acc[i] = 0.0f;
    for (int64_t k = 0; k < a.n_terms; ++k) {
      const Sequence s = make_sequence(a.terms[k].seed, a.stream, a.purpose, a.terms[k].query);
      draw(s, kGaussian, static_cast<uint64_t>(first), n, z);
      const float coef = static_cast<float>(a.terms[k].coef);
      for (int64_t i = 0; i < n; ++i) acc[i] = fma(coef, z[i], acc[i]);
    }
    for (int64_t i = 0; i < n; ++i) static_cast<float*>(a.out)[first + i] = acc[i];
  });
}

}  // namespace

extern const tenfold::LowRankKernels lowrank_kernels;
const tenfold::LowRankKernels lowrank_kernels = {lowrank, factor, project};

}  // namespace TF_NS
