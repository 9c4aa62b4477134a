// Kernel discrepancies on the CPU. Compiled once per instruction set.
//
// The kernel matrix is made in tiles of kTile x kTile and never leaves the second-level cache. A tile is three small matrix products: the
// inner products of two blocks of points, and, for the gradient, the weighted kernel slopes times either block. The matrix is symmetric, so
// each unordered pair of blocks is visited once and serves both. Two pairs of blocks may run at the same time if they share no block: the
// rounds of a tournament (the circle method), in which every block meets every other once. A block's sums are therefore made in the order
// of the rounds, whatever the number of threads, and no thread needs a gradient of its own.
#include "mmd.hpp"

#include "../core/parallel.hpp"
#include "../core/reduce.hpp"
#include "../logprob/rows_lanes.hpp"

#include <cstdlib>
#include <new>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kTile = 128;
constexpr int64_t kLaneCount = kLanes;
constexpr int64_t kColumnBlock = 64;     // columns of v at a time where each has its own value
constexpr double kParallelWork = 2.0e6;  // multiplications worth a thread
#if defined(TF_ISA_AVX512) || defined(TF_ISA_NEON)
constexpr int kRows = 6, kVectors = 4;  // 24 sums in 32 registers
#else
constexpr int kRows = 4, kVectors = 2;  // 8 sums in 16 registers
#endif

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t padded(int64_t n) { return (n + kLaneCount - 1) / kLaneCount * kLaneCount; }

template <class T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64;
    data = static_cast<T*>(aligned_alloc(64, bytes));
    if (data == nullptr) throw std::bad_alloc();
    memset(data, 0, bytes);
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

// ---- small matrix products ----------------------------------------------------------------------------------------------------

// c[r][j] (+)= sum_k a[r * a_row + k * a_step] b[k][j]
struct Product {
  int64_t depth;
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool add;
};

template <int rows, int vectors>
void product_block(const Product& p, const float* a, const float* b, float* c) {
  V sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[r][j] = p.add ? load_lanes(c + r * p.c_row + j * kLaneCount) : V{};
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    V lanes[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) lanes[j] = load_lanes(b + k * p.b_row + j * kLaneCount);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const V factor = spread(a[r * p.a_row + k * p.a_step]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[r][j] = multiply_add(factor, lanes[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store_lanes(c + r * p.c_row + j * kLaneCount, sum[r][j]);
  }
}

template <int vectors>
void product_columns(const Product& p, int64_t rows, int64_t column) {
  int64_t r = 0;
  const float* b = p.b + column;
  float* c = p.c + column;
  for (; r + kRows <= rows; r += kRows) product_block<kRows, vectors>(p, p.a + r * p.a_row, b, c + r * p.c_row);
  for (; r + 2 <= rows; r += 2) product_block<2, vectors>(p, p.a + r * p.a_row, b, c + r * p.c_row);
  for (; r < rows; ++r) product_block<1, vectors>(p, p.a + r * p.a_row, b, c + r * p.c_row);
}

// `columns` is a multiple of the lanes.
void product(const Product& p, int64_t rows, int64_t columns) {
  int64_t j = 0;
  for (; j + kVectors * kLaneCount <= columns; j += kVectors * kLaneCount) product_columns<kVectors>(p, rows, j);
  for (; j < columns; j += kLaneCount) product_columns<1>(p, rows, j);
}

// ---- points -------------------------------------------------------------------------------------------------------------------

// A block of points of one side (or one class of one side).
struct Tile {
  int64_t first, count, width;  // width: count, padded to whole vectors
  int64_t across;               // where its transposed points [d][width] begin
  int64_t lanes;                // where its padded norms and weights begin
  int side;
};

// Points of one problem, centred: by rows, padded with zeros to whole vectors, and tile by tile transposed.
struct Points {
  float* rows;  // [n][stride]
  int64_t stride, d;
  float* across;
  float* norms;
};

int64_t cut(int64_t first, int64_t n, int64_t d, int side, Tile* tiles, int64_t& across, int64_t& lanes) {
  int64_t made = 0;
  for (int64_t at = 0; at < n; at += kTile) {
    const int64_t count = smaller(kTile, n - at);
    const int64_t width = padded(count);
    tiles[made++] = {first + at, count, width, across, lanes, side};
    across += d * width;
    lanes += width;
  }
  return made;
}

void fill_tile(const Points& z, const Tile& tile) {
  float* to = z.across + tile.across;
  for (int64_t j = 0; j < tile.count; ++j) {
    const float* row = z.rows + (tile.first + j) * z.stride;
    float norm = 0.0f;
    for (int64_t k = 0; k < z.d; ++k) {
      to[k * tile.width + j] = row[k];
      norm += row[k] * row[k];
    }
    z.norms[tile.lanes + j] = norm;
  }
}

template <class T>
void add_rows(const T* from, int64_t n, int64_t d, double* sums) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < d; ++k) sums[k] += static_cast<double>(to_math(from[i * d + k]));
  }
}

template <class T>
void copy_centred(const T* from, int64_t n, int64_t d, const double* mean, float* to, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < d; ++k) {
      to[i * stride + k] = static_cast<float>(static_cast<double>(to_math(from[i * d + k])) - mean[k]);
    }
  }
}

template <class Work>
void with_type(int dtype, const void* from, const Work& work) {
  if (dtype == kBFloat16) {
    work(static_cast<const bfloat16*>(from));
  } else if (dtype == kFloat16) {
    work(static_cast<const float16*>(from));
  } else {
    work(static_cast<const float*>(from));
  }
}

void centre(const void* x, int64_t n, const void* y, int64_t m, int64_t d, int dtype, double* mean, float* rows, int64_t stride) {
  for (int64_t k = 0; k < d; ++k) mean[k] = 0.0;
  with_type(dtype, x, [&](auto p) { add_rows(p, n, d, mean); });
  with_type(dtype, y, [&](auto p) { add_rows(p, m, d, mean); });
  for (int64_t k = 0; k < d; ++k) mean[k] /= static_cast<double>(n + m);
  with_type(dtype, x, [&](auto p) { copy_centred(p, n, d, mean, rows, stride); });
  with_type(dtype, y, [&](auto p) { copy_centred(p, m, d, mean, rows + n * stride, stride); });
}

// The mean of |z_i - z_j|^2 over i != j: 2 (n sum |z|^2 - |sum z|^2) / (n^2 - n).
double mean_distance(const float* rows, int64_t n, int64_t d, int64_t stride, double* sums) {
  if (n < 2) return 0.0;
  double squares = 0.0;
  for (int64_t k = 0; k < d; ++k) sums[k] = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    double row = 0.0;
    for (int64_t k = 0; k < d; ++k) {
      const double value = static_cast<double>(rows[i * stride + k]);
      sums[k] += value;
      row += value * value;
    }
    squares += row;
  }
  double rest = 0.0;
  for (int64_t k = 0; k < d; ++k) rest += sums[k] * sums[k];
  const double count = static_cast<double>(n);
  return 2.0 * (count * squares - rest) / (count * count - count);
}

double at_least(double value, double floor) { return value < floor ? floor : value; }  // NaN stays

// ---- one tile of the kernel matrix ----------------------------------------------------------------------------------------------

void inner_products(const Points& z, const Tile& a, const Tile& b, float* out) {
  product({z.d, z.rows + a.first * z.stride, z.stride, 1, z.across + b.across, b.width, out, kTile, false}, a.count, b.width);
}

TF_HD V distance(V products, float norm, V norms) {
  const V d = multiply_add(products, spread(-2.0f), norms + norm);
  return larger(d, V{});  // keeps NaN
}

TF_HD V clamped(V t) {
  return choose(less(t, spread(kClampLow)), spread(kClampLow), choose(less(spread(kClampHigh), t), spread(kClampHigh), t));
}
TF_HD V keep_inside(V t, V e) { return choose(less(t, spread(kClampLow)), V{}, choose(less(spread(kClampHigh), t), V{}, e)); }

TF_HD void kernel_lanes(V d, const Inverse& inverse, V& total, V& slope) {
  const auto exp = [](V t) { return exp_lanes(t); };
  if (inverse.doubling) {
    doubling_kernels<V>(d, inverse, exp, total, slope);
  } else {
    any_kernels<V>(d, inverse, exp, [](V t) { return clamped(t); }, [](V t, V e) { return keep_inside(t, e); }, total, slope);
  }
}

// Gradient sums of a block: [n][stride] of sum_j G_ij z_j, and [n] of sum_j G_ij.
struct Sums {
  float* moved;
  float* total;
};

// Adds tile G (rows a, columns b) to both blocks' sums; `columns` are the sums of its columns.
void add_gradient(const Points& z, const Tile& a, const Tile& b, bool diagonal, const float* g, const float* columns, const Sums& to) {
  product({b.count, g, kTile, 1, z.rows + b.first * z.stride, z.stride, to.moved + a.first * z.stride, z.stride, true}, a.count, z.stride);
  if (diagonal) return;
  product({a.count, g, 1, kTile, z.rows + a.first * z.stride, z.stride, to.moved + b.first * z.stride, z.stride, true}, b.count, z.stride);
  for (int64_t j = 0; j < b.count; ++j) to.total[b.first + j] += columns[j];
}

// -4 ((sum_j G_ij) z_i - sum_j G_ij z_j)
void write_gradient(const Points& z, const Sums& sums, int64_t row, float* to) {
  const float* here = z.rows + row * z.stride;
  const float* moved = sums.moved + row * z.stride;
  for (int64_t k = 0; k < z.d; ++k) to[k] = -4.0f * (sums.total[row] * here[k] - moved[k]);
}

// ---- the tournament -----------------------------------------------------------------------------------------------------------------

// Round 0 holds the pairs (t, t); rounds 1 .. T' - 1 the others, T' = T or T + 1 even. Pair `k` of a round; false if it is a bye.
bool meeting(int64_t tiles, int64_t round, int64_t k, int64_t& a, int64_t& b) {
  if (round == 0) {
    a = b = k;
    return true;
  }
  const int64_t ring = (tiles + tiles % 2) - 1;
  const int64_t turn = round - 1;
  if (k == 0) {
    a = turn;
    b = ring;
  } else {
    a = (turn + k) % ring;
    b = (turn + ring - k) % ring;
  }
  if (a > b) {
    const int64_t swap = a;
    a = b;
    b = swap;
  }
  return b < tiles;
}

int64_t rounds_of(int64_t tiles) { return tiles + tiles % 2; }
int64_t meetings_of(int64_t tiles, int64_t round) { return round == 0 ? tiles : (tiles + tiles % 2) / 2; }

// ---- sums over all pairs ---------------------------------------------------------------------------------------------------------------

struct Problem {
  Points z;
  const Tile* tiles;
  const float* lanes_v;   // padded weights by tile, one column
  const float* v;         // [n][columns padded] or null
  const float* v_across;  // by tile [columns][width] or null
  int64_t columns, v_stride;
  Inverse inverse;
  Sums sums;
  bool gradient;
  double within[2];  // factor of W within x and within y
  bool diagonal;     // pairs i == j count
  double* value;     // [tiles][values]
};

// The weighted total of tile (a, b); g becomes W * slope. One column of weights, or W from a product.
double weigh(const Problem& p, const Tile& a, const Tile& b, bool same, float scale, float* g, const float* w, float* columns) {
  double value = 0.0;
  for (int64_t j = 0; j < b.width; ++j) columns[j] = 0.0f;
  for (int64_t r = 0; r < a.count; ++r) {
    float* row = g + r * kTile;
    const float norm = p.z.norms[a.lanes + r];
    if (same) row[r] = norm;  // |z|^2 + |z|^2 - 2 |z|^2 = 0
    const V factor = spread(w == nullptr ? p.lanes_v[a.lanes + r] * scale : scale);
    const float* other = w == nullptr ? p.lanes_v + b.lanes : w + r * kTile;
    V sum = V{}, slopes = V{};
    float own_total = 0.0f, own_slope = 0.0f;
    for (int64_t j = 0; j < b.width; j += kLaneCount) {
      V total, slope;
      kernel_lanes(distance(load_lanes(row + j), norm, load_lanes(p.z.norms + b.lanes + j)), p.inverse, total, slope);
      const V weight = factor * load_lanes(other + j);
      V weighted = weight * slope;
      if (same && !p.diagonal && r >= j && r < j + kLaneCount) {
        own_total = (weight * total)[r - j];
        own_slope = weighted[r - j];
        weighted[r - j] = 0.0f;
      }
      sum = multiply_add(weight, total, sum);
      slopes = slopes + weighted;
      store_lanes(row + j, weighted);
      store_lanes(columns + j, load_lanes(columns + j) + weighted);
    }
    (void)own_slope;
    value += sum_lanes(sum) - static_cast<double>(own_total);
    if (p.gradient) p.sums.total[a.first + r] += static_cast<float>(sum_lanes(slopes));
  }
  return value;
}

// The plain kernel values of tile (a, b), for a value per column.
void fill_kernel(const Problem& p, const Tile& a, const Tile& b, bool same, float scale, float* g) {
  for (int64_t r = 0; r < a.count; ++r) {
    float* row = g + r * kTile;
    const float norm = p.z.norms[a.lanes + r];
    if (same) row[r] = norm;
    for (int64_t j = 0; j < b.width; j += kLaneCount) {
      V total, slope;
      kernel_lanes(distance(load_lanes(row + j), norm, load_lanes(p.z.norms + b.lanes + j)), p.inverse, total, slope);
      store_lanes(row + j, total * scale);
    }
    if (same && !p.diagonal) row[r] = 0.0f;
  }
}

void add_by_column(const Problem& p, const Tile& a, const Tile& b, double times, const float* g, double* value) {
  alignas(64) float part[kTile * kColumnBlock];
  for (int64_t first = 0; first < p.v_stride; first += kColumnBlock) {
    const int64_t width = smaller(kColumnBlock, p.v_stride - first);
    product({b.count, g, kTile, 1, p.v + b.first * p.v_stride + first, p.v_stride, part, kColumnBlock, false}, a.count, width);
    for (int64_t r = 0; r < a.count; ++r) {
      const float* own = p.v + (a.first + r) * p.v_stride + first;
      for (int64_t c = 0; c < smaller(width, p.columns - first); ++c) {
        value[first + c] += times * static_cast<double>(own[c]) * static_cast<double>(part[r * kColumnBlock + c]);
      }
    }
  }
}

void pass_pair(const Problem& p, int64_t first, int64_t second, bool by_column) {
  alignas(64) float g[kTile * kTile];
  alignas(64) float columns[kTile];
  const Tile &a = p.tiles[first], &b = p.tiles[second];
  const bool same = first == second;
  const double times = same ? 1.0 : 2.0;
  const double scale = a.side == b.side ? p.within[a.side] : 1.0;
  inner_products(p.z, a, b, g);
  if (by_column) {
    fill_kernel(p, a, b, same, static_cast<float>(scale), g);
    add_by_column(p, a, b, times, g, p.value + first * p.columns);
    return;
  }
  if (p.v == nullptr) {
    p.value[first] += times * weigh(p, a, b, same, static_cast<float>(scale), g, nullptr, columns);
  } else {
    alignas(64) float w[kTile * kTile];
    product({p.columns, p.v + a.first * p.v_stride, p.v_stride, 1, p.v_across + p.columns * b.lanes, b.width, w, kTile, false}, a.count,
            b.width);
    p.value[first] += times * weigh(p, a, b, same, static_cast<float>(scale), g, w, columns);
  }
  if (p.gradient) add_gradient(p.z, a, b, same, g, columns, p.sums);
}

// Everything that one problem of the batch needs, in one piece of memory per kind.
struct Layout {
  int64_t points, stride, across, lanes, tiles, v_stride;
};

void pairs(const PairArgs& a) {
  const int64_t points = a.n + a.m;
  const int64_t most = (a.n + kTile - 1) / kTile + (a.m + kTile - 1) / kTile;
  Buffer<Tile> tiles(most);
  int64_t across = 0, lanes = 0;
  int64_t count = cut(0, a.n, a.d, 0, tiles.data, across, lanes);
  count += cut(a.n, a.m, a.d, 1, tiles.data + count, across, lanes);
  const int64_t stride = padded(a.d);
  const bool wide = a.columns > 1 || a.by_column;
  const int64_t v_stride = wide ? padded(a.columns) : 0;
  const int64_t v_sets = a.v_shared ? 1 : a.batch;
  const int64_t values = a.by_column ? a.columns : 1;

  Buffer<float> rows(a.batch * points * stride), transposed(a.batch * across), norms(a.batch * lanes);
  Buffer<float> v_lanes(wide ? 0 : v_sets * lanes), v_rows(v_sets * points * v_stride),
      v_across(wide && !a.by_column ? v_sets * a.columns * lanes : 0);
  Buffer<float> moved(a.gradient != nullptr ? a.batch * points * stride : 0), total(a.gradient != nullptr ? a.batch * points : 0);
  Buffer<double> value(a.batch * count * values);
  Buffer<Problem> problems(a.batch);
  Buffer<double> scratch(a.batch * a.d);

  for (int64_t set = 0; set < v_sets; ++set) {
    const float* v = a.v == nullptr ? nullptr : a.v + set * points * a.columns;
    for (int64_t t = 0; t < count; ++t) {
      const Tile& tile = tiles.data[t];
      const float usual = tile.side == 0 ? 1.0f / static_cast<float>(a.n) : -1.0f / static_cast<float>(a.m);
      for (int64_t j = 0; j < tile.count; ++j) {
        for (int64_t c = 0; c < a.columns; ++c) {
          const float weight = v == nullptr ? usual : v[(tile.first + j) * a.columns + c];
          if (!wide) v_lanes.data[set * lanes + tile.lanes + j] = weight;
          if (wide) v_rows.data[(set * points + tile.first + j) * v_stride + c] = weight;
          if (wide && !a.by_column) v_across.data[(set * lanes + tile.lanes) * a.columns + c * tile.width + j] = weight;
        }
      }
    }
  }

  const double pair_work = static_cast<double>(points) * static_cast<double>(points) * static_cast<double>(a.d + 8);
  const double wanted = pair_work * static_cast<double>(a.batch) / kParallelWork;
  const int threads = wanted < 2.0 ? 1 : a.threads;

  parallel_ranges(a.batch, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      Problem& p = problems.data[k];
      const int64_t set = a.v_shared ? 0 : k;
      p.z = {rows.data + k * points * stride, stride, a.d, transposed.data + k * across, norms.data + k * lanes};
      const int64_t bytes = a.dtype == kFloat32 ? 4 : 2;
      centre(static_cast<const char*>(a.x) + k * a.n * a.d * bytes, a.n, static_cast<const char*>(a.y) + k * a.m * a.d * bytes, a.m, a.d,
             a.dtype, scratch.data + k * a.d, p.z.rows, stride);
      for (int64_t t = 0; t < count; ++t) fill_tile(p.z, tiles.data[t]);
      const double base = a.base_in != nullptr
                              ? a.base_in[k]
                              : at_least(mean_distance(p.z.rows, points, a.d, stride, scratch.data + k * a.d), a.widths.floor);
      a.base[k] = base;
      p.tiles = tiles.data;
      p.lanes_v = wide ? nullptr : v_lanes.data + set * lanes;
      p.v = wide ? v_rows.data + set * points * v_stride : nullptr;
      p.v_across = wide && !a.by_column ? v_across.data + set * lanes * a.columns : nullptr;
      p.columns = a.columns;
      p.v_stride = v_stride;
      p.inverse = inverse_widths(a.widths, base);
      p.gradient = a.gradient != nullptr;
      p.sums = {moved.data + (p.gradient ? k * points * stride : 0), total.data + (p.gradient ? k * points : 0)};
      p.within[0] = a.unbiased && a.n > 1 ? static_cast<double>(a.n) / static_cast<double>(a.n - 1) : 1.0;
      p.within[1] = a.unbiased && a.m > 1 ? static_cast<double>(a.m) / static_cast<double>(a.m - 1) : 1.0;
      p.diagonal = !a.unbiased;
      p.value = value.data + k * count * values;
    }
  });

  for (int64_t round = 0; round < rounds_of(count); ++round) {
    const int64_t each = meetings_of(count, round);
    parallel_ranges(a.batch * each, threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        int64_t first, second;
        if (meeting(count, round, item % each, first, second)) pass_pair(problems.data[item / each], first, second, a.by_column);
      }
    });
  }

  for (int64_t k = 0; k < a.batch; ++k) {
    for (int64_t c = 0; c < values; ++c) {
      double sum = 0.0;
      for (int64_t t = 0; t < count; ++t) sum += value.data[(k * count + t) * values + c];
      a.value[k * values + c] = sum;
    }
  }
  if (a.gradient == nullptr) return;
  parallel_ranges(a.batch * points, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Problem& p = problems.data[i / points];
      write_gradient(p.z, p.sums, i % points, a.gradient + i * a.d);
    }
  });
}

// ---- the distribution of distances ------------------------------------------------------------------------------------------------------

void count_digits(const Tile& a, const Tile& b, bool same, const Points& z, const PairDigitArgs& args, int64_t* counts) {
  alignas(64) float g[kTile * kTile];
  alignas(64) float d[kTile];
  inner_products(z, a, b, g);
  const uint32_t mask = (1u << args.bits) - 1u;
  const int above = args.shift + args.bits;
  for (int64_t r = 0; r < a.count; ++r) {
    float* row = g + r * kTile;
    const float norm = z.norms[a.lanes + r];
    if (same) row[r] = norm;
    for (int64_t j = 0; j < b.width; j += kLaneCount)
      store_lanes(d + j, distance(load_lanes(row + j), norm, load_lanes(z.norms + b.lanes + j)));
    for (int64_t j = 0; j < b.count; ++j) {
      const uint32_t bits = bits_of(d[j]);
      if (above >= 32 || bits >> above == args.prefix) counts[(bits >> args.shift) & mask] += same ? 1 : 2;
    }
  }
}

void digits(const PairDigitArgs& args) {
  const int64_t most = (args.n + kTile - 1) / kTile;
  Buffer<Tile> tiles(most);
  int64_t across = 0, lanes = 0;
  const int64_t count = cut(0, args.n, args.d, 0, tiles.data, across, lanes);
  const int64_t stride = padded(args.d);
  const int64_t bins = int64_t{1} << args.bits;
  Buffer<float> rows(args.n * stride), transposed(across), norms(lanes);
  Buffer<double> mean(args.d);
  Buffer<int64_t> by_tile(args.threads > 1 ? most * bins : bins);  // whole numbers: the order of addition does not matter
  const Points z = {rows.data, stride, args.d, transposed.data, norms.data};
  centre(args.x, args.n, nullptr, 0, args.d, args.dtype, mean.data, rows.data, stride);
  for (int64_t t = 0; t < count; ++t) fill_tile(z, tiles.data[t]);
  parallel_ranges(count, args.threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t* counts = by_tile.data + (args.threads > 1 ? i * bins : 0);
      for (int64_t j = i; j < count; ++j) count_digits(tiles.data[i], tiles.data[j], i == j, z, args, counts);
    }
  });
  for (int64_t bin = 0; bin < bins; ++bin) {
    args.counts[bin] = 0;
    for (int64_t i = 0; i < (args.threads > 1 ? count : 1); ++i) args.counts[bin] += by_tile.data[i * bins + bin];
  }
}

// ---- class by class -------------------------------------------------------------------------------------------------------------------

constexpr int kIntra = 0, kInter = 1;

// One problem: points in the order of their groups, source classes first, then target classes; ignored points are left out.
struct Classes {
  Points z;
  const float* ones;       // 1 for points, 0 for padding, by tile
  const Tile* tiles;       // of all groups
  const int64_t* tile_of;  // [2 C + 1]: where a group's tiles begin
  const int64_t* size;     // [2 C]
  const double* base;      // [C][C]
  const Widths* widths;
  int64_t classes;
  int64_t least;
  int64_t count[2];  // pairs of classes that count, intra and inter
  Sums sums[2];
  bool gradient;
  double* matrix;
};

bool counts(const Classes& p, int64_t a, int64_t b) { return p.size[a] >= p.least && p.size[p.classes + b] >= p.least; }

// Adds scale * slope to g and returns the sum of the kernel over the tile.
double add_term(const Classes& p, const float* d, const Tile& a, const Tile& b, const Inverse& inverse, float scale, float* g) {
  double value = 0.0;
  const float* ones = p.ones + b.lanes;
  for (int64_t r = 0; r < a.count; ++r) {
    V sum = V{};
    for (int64_t j = 0; j < b.width; j += kLaneCount) {
      V total, slope;
      kernel_lanes(load_lanes(d + r * kTile + j), inverse, total, slope);
      const V one = load_lanes(ones + j);
      sum = multiply_add(one, total, sum);
      float* to = g + r * kTile + j;
      store_lanes(to, multiply_add(one * scale, slope, load_lanes(to)));
    }
    value += sum_lanes(sum);
  }
  return value;
}

void add_tile_gradient(const Classes& p, const Tile& a, const Tile& b, bool same, int kind, const float* g) {
  alignas(64) float columns[kTile];
  for (int64_t j = 0; j < b.width; ++j) columns[j] = 0.0f;
  for (int64_t r = 0; r < a.count; ++r) {
    V slopes = V{};
    for (int64_t j = 0; j < b.width; j += kLaneCount) {
      const V here = load_lanes(g + r * kTile + j);
      slopes = slopes + here;
      store_lanes(columns + j, load_lanes(columns + j) + here);
    }
    p.sums[kind].total[a.first + r] += static_cast<float>(sum_lanes(slopes));
  }
  add_gradient(p.z, a, b, same, g, columns, p.sums[kind]);
}

void clear_tile(const Tile& a, const Tile& b, float* g) {
  for (int64_t r = 0; r < a.count; ++r) memset(g + r * kTile, 0, static_cast<size_t>(b.width) * sizeof(float));
}

void fill_distances(const Classes& p, const Tile& a, const Tile& b, bool same, float* d) {
  inner_products(p.z, a, b, d);
  for (int64_t r = 0; r < a.count; ++r) {
    float* row = d + r * kTile;
    const float norm = p.z.norms[a.lanes + r];
    if (same) row[r] = norm;
    for (int64_t j = 0; j < b.width; j += kLaneCount)
      store_lanes(row + j, distance(load_lanes(row + j), norm, load_lanes(p.z.norms + b.lanes + j)));
  }
}

// Points of one class of one side among themselves: they belong to the discrepancy with every class of the other side.
void pass_group(const Classes& p, int64_t group) {
  alignas(64) float d[kTile * kTile];
  alignas(64) float g[2][kTile * kTile];
  const bool source = group < p.classes;
  const double size = static_cast<double>(p.size[group]);
  for (int64_t i = p.tile_of[group]; i < p.tile_of[group + 1]; ++i) {
    for (int64_t j = i; j < p.tile_of[group + 1]; ++j) {
      const Tile &a = p.tiles[i], &b = p.tiles[j];
      fill_distances(p, a, b, i == j, d);
      bool used[2] = {false, false};
      for (int64_t other = 0; other < p.classes; ++other) {
        const int64_t x = source ? group : other, y = source ? other : group - p.classes;
        if (!counts(p, x, y)) continue;
        const int kind = x == y ? kIntra : kInter;
        if (!used[kind]) clear_tile(a, b, g[kind]);
        used[kind] = true;
        const float scale = static_cast<float>(1.0 / (size * size * static_cast<double>(p.count[kind])));
        const Inverse inverse = inverse_widths(*p.widths, p.base[x * p.classes + y]);
        const double sum = add_term(p, d, a, b, inverse, scale, g[kind]);
        p.matrix[x * p.classes + y] += (i == j ? 1.0 : 2.0) * sum / (size * size);
      }
      for (int kind = 0; kind < 2 && p.gradient; ++kind) {
        if (used[kind]) add_tile_gradient(p, a, b, i == j, kind, g[kind]);
      }
    }
  }
}

void pass_classes(const Classes& p, int64_t x, int64_t y) {
  alignas(64) float d[kTile * kTile];
  alignas(64) float g[kTile * kTile];
  if (!counts(p, x, y)) return;
  const int kind = x == y ? kIntra : kInter;
  const double sizes = static_cast<double>(p.size[x]) * static_cast<double>(p.size[p.classes + y]);
  const Inverse inverse = inverse_widths(*p.widths, p.base[x * p.classes + y]);
  const float scale = static_cast<float>(-1.0 / (sizes * static_cast<double>(p.count[kind])));
  for (int64_t i = p.tile_of[x]; i < p.tile_of[x + 1]; ++i) {
    for (int64_t j = p.tile_of[p.classes + y]; j < p.tile_of[p.classes + y + 1]; ++j) {
      const Tile &a = p.tiles[i], &b = p.tiles[j];
      fill_distances(p, a, b, false, d);
      clear_tile(a, b, g);
      p.matrix[x * p.classes + y] -= 2.0 * add_term(p, d, a, b, inverse, scale, g) / sizes;
      if (p.gradient) add_tile_gradient(p, a, b, false, kind, g);
    }
  }
}

// Bases from counts, sums and sums of squares of the groups.
void class_bases(const Classes& p, double floor, double* sums, double* squares, double* base) {
  const int64_t groups = 2 * p.classes;
  for (int64_t g = 0; g < groups; ++g) {
    squares[g] = 0.0;
    for (int64_t k = 0; k < p.z.d; ++k) sums[g * p.z.d + k] = 0.0;
    for (int64_t t = p.tile_of[g]; t < p.tile_of[g + 1]; ++t) {
      for (int64_t i = p.tiles[t].first; i < p.tiles[t].first + p.tiles[t].count; ++i) {
        double row = 0.0;
        for (int64_t k = 0; k < p.z.d; ++k) {
          const double value = static_cast<double>(p.z.rows[i * p.z.stride + k]);
          sums[g * p.z.d + k] += value;
          row += value * value;
        }
        squares[g] += row;
      }
    }
  }
  for (int64_t x = 0; x < p.classes; ++x) {
    for (int64_t y = 0; y < p.classes; ++y) {
      const int64_t other = p.classes + y;
      const double m = static_cast<double>(p.size[x] + p.size[other]);
      double length = 0.0;
      for (int64_t k = 0; k < p.z.d; ++k) {
        const double sum = sums[x * p.z.d + k] + sums[other * p.z.d + k];
        length += sum * sum;
      }
      const double mean = m < 2.0 ? 0.0 : 2.0 * (m * (squares[x] + squares[other]) - length) / (m * m - m);
      base[x * p.classes + y] = at_least(mean, floor);
    }
  }
}

void contrast(const ContrastArgs& a) {
  const int64_t points = a.n + a.m, groups = 2 * a.classes, square = a.classes * a.classes;
  const int64_t stride = padded(a.d);
  const int64_t most = groups + points / kTile + 1;
  const int64_t wide = points + most * (kLaneCount - 1);
  const int64_t kept = a.gradient_intra != nullptr ? 2 * points : 0;
  Buffer<float> given(a.batch * points * stride), rows(a.batch * points * stride), across(a.batch * wide * a.d);
  Buffer<float> norms(a.batch * wide), ones(a.batch * wide), moved(a.batch * kept * stride), total(a.batch * kept);
  Buffer<Tile> tiles(a.batch * most);
  Buffer<int64_t> order(a.batch * points), sizes(a.batch * groups), tile_of(a.batch * (groups + 1));
  Buffer<double> bases(a.batch * square), sums(a.batch * (groups + 1) * a.d), squares(a.batch * groups);
  const double work =
      static_cast<double>(a.batch) * static_cast<double>(points) * static_cast<double>(points) * static_cast<double>(a.d + 8);

  parallel_ranges(a.batch, work < 2.0 * kParallelWork ? 1 : a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      Classes p;
      p.z = {rows.data + k * points * stride, stride, a.d, across.data + k * wide * a.d, norms.data + k * wide};
      p.ones = ones.data + k * wide;
      p.tiles = tiles.data + k * most;
      p.tile_of = tile_of.data + k * (groups + 1);
      p.size = sizes.data + k * groups;
      p.base = bases.data + k * square;
      p.widths = &a.widths;
      p.classes = a.classes;
      p.least = a.min_count < 1 ? 1 : a.min_count;
      p.gradient = a.gradient_intra != nullptr;
      p.matrix = a.matrix + k * square;
      for (int kind = 0; kind < 2; ++kind) {
        const int64_t at = p.gradient ? (2 * k + kind) * points : 0;
        p.sums[kind] = {moved.data + at * stride, total.data + at};
      }

      float* centred = given.data + k * points * stride;
      const int64_t bytes = a.dtype == kFloat32 ? 4 : 2;
      centre(static_cast<const char*>(a.s) + k * a.n * a.d * bytes, a.n, static_cast<const char*>(a.t) + k * a.m * a.d * bytes, a.m, a.d,
             a.dtype, sums.data + k * (groups + 1) * a.d, centred, stride);
      int64_t placed = 0, used = 0, across_at = 0, lanes_at = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const bool source = g < a.classes;
        const int64_t label = source ? g : g - a.classes;
        const int64_t* labels = source ? a.ys + k * a.n : a.yt + k * a.m;
        const int64_t first = placed;
        for (int64_t i = 0; i < (source ? a.n : a.m); ++i) {
          if (labels[i] != label) continue;
          const int64_t from = source ? i : a.n + i;
          order.data[k * points + placed] = from;
          memcpy(p.z.rows + placed * stride, centred + from * stride, static_cast<size_t>(stride) * sizeof(float));
          ++placed;
        }
        sizes.data[k * groups + g] = placed - first;
        tile_of.data[k * (groups + 1) + g] = used;
        used += cut(first, placed - first, a.d, source ? 0 : 1, tiles.data + k * most + used, across_at, lanes_at);
      }
      tile_of.data[k * (groups + 1) + groups] = used;
      for (int64_t t = 0; t < used; ++t) {
        fill_tile(p.z, p.tiles[t]);
        for (int64_t j = 0; j < p.tiles[t].count; ++j) ones.data[k * wide + p.tiles[t].lanes + j] = 1.0f;
      }
      class_bases(p, a.widths.floor, sums.data + k * (groups + 1) * a.d, squares.data + k * groups, bases.data + k * square);

      p.count[kIntra] = p.count[kInter] = 0;
      for (int64_t x = 0; x < a.classes; ++x) {
        for (int64_t y = 0; y < a.classes; ++y) {
          p.count[x == y ? kIntra : kInter] += counts(p, x, y) ? 1 : 0;
          p.matrix[x * a.classes + y] = 0.0;
        }
      }
      for (int64_t g = 0; g < groups; ++g) pass_group(p, g);
      for (int64_t x = 0; x < a.classes; ++x) {
        for (int64_t y = 0; y < a.classes; ++y) pass_classes(p, x, y);
      }

      double value[2] = {0.0, 0.0};
      for (int64_t x = 0; x < a.classes; ++x) {
        for (int64_t y = 0; y < a.classes; ++y) {
          if (counts(p, x, y)) {
            value[x == y ? kIntra : kInter] += p.matrix[x * a.classes + y];
          } else {
            p.matrix[x * a.classes + y] = __builtin_nan("");
          }
        }
      }
      a.intra[k] = p.count[kIntra] > 0 ? value[kIntra] / static_cast<double>(p.count[kIntra]) : 0.0;
      a.inter[k] = p.count[kInter] > 0 ? value[kInter] / static_cast<double>(p.count[kInter]) : 0.0;
      if (!p.gradient) continue;
      for (int64_t i = 0; i < placed; ++i) {
        const int64_t to = (k * points + order.data[k * points + i]) * a.d;
        write_gradient(p.z, p.sums[kIntra], i, a.gradient_intra + to);
        write_gradient(p.z, p.sums[kInter], i, a.gradient_inter + to);
      }
    }
  });
}

}  // namespace

extern const tenfold::MmdKernels mmd_kernels;
const tenfold::MmdKernels mmd_kernels = {pairs, digits, contrast};

}  // namespace TF_NS
