// Nearest centres, the passes of k-means, and distances to candidates on the CPU. Compiled once per instruction set.
//
// Bound by multiplications: a block of rows meets all centres while it lies in the second-level cache, so x is read once.
#include "bounds.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kTileColumns = 512;
constexpr int64_t kPiece = 1024;  // rows whose sums are joined in order

int64_t pieces_of(int64_t rows, int64_t each) { return (rows + each - 1) / each; }

// ---- single passes --------------------------------------------------------------------------------------------------------------

template <class T>
bool finite_row(const T* row, int64_t d) {
  V sum = V{};
  int64_t k = 0;
  for (; k + kWidth <= d; k += kWidth) {
    const V v = load_lanes(row + k);
    sum = sum + v * 0.0f;  // NaN where it is not finite
  }
  float rest = 0.0f;
  for (; k < d; ++k) rest += to_math(row[k]) - to_math(row[k]);
  for (uint32_t j = 0; j < kLanes; ++j) rest += sum[j];
  return rest == 0.0f;
}

int64_t first_bad_row(const RowShards& x, int threads) {
  const int64_t pieces = pieces_of(x.rows, kPiece);
  Room<int64_t> found;
  found.take(pieces);
  parallel_ranges(pieces, threads, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      found[p] = -1;
      const int64_t last = (p + 1) * kPiece < x.rows ? (p + 1) * kPiece : x.rows;
      for (int64_t i = p * kPiece; i < last && found[p] < 0; ++i) {
        with_row(x, i, [&](auto row) {
          if (!finite_row(row, x.d)) found[p] = i;
        });
      }
    }
  });
  for (int64_t p = 0; p < pieces; ++p) {
    if (found[p] >= 0) return found[p];
  }
  return -1;
}

void mean(const RowShards& x, bool cosine, double* out, int threads) {
  const int64_t each = 4 * kPiece, pieces = pieces_of(x.rows, each);
  Room<double> sums;
  sums.zeros(pieces * x.d);
  parallel_ranges(pieces, threads, [&](int64_t begin, int64_t end) {
    Room<float> buffer;
    buffer.take(x.d);
    for (int64_t p = begin; p < end; ++p) {
      double* to = sums.data() + p * x.d;
      const int64_t last = (p + 1) * each < x.rows ? (p + 1) * each : x.rows;
      for (int64_t i = p * each; i < last; ++i) {
        const float* row = raw_row(x, i, buffer.data());
        const double scale = cosine ? inverse_length(row, x.d) : 1.0;
        for (int64_t k = 0; k < x.d; ++k) to[k] += static_cast<double>(row[k]) * scale;
      }
    }
  });
  for (int64_t k = 0; k < x.d; ++k) {
    double total = 0.0;
    for (int64_t p = 0; p < pieces; ++p) total += sums[p * x.d + k];
    out[k] = total / static_cast<double>(x.rows > 0 ? x.rows : 1);
  }
}

int64_t farthest_from(const RowShards& x, const double* point, bool cosine, int threads) {
  const int64_t pieces = pieces_of(x.rows, kPiece);
  Room<float> best;
  Room<int64_t> at;
  best.take(pieces);
  at.take(pieces);
  parallel_ranges(pieces, threads, [&](int64_t begin, int64_t end) {
    Room<float> buffer;
    buffer.take(x.d);
    for (int64_t p = begin; p < end; ++p) {
      best[p] = -1.0f;
      at[p] = -1;
      const int64_t last = (p + 1) * kPiece < x.rows ? (p + 1) * kPiece : x.rows;
      for (int64_t i = p * kPiece; i < last; ++i) {
        const float* row = raw_row(x, i, buffer.data());
        const double scale = cosine ? inverse_length(row, x.d) : 1.0;
        double lanes[kWide] = {};
        int64_t k = 0;
        for (; k + kWide <= x.d; k += kWide) {
          for (int j = 0; j < kWide; ++j) {
            const double difference = static_cast<double>(row[k + j]) * scale - point[k + j];
            lanes[j] += difference * difference;
          }
        }
        double total = 0.0;
        for (; k < x.d; ++k) {
          const double difference = static_cast<double>(row[k]) * scale - point[k];
          total += difference * difference;
        }
        for (int j = 0; j < kWide; ++j) total += lanes[j];
        const float value = static_cast<float>(total);
        if (value > best[p]) {
          best[p] = value;
          at[p] = i;
        }
      }
    }
  });
  int64_t top = 0;
  for (int64_t p = 1; p < pieces; ++p) {
    if (best[p] > best[top]) top = p;
  }
  return pieces > 0 ? at[top] : -1;
}

// ---- nearest centres --------------------------------------------------------------------------------------------------------------

// What one thread needs to assign a block of rows.
struct Search {
  const RowShards& x;
  const Columns& centers;
  int k, room;
  Block block;
  Room<float> tile, bounds, values;  // bounds: the k smallest upper bounds of each row; values: of candidates
  Room<int32_t> candidates, have;    // have: how many, or -1: too many, so all
  Room<float> found_value, row_buffer;
  Room<int32_t> found_index;

  Search(const RowShards& rows, const Columns& columns, int neighbors)
      : x(rows), centers(columns), k(neighbors), room(64 + 2 * neighbors), block(rows, columns) {
    tile.take(block.capacity * kTileColumns);
    bounds.take(block.capacity * k);
    values.take(block.capacity * room);
    candidates.take(block.capacity * room);
    have.take(block.capacity);
    found_value.take(k);
    found_index.take(k);
    row_buffer.take(x.d);
  }

  // Nothing that can still be among the k nearest lies behind this, in the measure |b|^2 - 2 ab - E |b|^2.
  float limit(int64_t r) const {
    const float bound = bounds[r * k + k - 1] + 2.0f * block.errors[r] * block.norms[r];
    return bound < kLargest ? bound : kLargest;
  }

  void insert_bound(int64_t r, float value) {
    float* sorted = bounds.data() + r * k;
    int at = k - 1;
    for (; at > 0 && sorted[at - 1] > value; --at) sorted[at] = sorted[at - 1];
    sorted[at] = value;
  }

  void keep(int64_t r, int32_t column, float value) {
    if (have[r] < 0) return;
    if (have[r] == room) {
      const float bound = limit(r);
      int kept = 0;
      for (int i = 0; i < room; ++i) {
        if (values[r * room + i] > bound) continue;
        values[r * room + kept] = values[r * room + i];
        candidates[r * room + kept++] = candidates[r * room + i];
      }
      have[r] = kept == room ? -1 : kept;
      if (have[r] < 0) return;
    }
    values[r * room + have[r]] = value;
    candidates[r * room + have[r]++] = column;
  }

  void look(int64_t r, int64_t first, int64_t columns) {
    const float* products = tile.data() + r * kTileColumns;
    const float* norms = centers.norms.data() + first;
    const V twice = spread(-2.0f), above = spread(1.0f + block.errors[r]), below = spread(1.0f - block.errors[r]);
    if (k == 1) {
      V best = spread(bounds[r]);
      for (int64_t j = 0; j < columns; j += kWidth)
        best = lesser(best, multiply_add(load_lanes(products + j), twice, above * load_lanes(norms + j)));
      float least = best[0];
      for (uint32_t j = 1; j < kLanes; ++j) least = best[j] < least ? best[j] : least;
      bounds[r] = least;
    } else {
      for (int64_t j = 0; j < columns; j += kWidth) {
        const V upper = multiply_add(load_lanes(products + j), twice, above * load_lanes(norms + j));
        uint32_t set = lanes_set(less(upper, spread(bounds[r * k + k - 1])));
        for (; set != 0; set &= set - 1) {
          const float value = upper[__builtin_ctz(set)];
          if (value < bounds[r * k + k - 1]) insert_bound(r, value);
        }
      }
    }
    const V bound = spread(limit(r));
    for (int64_t j = 0; j < columns; j += kWidth) {
      const V lower = multiply_add(load_lanes(products + j), twice, below * load_lanes(norms + j));
      uint32_t set = lanes_set(less(bound, lower)) ^ (kLanes == 32 ? ~0u : (1u << kLanes) - 1u);
      for (; set != 0; set &= set - 1) {
        const int lane = __builtin_ctz(set);
        keep(r, static_cast<int32_t>(first + j + lane), lower[lane]);
      }
    }
  }

  void settle(int64_t r, int64_t row, int32_t* index, float* nearest) {
    const float* raw = block.raw(r, row, row_buffer.data());
    const double scale = centers.cosine ? inverse_length(raw, x.d) : 1.0;
    const float bound = limit(r);
    int found = 0;
    const auto measure = [&](int32_t column) {
      const float value = exact_distance(raw, scale, centers.raw + column * x.d, centers.scale[column], x.d, centers.cosine);
      if (found == k && !(value < nearest[k - 1])) return;
      int at = found < k ? found++ : k - 1;
      for (; at > 0 && nearest[at - 1] > value; --at) {
        nearest[at] = nearest[at - 1];
        index[at] = index[at - 1];
      }
      nearest[at] = value;
      index[at] = column;
    };
    for (int32_t i = 0; i < have[r]; ++i) {  // a bound that is not a number keeps what only fills the last panel up, too
      if (!(values[r * room + i] > bound) && candidates[r * room + i] < centers.count) measure(candidates[r * room + i]);
    }
    // Too many candidates to keep, or too few: bounds beyond the range of float32 exclude centres that the k nearest need.
    if (have[r] < 0 || (found < k && found < centers.count)) {
      found = 0;
      for (int32_t column = 0; column < centers.count; ++column) measure(column);
    }
    for (; found < k; ++found) {
      nearest[found] = kInfinity;
      index[found] = -1;
    }
  }

  // Rows numbers[0 .. count), or first, first + 1, ... where numbers is null.
  void assign(const int64_t* numbers, int64_t first, int64_t count, int32_t* index, float* nearest) {
    for (int64_t r = 0; r < count; ++r) {
      block.put(r, numbers == nullptr ? first + r : numbers[r]);
      for (int j = 0; j < k; ++j) bounds[r * k + j] = kInfinity;
      have[r] = 0;
    }
    if (numbers == nullptr) block.expect(first + count, block.capacity, whole(count, kRows) / kRows * (centers.padded / kPanel));
    for (int64_t at = 0; at < centers.padded; at += kTileColumns) {
      const int64_t columns = centers.padded - at < kTileColumns ? centers.padded - at : kTileColumns;
      block.multiply(count, at, columns, tile.data(), kTileColumns);
      for (int64_t r = 0; r < count; ++r) look(r, at, columns);
    }
    for (int64_t r = 0; r < count; ++r) settle(r, numbers == nullptr ? first + r : numbers[r], index + r * k, nearest + r * k);
  }
};

void pack_centers(const float* rows, int64_t m, int64_t d, bool cosine, bool reduced, Room<float>& middle, Columns& out) {
  const void* data[1] = {rows};
  const int64_t first[2] = {0, m};
  const float* shift = cosine ? nullptr : find_middle({data, first, 1, m, d, kFloat32}, middle.take(d));
  out.pack(rows, m, d, cosine, shift, reduced);
}

int64_t assign(const AssignArgs& a) {
  Columns centers;
  Room<float> middle;
  pack_centers(a.centers, a.m, a.x.d, a.cosine, a.reduced, middle, centers);
  const int64_t each = Block::block_rows(a.x.d);
  std::atomic<int64_t> bad{a.x.rows};
  parallel_ranges(pieces_of(a.n, each), a.threads, [&](int64_t begin, int64_t end) {
    Search search(a.x, centers, a.k);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * each, count = a.n - first < each ? a.n - first : each;
      search.assign(a.rows == nullptr ? nullptr : a.rows + first, first, count, a.index + first * a.k, a.nearest + first * a.k);
    }
    lower(bad, search.block.bad);
  });
  return bad < a.x.rows ? int64_t{bad} : -1;
}

// ---- k-means ------------------------------------------------------------------------------------------------------------------------

// Adds columns [from, to) of rows [first, last) to their clusters, in the order of rows.
void add_rows(const RowShards& x, int64_t first, int64_t last, int64_t from, int64_t to, const int32_t* labels, double* sums) {
  for (int64_t i = first; i < last; ++i) {
    if (labels[i] < 0) continue;  // every distance beyond the range of float32, or NaN
    double* sum = sums + labels[i] * x.d;
    with_row(x, i, [&](auto row) {
      for (int64_t k = from; k < to; ++k) sum[k] += static_cast<double>(to_math(row[k]));
    });
  }
}

void lloyd(const LloydArgs& a) {
  const int64_t d = a.x.d;
  Columns centers;
  Room<float> middle;
  pack_centers(a.centers, a.m, d, false, d >= kIntegersPay, middle, centers);
  const int64_t each = Block::block_rows(d);
  const int64_t stretch = each * 4 * a.threads;  // rows that are assigned before they are added, while caches hold them
  const int64_t strips = whole(d, 16) / 16;      // of a cache line each
  memset(a.sums, 0, static_cast<size_t>(a.m * d) * sizeof(double));
  for (int64_t first = 0; first < a.x.rows; first += stretch) {
    const int64_t last = first + stretch < a.x.rows ? first + stretch : a.x.rows;
    parallel_ranges(pieces_of(last - first, each), a.threads, [&](int64_t begin, int64_t end) {
      Search search(a.x, centers, 1);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t at = first + b * each, count = last - at < each ? last - at : each;
        search.assign(nullptr, at, count, a.labels + at, a.distances + at);
      }
    });
    parallel_ranges(strips, a.threads, [&](int64_t begin, int64_t end) {
      add_rows(a.x, first, last, begin * 16, end * 16 < d ? end * 16 : d, a.labels, a.sums);
    });
  }
  for (int64_t j = 0; j < a.m; ++j) a.counts[j] = 0;
  for (int64_t i = 0; i < a.x.rows; ++i) {
    if (a.labels[i] >= 0) ++a.counts[a.labels[i]];
  }
}

// ---- distances to a few candidates ------------------------------------------------------------------------------------------------------

void cover(const CoverArgs& a) {
  const int64_t d = a.x.d;
  Room<float> raw, middle;
  raw.take(a.l * d);
  for (int64_t t = 0; t < a.l; ++t) fetch_row(a.x, a.candidates[t], nullptr, raw.data() + t * d);
  Columns candidates;
  candidates.pack(raw.data(), a.l, d, a.cosine, a.cosine ? nullptr : find_middle(a.x, middle.take(d)), false);
  const int64_t each = Block::block_rows(d);
  parallel_ranges(pieces_of(a.x.rows, each), a.threads, [&](int64_t begin, int64_t end) {
    Block block(a.x, candidates);
    Room<float> tile, buffer;
    tile.take(block.capacity * candidates.padded);
    buffer.take(d);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * each, count = a.x.rows - first < each ? a.x.rows - first : each;
      for (int64_t r = 0; r < count; ++r) block.put(r, first + r);
      block.multiply(count, 0, candidates.padded, tile.data(), candidates.padded);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t i = first + r;
        const float* products = tile.data() + r * candidates.padded;
        const float reach = a.distance[i], below = 1.0f - block.errors[r];
        const float* row = nullptr;
        double scale = 1.0;
        for (int64_t t = 0; t < a.l; ++t) {
          float value = reach;
          if ((candidates.norms[t] + block.norms[r]) * below - 2.0f * products[t] < reach) {
            if (row == nullptr) {
              row = block.raw(r, i, buffer.data());
              scale = a.cosine ? inverse_length(row, d) : 1.0;
            }
            const float exact = exact_distance(row, scale, raw.data() + t * d, candidates.scale[t], d, a.cosine);
            value = exact < reach ? exact : reach;
          }
          a.out[t * a.x.rows + i] = value;
        }
      }
    }
  });
}

}  // namespace

extern const tenfold::DistanceKernels distance_kernels;
const tenfold::DistanceKernels distance_kernels = {first_bad_row, mean, farthest_from, assign, lloyd, cover};

}  // namespace TF_NS
