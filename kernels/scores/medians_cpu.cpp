// Class medians on the CPU. The rows of a class are gathered, two registers of columns or more at a time, as integers that are ordered like
// the floats, and every lane finds its column's middle by bisection: a pass counts what is not above the guess, three instructions per
// register from the second-level cache. Guesses halve the interval of values, which leaves one candidate after about log2(n) passes, and
// from the 20th pass on that of the integers, which ends after 32 more whatever the values. Selection by exchange (nth_element) takes as
// many visits of each value, one at a time.
//
// x is read twice, by columns and for the distances. A column belongs to one thread, so the number of threads changes nothing.
#include "row_lanes.hpp"

#include "../core/dtype.hpp"
#include "../core/parallel.hpp"
#include "../core/room.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kRegisters = kLanes >= 16 ? 2 : kLanes >= 8 ? 4 : 8;
constexpr int64_t kWide = kRegisters * kW;  // columns of a block
constexpr int kGuesses = 20;

// Integers in the order of floats, and back. -0 becomes 0.
TF_HD I key_of(V x) {
  const I bits = reinterpret_cast<I>(x + V{});
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
TF_HD V value_of(I key) { return reinterpret_cast<V>(key ^ ((key >> 31) & 0x7FFFFFFF)); }

TF_HD I pick(I mask, I if_set, I if_clear) { return (mask & if_set) | (~mask & if_clear); }
TF_HD I load_keys(const int32_t* p) {
  I out;
  __builtin_memcpy(&out, p, sizeof(out));
  return out;
}
TF_HD void store_keys(int32_t* p, I x) { __builtin_memcpy(p, &x, sizeof(x)); }
TF_HD I all_lanes(int32_t x) { return I{} + x; }

struct Middle {
  I low, high;    // the answer lies between
  I below, upto;  // how many keys are less than low, not above high
};

template <class T>
V load_some(const T* p, int64_t n) {
  if (n >= kW) return load_lanes(p);
  V out = {};
  for (int64_t j = 0; j < n; ++j) out[j] = to_math(p[j]);
  return out;
}

// Keys [members, kWide] of columns [first, first + width); returns whether all were finite.
template <class T>
bool gather(const Matrix& x, const int64_t* rows, int64_t members, int64_t first, int64_t width, int32_t* keys, Middle* m) {
  V seen = {};
  for (int64_t g = 0; g < kRegisters; ++g)
    m[g] = {all_lanes(INT32_MAX), all_lanes(INT32_MIN), I{}, all_lanes(static_cast<int32_t>(members))};
  for (int64_t i = 0; i < members; ++i) {
    const T* row = static_cast<const T*>(x.data) + rows[i] * x.stride + first;
    for (int64_t g = 0; g < kRegisters; ++g) {
      const V v = g * kW < width ? load_some(row + g * kW, width - g * kW) : V{};
      seen = multiply_add(v, V{}, seen);
      const I key = key_of(v);
      store_keys(keys + i * kWide + g * kW, key);
      m[g].low = pick(key < m[g].low, key, m[g].low);
      m[g].high = pick(key > m[g].high, key, m[g].high);
    }
  }
  return !std::isnan(tree_sum(seen));
}

// How many keys of each column are not above `limit`.
void count_upto(const int32_t* keys, int64_t members, const I* limit, I* out) {
  I counts[kRegisters] = {}, limits[kRegisters];
  for (int64_t g = 0; g < kRegisters; ++g) limits[g] = limit[g];
  for (int64_t i = 0; i < members; ++i) {
    for (int64_t g = 0; g < kRegisters; ++g) counts[g] -= load_keys(keys + i * kWide + g * kW) <= limits[g];
  }
  for (int64_t g = 0; g < kRegisters; ++g) out[g] = counts[g];
}

// The smallest key above `limit` of each column, or INT32_MAX.
void least_above(const int32_t* keys, int64_t members, const I* limit, I* out) {
  for (int64_t g = 0; g < kRegisters; ++g) out[g] = all_lanes(INT32_MAX);
  for (int64_t i = 0; i < members; ++i) {
    for (int64_t g = 0; g < kRegisters; ++g) {
      const I key = load_keys(keys + i * kWide + g * kW);
      out[g] = pick((key > limit[g]) & (key < out[g]), key, out[g]);
    }
  }
}

// Between low and high - 1.
I guess(const Middle& m, bool by_value) {
  const I half = reinterpret_cast<I>((reinterpret_cast<B>(m.high) - reinterpret_cast<B>(m.low)) >> 1);
  I mid = m.low + half;
  if (by_value) {
    const I by = key_of(value_of(m.low) * 0.5f + value_of(m.high) * 0.5f);
    mid = pick((by >= m.low) & (by < m.high), by, mid);
  }
  return mid;
}

// The key of rank `rank` (from 0) of each column into m.low; `upto` becomes how many keys are not above it.
void select_rank(const int32_t* keys, int64_t members, int64_t rank, Middle* m) {
  const I wanted = all_lanes(static_cast<int32_t>(rank));
  for (int pass = 0;; ++pass) {
    I mids[kRegisters], counts[kRegisters];
    bool open = false;
    for (int64_t g = 0; g < kRegisters; ++g) {
      open |= any_lane((m[g].low < m[g].high) & (m[g].upto - m[g].below > 1));
      mids[g] = guess(m[g], pass < kGuesses);
    }
    if (!open) break;
    count_upto(keys, members, mids, counts);
    for (int64_t g = 0; g < kRegisters; ++g) {
      const I live = m[g].low<m[g].high, lower_half = counts[g]> wanted;
      m[g].high = pick(live & lower_half, mids[g], m[g].high);
      m[g].upto = pick(live & lower_half, counts[g], m[g].upto);
      m[g].low = pick(live & ~lower_half, mids[g] + 1, m[g].low);
      m[g].below = pick(live & ~lower_half, counts[g], m[g].below);
    }
  }
  // One key is left where low < high still: the least that is not below low.
  I limits[kRegisters], found[kRegisters];
  for (int64_t g = 0; g < kRegisters; ++g) limits[g] = pick(m[g].low == INT32_MIN, m[g].low, m[g].low - 1);
  least_above(keys, members, limits, found);
  for (int64_t g = 0; g < kRegisters; ++g) m[g].low = found[g];
}

template <class T>
bool median_block(const MedianArgs& a, const int64_t* rows, int64_t members, int64_t c, int64_t first, int32_t* keys) {
  const int64_t width = a.x.columns - first < kWide ? a.x.columns - first : kWide;
  Middle m[kRegisters];
  const bool finite = gather<T>(a.x, rows, members, first, width, keys, m);
  select_rank(keys, members, (members - 1) / 2, m);
  I lows[kRegisters], counts[kRegisters], highs[kRegisters];
  for (int64_t g = 0; g < kRegisters; ++g) lows[g] = highs[g] = m[g].low;
  if (members % 2 == 0) {  // the other of the two in the middle
    count_upto(keys, members, lows, counts);
    least_above(keys, members, lows, highs);
    const I half = all_lanes(static_cast<int32_t>(members / 2));
    for (int64_t g = 0; g < kRegisters; ++g) highs[g] = pick(counts[g] > half, lows[g], highs[g]);
  }
  float* out = a.medians + c * a.x.columns + first;
  for (int64_t j = 0; j < width; ++j) {
    const V low = value_of(lows[j / kW]), high = value_of(highs[j / kW]);
    out[j] = (low[j % kW] + high[j % kW]) / 2.0f;
  }
  return finite;
}

// Rows ordered by class (stable), and where each class begins.
void order_by_class(const MedianArgs& a, Room<int64_t>& order, Room<int64_t>& starts) {
  int64_t* at = starts.zeros(a.classes + 2);
  for (int64_t i = 0; i < a.x.rows; ++i) ++at[a.labels[i] + 2];
  for (int64_t c = 2; c < a.classes + 2; ++c) at[c] += at[c - 1];
  int64_t* out = order.take(a.x.rows > 0 ? a.x.rows : 1);
  for (int64_t i = 0; i < a.x.rows; ++i) out[at[a.labels[i] + 1]++] = i;
}

template <class T>
void medians_of(const MedianArgs& a) {
  Room<int64_t> order, starts;
  order_by_class(a, order, starts);
  int64_t most = 0;
  for (int64_t c = 0; c < a.classes; ++c) {
    const int64_t members = starts[c + 1] - starts[c];
    most = members > most ? members : most;
  }
  const int64_t blocks = (a.x.columns + kWide - 1) / kWide;
  parallel_ranges(a.classes * blocks, a.threads, [&](int64_t begin, int64_t end) {
    Room<int32_t> keys;
    keys.take(most * kWide + 1);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t c = p / blocks, first = p % blocks * kWide, members = starts[c + 1] - starts[c];
      if (members == 0) {
        for (int64_t j = first; j < a.x.columns && j < first + kWide; ++j) a.medians[c * a.x.columns + j] = not_a_number();
        continue;
      }
      const bool finite = median_block<T>(a, order.data() + starts[c], members, c, first, keys.data());
      if (!finite) __atomic_store_n(a.bad, uint8_t{1}, __ATOMIC_RELAXED);
    }
  });
}

template <class T>
void distances_of(const MedianArgs& a) {
  const int64_t n = a.x.columns;
  parallel_ranges(a.x.rows, a.threads, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T* row = static_cast<const T*>(a.x.data) + r * a.x.stride;
      const float* center = a.medians + a.labels[r] * n;
      V sums[4] = {};
      int64_t i = 0;
      for (; i + 4 * kW <= n; i += 4 * kW) {
        for (int j = 0; j < 4; ++j) {
          const V d = load_lanes(row + i + j * kW) - load_lanes(center + i + j * kW);
          sums[j] = multiply_add(d, d, sums[j]);
        }
      }
      float total = tree_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (; i < n; ++i) {
        const float d = to_math(row[i]) - center[i];
        total += d * d;
      }
      a.distances[r] = std::sqrt(total);
    }
  });
}

void medians(const MedianArgs& a) {
  switch (a.x.dtype) {
    case kBFloat16: return medians_of<bfloat16>(a);
    case kFloat16: return medians_of<float16>(a);
    default: return medians_of<float>(a);
  }
}

void distances(const MedianArgs& a) {
  switch (a.x.dtype) {
    case kBFloat16: return distances_of<bfloat16>(a);
    case kFloat16: return distances_of<float16>(a);
    default: return distances_of<float>(a);
  }
}

}  // namespace

extern const tenfold::MedianKernels median_kernels;
const tenfold::MedianKernels median_kernels = {medians, distances};

}  // namespace TF_NS
