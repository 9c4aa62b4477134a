// Overlap counts on the CPU. Compiled once per instruction set (CMakeLists.txt), into a namespace of its own.
//
// The joint histogram reads both volumes once, in rows along the axis in which they are contiguous, and adds the length of each run of
// equal pairs to its count. What bounds it is memory: about 4 KiB of labels fit between two changes in a typical row of background.
#include <mutex>

#include "../core/parallel.hpp"
#include "../core/room.hpp"
#include "overlap_api.hpp"
#include "runs.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kGrain = 1 << 16;  // voxels that are worth a thread

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Both volumes with their axes in the order in which they are walked, the innermost last; axes along which both run backwards turned.
struct Walk {
  int ndim;
  int64_t sizes[kMostAxes];
  int64_t strides[2][kMostAxes];
  int axis[kMostAxes];  // of the caller
  bool turned[kMostAxes];
  const char* data[2];
  int64_t rows;
};

inline int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

// Outer axes come with the larger strides first. The innermost axis is the one contiguous in the target, the next that of pred.
Walk make_walk(const Labels& a, const Labels& b) {
  Walk w = {};
  w.ndim = a.ndim;
  w.data[0] = static_cast<const char*>(a.data);
  w.data[1] = static_cast<const char*>(b.data);
  w.rows = 1;
  for (int i = 0; i < a.ndim; ++i) w.axis[i] = i;
  const auto before = [&](int x, int y) {  // whether axis x is walked outside axis y
    const bool sx = a.sizes[x] == 1, sy = a.sizes[y] == 1;
    if (sx != sy) return sx;
    const int64_t ax = magnitude(a.strides[x]), ay = magnitude(a.strides[y]);
    return ax != ay ? ax > ay : magnitude(b.strides[x]) > magnitude(b.strides[y]);
  };
  for (int i = 1; i < w.ndim; ++i) {
    for (int j = i; j > 0 && before(w.axis[j], w.axis[j - 1]); --j) {
      const int held = w.axis[j];
      w.axis[j] = w.axis[j - 1];
      w.axis[j - 1] = held;
    }
  }
  for (int i = 0; i + 2 < w.ndim; ++i) {  // pred's contiguous axis next to the innermost: its cache lines are used again soon
    if (magnitude(b.strides[w.axis[i]]) == 1 && a.sizes[w.axis[i]] > 1 && magnitude(b.strides[w.axis[w.ndim - 1]]) != 1) {
      const int held = w.axis[i];
      for (int j = i; j + 2 < w.ndim; ++j) w.axis[j] = w.axis[j + 1];
      w.axis[w.ndim - 2] = held;
      break;
    }
  }
  for (int i = 0; i < w.ndim; ++i) {
    const int x = w.axis[i];
    w.sizes[i] = a.sizes[x];
    w.strides[0][i] = a.strides[x];
    w.strides[1][i] = b.strides[x];
    if (i + 1 < w.ndim) w.rows *= a.sizes[x];
    if (a.strides[x] < 0 && b.strides[x] < 0 && a.sizes[x] > 0) {
      w.turned[i] = true;
      w.data[0] += (a.sizes[x] - 1) * a.strides[x] * a.bytes;
      w.data[1] += (b.sizes[x] - 1) * b.strides[x] * b.bytes;
      w.strides[0][i] = -a.strides[x];
      w.strides[1][i] = -b.strides[x];
    }
  }
  return w;
}

// Rows that follow each other in memory in both volumes are one row, where nobody asks for places.
void join_rows(Walk& w) {
  while (w.ndim > 1) {
    const int inner = w.ndim - 1, outer = w.ndim - 2;
    bool joined = true;
    for (int side = 0; side < 2; ++side) joined &= w.strides[side][outer] == w.strides[side][inner] * w.sizes[inner];
    if (!joined) return;
    for (int side = 0; side < 2; ++side) w.strides[side][outer] = w.strides[side][inner];
    w.rows /= w.sizes[outer] > 0 ? w.sizes[outer] : 1;
    w.sizes[outer] *= w.sizes[inner];
    --w.ndim;
  }
}

struct Box {
  int64_t low[kMostAxes], high[kMostAxes];
  int64_t row;
};

inline void reset(Box& box) {
  for (int i = 0; i < kMostAxes; ++i) box.low[i] = INT64_MAX, box.high[i] = 0;
  box.row = -1;
}

// A run of the label along the innermost axis of the row at `at`.
inline void extend(Box& box, int64_t row, const int64_t* at, int inner, int64_t first, int64_t last) {
  if (first < box.low[inner]) box.low[inner] = first;
  if (last > box.high[inner]) box.high[inner] = last;
  if (box.row == row) return;
  box.row = row;
  for (int i = 0; i < inner; ++i) {
    if (at[i] < box.low[i]) box.low[i] = at[i];
    if (at[i] >= box.high[i]) box.high[i] = at[i] + 1;
  }
}

// Labels below this are right: a negative one, read as unsigned, is not.
inline uint64_t limit_of(const Labels& labels, int64_t num_labels) {
  const int bits = 8 * labels.bytes - (labels.is_signed ? 1 : 0);
  const uint64_t values = bits >= 63 ? uint64_t{1} << 63 : uint64_t{1} << bits;
  return static_cast<uint64_t>(num_labels) < values ? static_cast<uint64_t>(num_labels) : values;
}

template <class T>
const T* row_of(const char* data, int64_t n, int64_t stride, T* room) {
  const T* const from = reinterpret_cast<const T*>(data);
  if (stride == 1) return from;
  for (int64_t i = 0; i < n; ++i) room[i] = from[i * stride];
  return room;
}

template <class A, class B>
struct Counter {
  const OverlapArgs& args;
  Walk walk;
  bool boxes;
  Lock lock;
  bool right = true;
  Room<Box> all_boxes;  // of both sides, filled by whichever thread ends first

  explicit Counter(const OverlapArgs& a) : args(a), walk(make_walk(a.target, a.pred)), boxes(a.box_target != nullptr) {
    if (!boxes) join_rows(walk);
  }

  bool run() {
    const int64_t n = walk.sizes[walk.ndim - 1];
    const int64_t k = args.num_labels;
    if (boxes) {
      all_boxes.take(2 * k);
      for (int64_t i = 0; i < 2 * k; ++i) reset(all_boxes[i]);
    }
    if (n > 0 && walk.rows > 0) {
      const int64_t grain = n >= kGrain ? 1 : kGrain / n;
      parallel_ranges(walk.rows, args.threads, [&](int64_t first, int64_t last) { rows(first, last, n); }, grain);
    }
    if (boxes) write_boxes();
    return right;
  }

 private:
  void rows(int64_t first, int64_t last, int64_t n) {
    const int64_t k = args.num_labels;
    Room<int64_t> counts;
    Room<Box> found;
    Room<A> room_a;
    Room<B> room_b;
    const int inner = walk.ndim - 1;
    if (walk.strides[0][inner] != 1) room_a.take(n);
    if (walk.strides[1][inner] != 1) room_b.take(n);
    counts.zeros(k * k);
    if (boxes) {
      found.take(2 * k);
      for (int64_t i = 0; i < 2 * k; ++i) reset(found[i]);
    }
    const int64_t most = args.clamp ? INT64_MAX : k;
    const uint64_t limit_a = limit_of(args.target, most), limit_b = limit_of(args.pred, most);
    const uint64_t top = static_cast<uint64_t>(k) - 1;
    int64_t at[kMostAxes] = {};
    int64_t rest = first;
    for (int i = inner - 1; i >= 0; --i) {
      at[i] = rest % walk.sizes[i];
      rest /= walk.sizes[i];
    }
    int64_t* const count = counts.data();
    Box* const box_a = found.data();
    Box* const box_b = boxes ? box_a + k : nullptr;
    bool fine = true;
    for (int64_t row = first; row < last && fine; ++row) {
      int64_t offset[2] = {0, 0};
      for (int i = 0; i < inner; ++i) {
        offset[0] += at[i] * walk.strides[0][i];
        offset[1] += at[i] * walk.strides[1][i];
      }
      const A* const a = row_of<A>(walk.data[0] + offset[0] * int64_t{sizeof(A)}, n, walk.strides[0][inner], room_a.data());
      const B* const b = row_of<B>(walk.data[1] + offset[1] * int64_t{sizeof(B)}, n, walk.strides[1][inner], room_b.data());
      pair_runs(a, b, n, [&](int64_t begin, int64_t end) {
        uint64_t x = a[begin], y = b[begin];
        if (x >= limit_a || y >= limit_b) {
          fine = false;
          return;
        }
        if (x > top) x = top;
        if (y > top) y = top;
        count[x * static_cast<uint64_t>(k) + y] += end - begin;
        if (box_a != nullptr) {
          extend(box_a[x], row, at, inner, begin, end);
          extend(box_b[y], row, at, inner, begin, end);
        }
      });
      for (int i = inner - 1; i >= 0 && ++at[i] == walk.sizes[i]; --i) at[i] = 0;
    }
    join(counts, found, fine);
  }

  // Sums and extremes of whole numbers: the order in which threads come does not matter.
  void join(const Room<int64_t>& counts, const Room<Box>& found, bool fine) {
    const int64_t k = args.num_labels;
    const std::lock_guard<Lock> guard(lock);
    right &= fine;
    for (int64_t i = 0; i < k * k; ++i) args.counts[i] += counts[i];
    for (int64_t i = 0; boxes && i < 2 * k; ++i) {
      for (int axis = 0; axis < walk.ndim; ++axis) {
        if (found[i].low[axis] < all_boxes[i].low[axis]) all_boxes[i].low[axis] = found[i].low[axis];
        if (found[i].high[axis] > all_boxes[i].high[axis]) all_boxes[i].high[axis] = found[i].high[axis];
      }
    }
  }

  void write_boxes() const {
    const int64_t k = args.num_labels;
    for (int64_t i = 0; i < 2 * k; ++i) {
      int64_t* const out = (i < k ? args.box_target : args.box_pred) + i % k * 2 * walk.ndim;
      for (int d = 0; d < walk.ndim; ++d) {
        int64_t low = all_boxes[i].low[d], high = all_boxes[i].high[d];
        if (high == 0) low = 0;
        if (walk.turned[d] && high > 0) {
          const int64_t held = low;
          low = walk.sizes[d] - high;
          high = walk.sizes[d] - held;
        }
        out[walk.axis[d]] = low;
        out[walk.ndim + walk.axis[d]] = high;
      }
    }
  }
};

template <class A>
bool counts_with(const OverlapArgs& a) {
  switch (a.pred.bytes) {
    case 1: return Counter<A, uint8_t>(a).run();
    case 2: return Counter<A, uint16_t>(a).run();
    case 4: return Counter<A, uint32_t>(a).run();
    default: return Counter<A, uint64_t>(a).run();
  }
}

bool counts(const OverlapArgs& a) {
  switch (a.target.bytes) {
    case 1: return counts_with<uint8_t>(a);
    case 2: return counts_with<uint16_t>(a);
    case 4: return counts_with<uint32_t>(a);
    default: return counts_with<uint64_t>(a);
  }
}

// ---- packed masks ---------------------------------------------------------------------------------------------------------------

template <class T>
bool lut_of(const LutArgs& a) {
  const Labels& v = a.volume;
  const int inner = v.ndim - 1;
  const int64_t n = v.sizes[inner];
  int64_t rows = 1;
  for (int i = 0; i < inner; ++i) rows *= v.sizes[i];
  const uint64_t limit = limit_of(v, a.num_labels);
  Lock lock;
  bool right = true;
  if (n == 0 || rows == 0) return true;
  parallel_ranges(
      rows, a.threads,
      [&](int64_t first, int64_t last) {
        bool fine = true;
        for (int64_t row = first; row < last; ++row) {
          int64_t offset = 0, rest = row;
          for (int i = inner - 1; i >= 0; --i) {
            offset += rest % v.sizes[i] * v.strides[i];
            rest /= v.sizes[i];
          }
          const T* const from = static_cast<const T*>(v.data) + offset;
          int64_t* const to = a.words + row * n;
          for (int64_t i = 0; i < n; ++i) {
            const uint64_t label = from[i * v.strides[inner]];
            fine &= label < limit;
            to[i] = a.lut[label < limit ? label : 0];
          }
        }
        const std::lock_guard<Lock> guard(lock);
        right &= fine;
      },
      n >= kGrain ? 1 : kGrain / n);
  return right;
}

bool lut(const LutArgs& a) {
  switch (a.volume.bytes) {
    case 1: return lut_of<uint8_t>(a);
    case 2: return lut_of<uint16_t>(a);
    case 4: return lut_of<uint32_t>(a);
    default: return lut_of<uint64_t>(a);
  }
}

inline uint64_t pack64(const uint8_t* from) {
  static const uint8_t zeros[64] = {};
  return differs(from, zeros);
}

void pack(const PackArgs& a) {
  const int64_t words = (a.count + 63) / 64;
  parallel_ranges(
      a.channels * words, a.threads,
      [&](int64_t first, int64_t last) {
        for (int64_t w = first; w < last; ++w) {
          const int64_t at = w % words * 64;
          const uint8_t* const from = a.masks + w / words * a.channel_stride + at;
          uint64_t bits = 0;
          if (at + 64 <= a.count) {
            bits = pack64(from);
          } else {
            for (int64_t i = 0; at + i < a.count; ++i) bits |= static_cast<uint64_t>(from[i] != 0) << i;
          }
          a.words[w] = static_cast<int64_t>(bits);
        }
      },
      kGrain / 64);
}

void unpack(const PackArgs& a) {
  const int64_t words = (a.count + 63) / 64;
  parallel_ranges(
      a.channels * words, a.threads,
      [&](int64_t first, int64_t last) {
        for (int64_t w = first; w < last; ++w) {
          const int64_t at = w % words * 64, n = least(64, a.count - at);
          uint8_t* const to = a.masks + w / words * a.channel_stride + at;
          const uint64_t bits = static_cast<uint64_t>(a.words[w]);
          for (int64_t i = 0; i < n; ++i) to[i] = bits >> i & 1;
        }
      },
      kGrain / 64);
}

void multihot(const BitCountArgs& a) {
  parallel_ranges(a.channels, a.threads, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const int64_t *const x = a.a + c * a.words, *const y = a.b + c * a.words;
      int64_t both = 0, left = 0, right = 0;
      for (int64_t i = 0; i < a.words; ++i) {
        both += __builtin_popcountll(static_cast<uint64_t>(x[i] & y[i]));
        left += __builtin_popcountll(static_cast<uint64_t>(x[i]));
        right += __builtin_popcountll(static_cast<uint64_t>(y[i]));
      }
      a.counts[3 * c] = both, a.counts[3 * c + 1] = left, a.counts[3 * c + 2] = right;
    }
  });
}

// One word per voxel: runs of equal words, each bit of a word once per run.
void owners(const BitCountArgs& a) {
  if (a.words == 0) return;
  int64_t totals[3][64] = {};
  const uint64_t *const x = reinterpret_cast<const uint64_t*>(a.a), *const y = reinterpret_cast<const uint64_t*>(a.b);
  Lock lock;
  parallel_ranges(
      a.words, a.threads,
      [&](int64_t first, int64_t last) {
        int64_t mine[3][64] = {};
        pair_runs(x + first, y + first, last - first, [&](int64_t begin, int64_t end) {
          const uint64_t p = x[first + begin], q = y[first + begin];
          for (uint64_t bits = p & q; bits != 0; bits &= bits - 1) mine[0][lowest_bit(bits)] += end - begin;
          for (uint64_t bits = p; bits != 0; bits &= bits - 1) mine[1][lowest_bit(bits)] += end - begin;
          for (uint64_t bits = q; bits != 0; bits &= bits - 1) mine[2][lowest_bit(bits)] += end - begin;
        });
        const std::lock_guard<Lock> guard(lock);
        for (int k = 0; k < 3; ++k) {
          for (int c = 0; c < 64; ++c) totals[k][c] += mine[k][c];
        }
      },
      kGrain);
  for (int64_t c = 0; c < a.channels; ++c) {
    for (int k = 0; k < 3; ++k) a.counts[3 * c + k] = totals[k][c];
  }
}

}  // namespace

extern const tenfold::OverlapKernels overlap_kernels;
const tenfold::OverlapKernels overlap_kernels = {counts, lut, pack, unpack, multihot, owners};

}  // namespace TF_NS
