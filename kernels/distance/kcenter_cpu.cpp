// Greedy k-center on the CPU. Compiled once per instruction set.
//
// The next picks are found before x is read: among the rows that are farthest now (the pool), the greedy choice is played through with
// distances within the pool alone. It is what the choice from all rows would be for as long as the farthest row of the pool is at least as
// far as the pool's last row was at the start, because no row outside can be farther than that, and distances only shrink. One pass over x
// then serves all picks found so, up to `lookahead`; its multiplications are those of the picks, none is for a row that is not picked.
//
// Triangle prune: a row at distance m of its centre o cannot be nearer to a pick c with |c - o| >= 2 m (Elkan, ICML 2003). Rows that no
// pick can reach are not read.
#include "bounds.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kSegment = 1008;  // rows whose largest distance is remembered
constexpr int64_t kPoolPerPick = 4;
constexpr float kTaken = -1.0f;  // the distance of a picked row, below all others

struct Entry {
  float value;
  int64_t row;
};
// Whether a is chosen before b.
bool before(const Entry& a, const Entry& b) { return a.value > b.value || (a.value == b.value && a.row < b.row); }

struct State {
  const KCenterArgs& a;
  int64_t n, d, bad;
  const float* shift = nullptr;
  Room<float> middle, segment_top;
  Room<int64_t> centers;  // row numbers, those of `start` first
  Room<float> raw;        // the picks of a pass, as they are
  Columns picks;
  Room<Entry> pool;

  explicit State(const KCenterArgs& args) : a(args), n(args.x.rows), d(args.x.d), bad(args.x.rows) {
    if (!a.cosine) shift = find_middle(a.x, middle.take(d));
    segment_top.take((n + kSegment - 1) / kSegment);
    for (float& top : segment_top) top = kInfinity;
    for (int64_t i = 0; i < n; ++i) {
      a.distance[i] = kInfinity;
      a.owner[i] = -1;
    }
  }

  void pack(const Entry* rows, int64_t count) {
    raw.take(count * d);
    for (int64_t t = 0; t < count; ++t) fetch_row(a.x, rows[t].row, nullptr, raw.data() + t * d);
    picks.pack(raw.data(), count, d, a.cosine, shift, d >= kIntegersPay);
  }

  // The largest distances, in order, `size` of them or all that are left.
  void fill_pool(int64_t size) {
    pool.clear();
    for (int64_t s = 0; s * kSegment < n; ++s) {
      const int64_t end = (s + 1) * kSegment < n ? (s + 1) * kSegment : n;
      if (pool.size() == size && segment_top[s] <= pool[0].value) continue;
      for (int64_t i = s * kSegment; i < end; ++i) {
        const Entry entry = {a.distance[i], i};
        if (entry.value == kTaken) continue;
        if (pool.size() < size) {
          pool.push(entry);
          for (int64_t at = pool.size() - 1; at > 0 && before(pool[(at - 1) / 2], pool[at]); at = (at - 1) / 2) swap((at - 1) / 2, at);
        } else if (before(entry, pool[0])) {
          pool[0] = entry;
          sink(0, size);
        }
      }
    }
    for (int64_t end = pool.size() - 1; end > 0; --end) {  // heap sort: the worst is on top
      swap(0, end);
      sink(0, end);
    }
  }
  void swap(int64_t i, int64_t j) {
    const Entry entry = pool[i];
    pool[i] = pool[j];
    pool[j] = entry;
  }
  void sink(int64_t at, int64_t end) {
    for (;;) {
      int64_t child = 2 * at + 1;
      if (child >= end) return;
      if (child + 1 < end && before(pool[child], pool[child + 1])) ++child;
      if (!before(pool[at], pool[child])) return;
      swap(at, child);
      at = child;
    }
  }

  // Plays the choice through within the pool: the picks that are certain, at most `most`.
  void choose(int64_t most, bool complete, Room<Entry>& chosen) {
    chosen.clear();
    const Entry last = pool[pool.size() - 1];
    const int64_t size = pool.size();
    Room<float> rows;
    rows.take(size * d);
    Room<double> scale;
    scale.take(size);
    for (int64_t p = 0; p < size; ++p) {
      fetch_row(a.x, pool[p].row, nullptr, rows.data() + p * d);
      scale[p] = a.cosine ? inverse_length(rows.data() + p * d, d) : 1.0;
    }
    while (chosen.size() < most) {
      int64_t best = 0;
      for (int64_t p = 1; p < size; ++p) {
        if (before(pool[p], pool[best])) best = p;
      }
      if (pool[best].value == kTaken || (!complete && before(last, pool[best]))) return;
      chosen.push(pool[best]);
      pool[best].value = kTaken;
      if (chosen.size() == most) return;
      for (int64_t p = 0; p < size; ++p) {
        if (pool[p].value == kTaken) continue;
        const float value = exact_distance(rows.data() + p * d, scale[p], rows.data() + best * d, scale[best], d, a.cosine);
        if (value < pool[p].value) pool[p].value = value;
      }
    }
  }

  // For each centre so far a quarter of a lower bound of its squared distance to the nearest of the picks.
  void reaches(Room<float>& reach) {
    reach.take(centers.size());
    const int64_t each = Block::block_rows(d);
    parallel_ranges((centers.size() + each - 1) / each, a.threads, [&](int64_t begin, int64_t end) {
      Block block(a.x, picks);
      Room<float> tile;
      tile.take(block.capacity * picks.padded);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * each, count = centers.size() - first < each ? centers.size() - first : each;
        for (int64_t r = 0; r < count; ++r) block.put(r, centers[first + r]);
        block.multiply(count, 0, picks.padded, tile.data(), picks.padded);
        for (int64_t r = 0; r < count; ++r) {
          float least = kLargest;
          for (int64_t t = 0; t < picks.count; ++t) {
            const float low = (picks.norms[t] + block.norms[r]) * (1.0f - block.errors[r]) - 2.0f * tile[r * picks.padded + t];
            least = low < least ? low : least;
          }
          reach[first + r] = 0.25f * (1.0f - 1e-4f) * least;
        }
      }
    });
  }

  // Distances and owners of the rows after the picks in `picks`, which become centres. Segment by segment.
  void pass(const Entry* chosen, int64_t count) {
    pack(chosen, count);
    Room<float> reach;
    const bool prune = a.prune && centers.size() > 0;
    if (prune) reaches(reach);
    const int32_t known = static_cast<int32_t>(centers.size());
    for (int64_t t = 0; t < count; ++t) centers.push(chosen[t].row);
    const int64_t segments = (n + kSegment - 1) / kSegment;
    std::atomic<int64_t> seen{bad};
    parallel_ranges(segments, a.threads, [&](int64_t begin, int64_t end) {
      Block block(a.x, picks);
      Room<float> tile, buffer;
      tile.take(block.capacity * picks.padded);
      buffer.take(d);
      Room<int64_t> rows;
      rows.take(block.capacity);
      for (int64_t s = begin; s < end; ++s) {
        const int64_t last = (s + 1) * kSegment < n ? (s + 1) * kSegment : n;
        int64_t waiting = 0;
        for (int64_t i = s * kSegment; i < last; ++i) {
          if (a.distance[i] == kTaken) continue;
          // A row that is infinitely far from every centre has none.
          if (prune && a.owner[i] >= 0 && a.distance[i] <= reach[a.owner[i]]) continue;
          rows[waiting] = i;
          block.put(waiting++, i);
          if (waiting == block.capacity) {
            block.expect(i + 1, block.capacity, block.capacity / kRows * (picks.padded / kPanel));
            meet(block, tile.data(), rows.data(), waiting, known, buffer.data());
            waiting = 0;
          }
        }
        if (waiting > 0) meet(block, tile.data(), rows.data(), waiting, known, buffer.data());
      }
      lower(seen, block.bad);
    });
    bad = seen;
    for (int64_t t = 0; t < count; ++t) a.distance[chosen[t].row] = kTaken;
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t last = (s + 1) * kSegment < n ? (s + 1) * kSegment : n;
      float top = kTaken;
      for (int64_t i = s * kSegment; i < last; ++i) top = a.distance[i] > top ? a.distance[i] : top;
      segment_top[s] = top;
    }
  }

  void meet(Block& block, float* tile, const int64_t* rows, int64_t count, int32_t known, float* buffer) const {
    block.multiply(count, 0, picks.padded, tile, picks.padded);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t i = rows[r];
      const float* products = tile + r * picks.padded;
      const V below = spread(1.0f - block.errors[r]), own = spread(block.norms[r]);
      float reach = a.distance[i];
      const float* row = nullptr;
      double scale = 1.0;
      for (int64_t first = 0; first < picks.padded; first += kWidth) {
        const V low = multiply_add(load_lanes(products + first), spread(-2.0f), (load_lanes(picks.norms.data() + first) + own) * below);
        uint32_t set = lanes_set(less(low, spread(reach)));
        for (; set != 0; set &= set - 1) {
          const int lane = __builtin_ctz(set);
          const int64_t t = first + lane;
          if (!(low[lane] < reach)) continue;
          if (row == nullptr) {
            row = block.raw(r, i, buffer);
            scale = a.cosine ? inverse_length(row, d) : 1.0;
          }
          const float value = exact_distance(row, scale, raw.data() + t * d, picks.scale[t], d, a.cosine);
          if (value < reach) {
            reach = value;
            a.owner[i] = known + static_cast<int32_t>(t);
          }
        }
      }
      a.distance[i] = reach;
    }
  }
};

int64_t kcenter(const KCenterArgs& a) {
  State state(a);
  Room<Entry> chosen;
  for (int64_t at = 0; at < a.starts; at += a.lookahead) {
    chosen.clear();
    for (int64_t t = at; t < a.starts && t < at + a.lookahead; ++t) chosen.push({kInfinity, a.start[t]});
    state.pass(chosen.data(), chosen.size());
  }
  for (int64_t done = 0; done < a.k;) {
    const int64_t most = a.k - done < a.lookahead ? a.k - done : a.lookahead;
    if (done == 0 && a.first >= 0) {
      chosen.clear();
      chosen.push({kInfinity, a.first});
    } else {
      const int64_t size = kPoolPerPick * most;
      state.fill_pool(size);
      state.choose(most, state.pool.size() < size, chosen);
    }
    for (int64_t t = 0; t < chosen.size(); ++t) {
      a.picked[done + t] = chosen[t].row;
      if (done + t > 0) a.radius[done + t - 1] = chosen[t].value;  // the farthest row before this pick
    }
    state.pass(chosen.data(), chosen.size());
    done += chosen.size();
  }
  float top = 0.0f;
  for (int64_t i = 0; i < a.x.rows; ++i) {
    if (a.distance[i] == kTaken) a.distance[i] = 0.0f;
    top = a.distance[i] > top ? a.distance[i] : top;
    if (a.owner[i] >= 0) a.owner[i] = static_cast<int32_t>(state.centers[a.owner[i]]);
  }
  if (a.k > 0) a.radius[a.k - 1] = top;
  return state.bad < a.x.rows ? state.bad : -1;
}

}  // namespace

extern const tenfold::KCenterKernels kcenter_kernels;
const tenfold::KCenterKernels kcenter_kernels = {kcenter};

}  // namespace TF_NS
