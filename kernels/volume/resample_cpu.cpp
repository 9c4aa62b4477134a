// Trilinear interpolation and argmax over the classes on the CPU. For one output row the four input rows around it are blended into one
// row per class, which stay in the first-level cache (55 classes of 96 floats: 21 KB); a register of outputs then takes its two neighbours
// along x from two loads and a permutation each, and the running maximum never leaves its registers. Bound by arithmetic: about seven
// instructions per class and register of outputs.
#include "volume_api.hpp"

#include "../logprob/rows_lanes.hpp"

#include "../core/dtype.hpp"
#include "../core/parallel.hpp"
#include "../core/room.hpp"

#include <limits>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kW = kLanes;

// Two neighbours and the share of the second, for each place along an axis; computed in float32 as PyTorch does.
struct Axis {
  Vector<int64_t> low, high;
  Vector<float> share;
  Axis(int64_t in, int64_t out, bool align_corners)
      : low(static_cast<size_t>(out)), high(static_cast<size_t>(out)), share(static_cast<size_t>(out)) {
    const float scale = align_corners ? (out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f)
                                      : static_cast<float>(in) / static_cast<float>(out);
    for (int64_t i = 0; i < out; ++i) {
      const float wanted = align_corners ? scale * static_cast<float>(i) : scale * (static_cast<float>(i) + 0.5f) - 0.5f;
      const float at = wanted > 0.0f ? wanted : 0.0f;
      const int64_t first = static_cast<int64_t>(at) < in - 1 ? static_cast<int64_t>(at) : in - 1;
      low[static_cast<size_t>(i)] = first;
      high[static_cast<size_t>(i)] = first + (first < in - 1 ? 1 : 0);
      share[static_cast<size_t>(i)] = at - static_cast<float>(first);
    }
  }
};

// A register of outputs along x: its neighbours are entries base + pick and base + 1 + pick of a row, if they lie within one register.
struct Group {
  int64_t base;
  bool near;
  I pick;
  V share;
};

Vector<Group> groups_along(const Axis& x, int64_t out) {
  Vector<Group> groups;
  for (int64_t first = 0; first < out; first += kW) {
    Group g = {x.low[static_cast<size_t>(first)], true, {}, {}};
    for (int64_t j = 0; j < kW; ++j) {
      const size_t i = static_cast<size_t>(first + j < out ? first + j : out - 1);
      g.pick[j] = static_cast<int32_t>(x.low[i] - g.base);
      g.share[j] = x.high[i] > x.low[i] ? x.share[i] : 0.0f;
      g.near = g.near && g.pick[j] < static_cast<int32_t>(kW);
    }
    groups.push_back(g);
  }
  return groups;
}

template <class T>
void blend_rows(const T* const rows[4], const float weight[4], int64_t n, float* to) {
  int64_t i = 0;
  const V w0 = spread(weight[0]), w1 = spread(weight[1]), w2 = spread(weight[2]), w3 = spread(weight[3]);
  for (; i + kW <= n; i += kW) {
    V v = w0 * load_lanes(rows[0] + i);
    v = multiply_add(w1, load_lanes(rows[1] + i), v);
    v = multiply_add(w2, load_lanes(rows[2] + i), v);
    store_lanes(to + i, multiply_add(w3, load_lanes(rows[3] + i), v));
  }
  for (; i < n; ++i) {
    to[i] = static_cast<float>(weight[0] * to_math(rows[0][i]) + weight[1] * to_math(rows[1][i]) + weight[2] * to_math(rows[2][i]) +
                               weight[3] * to_math(rows[3][i]));
  }
}

TF_HD V pick_lanes(V from, I at) {
#if defined(__clang__)
  V out;
  for (int64_t j = 0; j < kW; ++j) out[j] = from[at[j]];
  return out;
#else
  return reinterpret_cast<V>(__builtin_shuffle(reinterpret_cast<I>(from), at));
#endif
}

template <class Label>
void argmax_row(const float* rows, int64_t width, int64_t classes, const Vector<Group>& groups, int64_t out, Label* labels) {
  for (size_t k = 0; k < groups.size(); ++k) {
    const Group& g = groups[k];
    V best = spread(-std::numeric_limits<float>::infinity());
    I label = {};
    for (int64_t c = 0; c < classes; ++c) {
      const float* row = rows + c * width + g.base;
      V low, high;
      if (g.near) {
        low = pick_lanes(load_lanes(row), g.pick);
        high = pick_lanes(load_lanes(row + 1), g.pick);
      } else {
        for (int64_t j = 0; j < kW; ++j) {
          low[j] = row[g.pick[j]];
          high[j] = row[g.pick[j] + 1];
        }
      }
      const V value = multiply_add(g.share, high - low, low);
      const I wins = less(best, value);
      best = choose(wins, value, best);
      label = wins ? static_cast<int32_t>(c) - I{} : label;
    }
    const int64_t first = static_cast<int64_t>(k) * kW;
    for (int64_t j = 0; j < kW && first + j < out; ++j) labels[first + j] = static_cast<Label>(label[j]);
  }
}

template <class T, class Label>
void resample_of(const ResampleArgs& a) {
  const Axis z(a.in[0], a.out[0], a.align_corners), y(a.in[1], a.out[1], a.align_corners), x(a.in[2], a.out[2], a.align_corners);
  const Vector<Group> groups = groups_along(x, a.out[2]);
  const int64_t width = a.in[2] + 2 * kW;  // a load may begin at the last entry, and its neighbour one behind
  parallel_ranges(a.out[0] * a.out[1], a.threads, [&](int64_t first, int64_t last) {
    Vector<float> rows(static_cast<size_t>(a.classes * width));
    for (int64_t line = first; line < last; ++line) {
      const size_t oz = static_cast<size_t>(line / a.out[1]), oy = static_cast<size_t>(line % a.out[1]);
      const float wz = z.share[oz], wy = y.share[oy];
      const float weight[4] = {(1 - wz) * (1 - wy), (1 - wz) * wy, wz * (1 - wy), wz * wy};
      for (int64_t c = 0; c < a.classes; ++c) {
        const T* base = static_cast<const T*>(a.logits) + c * a.stride[0];
        const T* const four[4] = {
            base + z.low[oz] * a.stride[1] + y.low[oy] * a.stride[2], base + z.low[oz] * a.stride[1] + y.high[oy] * a.stride[2],
            base + z.high[oz] * a.stride[1] + y.low[oy] * a.stride[2], base + z.high[oz] * a.stride[1] + y.high[oy] * a.stride[2]};
        float* row = rows.data() + c * width;
        blend_rows(four, weight, a.in[2], row);
        for (int64_t j = a.in[2]; j < width; ++j) row[j] = row[a.in[2] - 1];
      }
      argmax_row(rows.data(), width, a.classes, groups, a.out[2], static_cast<Label*>(a.labels) + line * a.out[2]);
    }
  });
}

template <class T>
void by_label_bytes(const ResampleArgs& a) {
  if (a.label_bytes == 1) {
    resample_of<T, uint8_t>(a);
  } else {
    resample_of<T, int16_t>(a);
  }
}

void resample_argmax(const ResampleArgs& a) {
  switch (a.dtype) {
    case kBFloat16: return by_label_bytes<bfloat16>(a);
    case kFloat16: return by_label_bytes<float16>(a);
    default: return by_label_bytes<float>(a);
  }
}

}  // namespace

extern const tenfold::VolumeKernels volume_kernels;
const tenfold::VolumeKernels volume_kernels = {resample_argmax};

}  // namespace TF_NS
