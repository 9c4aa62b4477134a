// Perturbed weights on the CPU: traversal only. Compiled once per instruction set (CMakeLists.txt), into a namespace of its own.
//
// z is drawn for a tile of elements into a buffer that stays in the first-level cache, and added to W once for each output: the weights of
// both signs, or of all copies of a query, come from one generation.
#include "dual.hpp"

#include "../core/parallel.hpp"
#include "../core/tiles.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kTile = 2048;
constexpr int64_t kGrain = 16;

// A tile of z with room for the registers around it.
struct Directions {
  alignas(64) float z[drawn_room(kTile)];
  const float* draw_rounded(const PerturbedWeight& w, uint64_t first, int64_t n) {
    const Sequence s = make_sequence(w.seed, w.stream, w.dist, w.query);
    const float* at = draw(s, w.dist, first, n, z);
    if (w.z_round != kNoRounding) {
      float* own = z + (at - z);
      for (int64_t i = 0; i < n; ++i) own[i] = round_z(own[i], w.z_round);
    }
    return at;
  }
};

template <class T, class O>
void perturb_row(const T* w, int64_t stride, const float* z, double coef, int64_t n, O* out) {
  using M = math_t<T>;
  const M c = static_cast<M>(coef);
  int64_t i = 0;
  if constexpr (sizeof(M) == sizeof(float)) {
    const F factor = splat<F>(c);
    for (; stride == 1 && i + kLanes <= n; i += kLanes) store(out + i, fma(factor, load(z + i), load(w + i)));
  }
  for (; i < n; ++i) out[i] = perturbed<T, O>(w[i * stride], z[i], c);
}

// Calls visit(row, column, count) for pieces of rows that cover elements [first, first + n).
template <class Visit>
void each_row(int64_t columns, int64_t first, int64_t n, const Visit& visit) {
  int64_t row = first / columns, column = first % columns;
  for (int64_t at = 0; at < n;) {
    const int64_t count = smaller(columns - column, n - at);
    visit(row, column, at, count);
    at += count;
    column = 0;
    ++row;
  }
}

template <class T, class O>
void fill_tile(const FillArgs& a, int64_t first, int64_t n, int64_t at, Directions& d) {
  const PerturbedWeight& w = a.weight;
  const float* z = d.draw_rounded(w, static_cast<uint64_t>(first), n);
  const T* data = static_cast<const T*>(w.data);
  const bool dense = w.column_stride == 1 && w.row_stride == w.columns;
  for (int64_t g = 0; g < a.n_outs; ++g) {
    O* out = static_cast<O*>(a.outs[g].data) + at;
    if (dense) {
      perturb_row(data + first, 1, z, a.outs[g].coef, n, out);
      continue;
    }
    each_row(w.columns, first, n, [&](int64_t row, int64_t column, int64_t done, int64_t count) {
      perturb_row(data + row * w.row_stride + column * w.column_stride, w.column_stride, z + done, a.outs[g].coef, count, out + done);
    });
  }
}

// Tiles end at multiples of their size counted from element 0, so that only the first and the last draw what they do not use.
template <class T, class O>
void fill_as(const FillArgs& a) {
  const int64_t first = a.row * a.weight.columns;
  const int64_t end = first + a.rows * a.weight.columns;
  const int64_t before = first / kTile;
  parallel_ranges(
      end > first ? pieces_of(end, kTile) - before : 0, a.threads,
      [&](int64_t begin, int64_t stop) {
        Directions d;
        for (int64_t tile = before + begin; tile < before + stop; ++tile) {
          const int64_t from = larger(tile * kTile, first);
          fill_tile<T, O>(a, from, smaller((tile + 1) * kTile, end) - from, from - first, d);
        }
      },
      kGrain);
}

void fill(const FillArgs& a) {
  with_type(a.weight.dtype, [&](auto type) {
    using T = decltype(type);
    if (a.out_dtype == a.weight.dtype) return fill_as<T, T>(a);
    if constexpr (!kStoresMath<T>) fill_as<T, float>(a);
  });
}

template <class T>
void embed_token(const EmbedArgs& a, int64_t t, Directions& d) {
  const PerturbedWeight& w = a.weight;
  const T* data = static_cast<const T*>(w.data);
  for (int64_t column = 0; column < w.columns; column += kTile) {
    const int64_t n = smaller(kTile, w.columns - column);
    const float* z = nullptr;
    int64_t drawn = -1;
    for (int64_t g = 0; g < a.n_outs; ++g) {
      const int64_t row = a.outs[g].ids[t];
      if (row != drawn) z = d.draw_rounded(w, static_cast<uint64_t>(row * w.columns + column), n);
      drawn = row;
      perturb_row(data + row * w.row_stride + column * w.column_stride, w.column_stride, z, a.outs[g].coef, n,
                  static_cast<T*>(a.outs[g].data) + t * w.columns + column);
    }
  }
}

void embed(const EmbedArgs& a) {
  if (a.weight.columns == 0) return;
  with_type(a.weight.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(
        a.tokens, a.threads,
        [&](int64_t begin, int64_t end) {
          Directions d;
          for (int64_t t = begin; t < end; ++t) embed_token<T>(a, t, d);
        },
        larger(1, 32768 / a.weight.columns));
  });
}

}  // namespace

extern const tenfold::DualKernels dual_kernels;
const tenfold::DualKernels dual_kernels = {fill, embed};

}  // namespace TF_NS
