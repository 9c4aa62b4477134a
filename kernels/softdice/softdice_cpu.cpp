// Soft overlap on the CPU: a tile of voxels times all classes stays in the second-level cache while its largest logit, its exponentials and
// its sums are made, so logits come from memory once per pass. Bound by memory and by two exponentials per logit (one each way).
//
// Voxels are cut into pieces whose size depends on their number alone, a piece is summed by one thread in one order, and pieces are joined
// in order, so that the number of threads changes nothing. Lanes sum at most kFlush tiles in the arithmetic's dtype, then go to double.
#include "softdice_tile.hpp"

#include "../core/pages.hpp"
#include "../core/parallel.hpp"

namespace TF_NS {
namespace {

constexpr int64_t kMostPieces = 256;
constexpr int64_t kLeastPiece = 4096;
constexpr int64_t kFlush = 4;

struct Pieces {
  int64_t size, per_batch;
  Pieces(int64_t voxels, int64_t tile) {
    const int64_t wanted = (voxels + kMostPieces - 1) / kMostPieces;
    size = round_up(wanted > kLeastPiece ? wanted : kLeastPiece, tile);
    per_batch = (voxels + size - 1) / size;
  }
};

// Where a lane's share of a sum is kept until it goes to double: [kSoftdiceSums, classes] registers.
template <class M>
class LaneSums {
 public:
  using L = lanes_t<M>;
  explicit LaneSums(int64_t classes) : classes_(classes), lanes_(static_cast<size_t>(classes * kSoftdiceSums * kW)) {}
  void add(int sum, int64_t c, L value) {
    M* at = lanes_.data() + (sum * classes_ + c) * kW;
    store_lanes(at, load_lanes(at) + value);
  }
  void flush(double* sums) {
    for (int64_t k = 0; k < kSoftdiceSums; ++k) {
      for (int64_t c = 0; c < classes_; ++c) {
        M* at = lanes_.data() + (k * classes_ + c) * kW;
        sums[c * kSoftdiceSums + k] += sum_lanes(load_lanes(at));
        store_lanes(at, L{});
      }
    }
  }

 private:
  static constexpr int64_t kW = LanesOf<M>::count;
  int64_t classes_;
  Vector<M> lanes_;
};

// exp(x - max) of the tile into its room, and per voxel 1 / sum (0 for one that is left out) and the log-sum-exp.
template <class T>
void softmax_tile(Tile<T>& t) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  for (int64_t c = 0; c < t.classes; ++c) {
    const M* x = t.row(c);
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto v = load_lanes(x + i);
      store_lanes(t.top + i, c == 0 ? v : larger(load_lanes(t.top + i), v));
    }
  }
  if (!t.dense) t.gather_rows(t.at_label);
  for (int64_t i = 0; i < t.padded; i += kW) store_lanes(t.scale + i, lanes_t<M>{});
  for (int64_t c = 0; c < t.classes; ++c) {
    const M* x = t.row(c);
    M* room = t.room(c);
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto e = exp_small(load_lanes(x + i) - load_lanes(t.top + i));
      store_lanes(room + i, e);
      store_lanes(t.scale + i, load_lanes(t.scale + i) + e);
    }
  }
  for (int64_t i = 0; i < t.padded; i += kW) {
    const auto s = load_lanes(t.scale + i);
    store_lanes(t.lse + i, load_lanes(t.top + i) + log_positive(s));
    store_lanes(t.scale + i, 1 / s);
  }
  t.leave_out([&](int64_t v) { t.scale[v] = t.lse[v] = 0; });
  t.clear_left_out();
}

// (1 - p)^gamma (-log p) at the label of each voxel, from p and -log p.
template <class M>
void focal_values(const M* p, M* loss, int64_t padded, M gamma) {
  if (gamma == 0) return;
  for (int64_t i = 0; i < padded; i += LanesOf<M>::count) {
    const auto q = larger(all_lanes<M>(static_cast<M>(1e-20)), 1 - load_lanes(p + i));
    store_lanes(loss + i, load_lanes(loss + i) * exp_small(gamma * log_positive(q)));
  }
}

template <class T>
void softmax_labels(Tile<T>& t, const SoftdiceArgs& a, LaneSums<math_t<T>>& lanes, double* sums) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  for (int64_t c = 0; c < t.classes; ++c) {
    const M* e = t.room(c);
    lanes_t<M> p{}, q{};
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto value = load_lanes(e + i) * load_lanes(t.scale + i);
      p = p + value;
      if (a.squares) q = multiply_add(value, value, q);
    }
    lanes.add(kPrediction, c, p);
    if (a.squares) lanes.add(kPredictionSquared, c, q);
  }
  for (int64_t v = 0; v < t.padded; ++v) {
    const int32_t y = t.label[v];
    t.p[v] = y < 0 ? 0 : t.room(y)[v] * t.scale[v];
    t.loss[v] = y < 0 ? 0 : t.lse[v] - t.at_label[v];
  }
  if (a.logs) focal_values(t.p, t.loss, t.padded, static_cast<M>(a.gamma));
  for (int64_t v = 0; v < t.count;) {  // runs of one label
    const int32_t y = t.label[v];
    double p = 0.0, loss = 0.0;
    const int64_t first = v;
    for (; v < t.count && t.label[v] == y; ++v) {
      p += static_cast<double>(t.p[v]);
      loss += static_cast<double>(t.loss[v]);
    }
    if (y < 0) continue;
    double* of = sums + y * kSoftdiceSums;
    of[kIntersection] += p;
    of[kTarget] += static_cast<double>(v - first);
    of[kTargetSquared] += static_cast<double>(v - first);
    if (a.logs) of[kLogPositive] += loss;
  }
}

// Any activation with a map of labels, and the sigmoid or none with integer labels.
template <class T>
void general_sums(Tile<T>& t, const SoftdiceArgs& a, LaneSums<math_t<T>>& lanes) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  const M gamma = static_cast<M>(a.gamma);
  for (int64_t c = 0; c < t.classes; ++c) {
    const M* x = t.row(c);
    const M* y = t.label_row(c);
    const M* e = t.room(c);
    lanes_t<M> sum[kSoftdiceSums] = {};
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto value = load_lanes(x + i), truth = load_lanes(y + i), keep = load_lanes(t.keep + i);
      lanes_t<M> p = value, positive{}, negative{};
      if (a.activation == kSoftmax) {
        p = load_lanes(e + i) * load_lanes(t.scale + i);
        positive = load_lanes(t.lse + i) - value;
        if (gamma != 0) positive = positive * exp_small(gamma * log_positive(larger(all_lanes<M>(static_cast<M>(1e-20)), 1 - p)));
      } else if (a.activation == kSigmoid) {
        const Sigmoid<M> s(value);
        p = s.p;
        positive = gamma == 0 ? s.loss_positive : s.loss_positive * exp_small(-gamma * s.loss_negative);
        negative = gamma == 0 ? s.loss_negative : s.loss_negative * exp_small(-gamma * s.loss_positive);
      }
      sum[kIntersection] = sum[kIntersection] + if_set(keep, p * truth);
      sum[kPrediction] = sum[kPrediction] + if_set(keep, p);
      if (a.squares) sum[kPredictionSquared] = sum[kPredictionSquared] + if_set(keep, p * p);
      sum[kTarget] = sum[kTarget] + if_set(keep, truth);
      sum[kTargetSquared] = sum[kTargetSquared] + if_set(keep, truth * truth);
      if (a.logs && a.activation != kNone) {
        sum[kLogPositive] = sum[kLogPositive] + if_set(keep, if_set(truth, truth * positive));
        const auto rest = 1 - truth;
        if (a.activation == kSigmoid) sum[kLogNegative] = sum[kLogNegative] + if_set(keep, if_set(rest, rest * negative));
      }
    }
    for (int k = 0; k < kSoftdiceSums; ++k) lanes.add(k, c, sum[k]);
  }
}

template <class T>
void forward_of(const SoftdiceArgs& a) {
  using M = math_t<T>;
  const int64_t tile = tile_size<M>(a.classes);
  const Pieces pieces(a.voxels, tile);
  const int64_t total = a.batches * pieces.per_batch, width = a.classes * kSoftdiceSums;
  Vector<double> partial(static_cast<size_t>(total * width));
  Vector<int64_t> bad(static_cast<size_t>(total));
  parallel_ranges(total, a.threads, [&](int64_t first, int64_t last) {
    Tile<T> t(a, tile);
    LaneSums<M> lanes(a.classes);
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t b = piece / pieces.per_batch, begin = piece % pieces.per_batch * pieces.size;
      const int64_t end = begin + pieces.size < a.voxels ? begin + pieces.size : a.voxels;
      double* sums = partial.data() + piece * width;
      int64_t waiting = 0;
      for (int64_t v = begin; v < end; v += tile) {
        bad[static_cast<size_t>(piece)] += t.open(b, v, end - v < tile ? end - v : tile);
        if (a.activation == kSoftmax) {
          softmax_tile(t);
          M* lse = static_cast<M*>(a.lse) + b * a.voxels + v;
          for (int64_t i = 0; i < t.count; ++i) lse[i] = t.lse[i];
        }
        if (a.activation == kSoftmax && !a.dense) {
          softmax_labels(t, a, lanes, sums);
        } else {
          general_sums(t, a, lanes);
        }
        if (++waiting == kFlush) {
          lanes.flush(sums);
          waiting = 0;
        }
      }
      lanes.flush(sums);
    }
  });
  for (int64_t i = 0; i < a.batches * width; ++i) a.sums[i] = 0.0;
  for (int64_t piece = 0; piece < total; ++piece) {
    double* to = a.sums + piece / pieces.per_batch * width;
    for (int64_t i = 0; i < width; ++i) to[i] += partial[static_cast<size_t>(piece * width + i)];
    *a.bad += bad[static_cast<size_t>(piece)];
  }
}

// ---- backward -----------------------------------------------------------------------------------------------------------------------

// d(loss)/d(sums) of one batch item, by sum and class, in the arithmetic's dtype.
template <class M>
struct Slopes {
  Vector<M> value;
  int64_t classes;
  bool squares = false;
  Slopes(const double* grad, int64_t classes_) : value(static_cast<size_t>(classes_ * kSoftdiceSums)), classes(classes_) {
    for (int64_t c = 0; c < classes; ++c) {
      for (int64_t k = 0; k < kSoftdiceSums; ++k) {
        const double factor = k == kPredictionSquared ? 2.0 : 1.0;
        value[static_cast<size_t>(k * classes + c)] = static_cast<M>(factor * grad[c * kSoftdiceSums + k]);
      }
      squares = squares || grad[c * kSoftdiceSums + kPredictionSquared] != 0.0;
    }
  }
  M of(int sum, int64_t c) const { return value[static_cast<size_t>(sum * classes + c)]; }
};

// -d/dlog(p) of (1 - p)^gamma (-log p).
template <class M>
TF_HD lanes_t<M> focal_slope(lanes_t<M> p, lanes_t<M> loss, M gamma) {
  if (gamma == 0) return all_lanes<M>(1);
  const auto q = larger(all_lanes<M>(static_cast<M>(1e-20)), 1 - p);
  const auto log_q = log_positive(q);
  return exp_small(gamma * log_q) * (1 + gamma * p * loss / q);
}

// exp(x - lse) into the room and sum_j p_j (alpha_j + 2 gamma_j p_j) into t.top.
template <class T>
void probabilities(Tile<T>& t, const Slopes<math_t<T>>& g) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  for (int64_t i = 0; i < t.padded; i += kW) store_lanes(t.top + i, lanes_t<M>{});
  for (int64_t c = 0; c < t.classes; ++c) {
    const M* x = t.row(c);
    M* room = t.room(c);
    const auto slope = all_lanes<M>(g.of(kPrediction, c)), square = all_lanes<M>(g.of(kPredictionSquared, c));
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto p = exp_small(load_lanes(x + i) - load_lanes(t.lse + i));
      store_lanes(room + i, p);
      const auto full = g.squares ? multiply_add(square, p, slope) : slope;
      store_lanes(t.top + i, multiply_add(p, full, load_lanes(t.top + i)));
    }
  }
  t.leave_out([&](int64_t v) { t.top[v] = 0; });
  t.clear_left_out();
}

template <class T>
void finish_softmax(Tile<T>& t, const Slopes<math_t<T>>& g) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  for (int64_t c = 0; c < t.classes; ++c) {
    M* room = t.room(c);
    const auto slope = all_lanes<M>(g.of(kPrediction, c)), square = all_lanes<M>(g.of(kPredictionSquared, c));
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto p = load_lanes(room + i);
      const auto full = g.squares ? multiply_add(square, p, slope) : slope;
      store_lanes(room + i, p * (full - load_lanes(t.top + i)));
    }
  }
}

template <class T>
void backward_labels(Tile<T>& t, const SoftdiceArgs& a, const Slopes<math_t<T>>& g) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  probabilities(t, g);
  for (int64_t v = 0; v < t.padded; ++v) {
    const int32_t y = t.label[v];
    t.p[v] = y < 0 ? 0 : t.room(y)[v];
    t.scale[v] = y < 0 ? 0 : g.of(kLogPositive, y);
  }
  if (a.gamma != 0.0 && a.logs) {
    t.gather_rows(t.at_label);
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto loss = load_lanes(t.lse + i) - load_lanes(t.at_label + i);
      store_lanes(t.scale + i, load_lanes(t.scale + i) * focal_slope<M>(load_lanes(t.p + i), loss, static_cast<M>(a.gamma)));
    }
  }
  for (int64_t v = 0; v < t.count; ++v) {
    const int32_t y = t.label[v];
    t.loss[v] = y < 0 ? 0 : g.of(kIntersection, y) * t.p[v] - t.scale[v];
    if (y >= 0) t.top[v] += t.loss[v];
  }
  finish_softmax(t, g);
  for (int64_t v = 0; v < t.count; ++v) {
    if (t.label[v] >= 0) t.room(t.label[v])[v] += t.loss[v];
  }
}

// Softmax with a map of labels.
template <class T>
void backward_map(Tile<T>& t, const SoftdiceArgs& a, const Slopes<math_t<T>>& g) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  const M gamma = static_cast<M>(a.gamma);
  probabilities(t, g);
  const auto own = [&](int64_t c, int64_t i, const M* x, const M* y) {  // p y beta - focal
    const auto p = load_lanes(t.room(c) + i), truth = load_lanes(y + i);
    const auto loss = load_lanes(t.lse + i) - load_lanes(x + i);
    const auto focal = if_set(truth, g.of(kLogPositive, c) * truth * focal_slope<M>(p, loss, gamma));
    return if_set(load_lanes(t.keep + i), g.of(kIntersection, c) * p * truth - focal);
  };
  Vector<M>& extra = t.extra;  // its value per class and voxel
  extra.resize(static_cast<size_t>(t.classes * t.tile));
  for (int64_t c = 0; c < t.classes; ++c) {
    const M *x = t.row(c), *y = t.label_row(c);
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto value = own(c, i, x, y);
      store_lanes(extra.data() + c * t.tile + i, value);
      store_lanes(t.top + i, load_lanes(t.top + i) + value);
    }
  }
  finish_softmax(t, g);
  for (int64_t c = 0; c < t.classes; ++c) {
    M* room = t.room(c);
    for (int64_t i = 0; i < t.padded; i += kW) store_lanes(room + i, load_lanes(room + i) + load_lanes(extra.data() + c * t.tile + i));
  }
}

// Sigmoid or none: every element for itself.
template <class T>
void backward_elements(Tile<T>& t, const SoftdiceArgs& a, const Slopes<math_t<T>>& g) {
  using M = math_t<T>;
  constexpr int64_t kW = LanesOf<M>::count;
  const M gamma = static_cast<M>(a.gamma);
  for (int64_t c = 0; c < t.classes; ++c) {
    const M *x = t.row(c), *y = t.label_row(c);
    M* room = t.room(c);
    for (int64_t i = 0; i < t.padded; i += kW) {
      const auto value = load_lanes(x + i), truth = load_lanes(y + i);
      const auto slope = [&](lanes_t<M> p) {
        return g.of(kIntersection, c) * truth + g.of(kPrediction, c) + g.of(kPredictionSquared, c) * p;
      };
      lanes_t<M> dx = slope(value);
      if (a.activation == kSigmoid) {
        const Sigmoid<M> s(value);
        lanes_t<M> positive = s.q, negative = s.p;
        if (gamma != 0) {
          positive = exp_small(-gamma * s.loss_negative) * (s.q + gamma * s.p * s.loss_positive);
          negative = exp_small(-gamma * s.loss_positive) * (s.p + gamma * s.q * s.loss_negative);
        }
        dx = slope(s.p) * s.p * s.q - g.of(kLogPositive, c) * truth * positive + g.of(kLogNegative, c) * (1 - truth) * negative;
      }
      store_lanes(room + i, if_set(load_lanes(t.keep + i), dx));
    }
  }
}

// From the first to the last number of a map.
inline int64_t bytes_between(const SoftdiceMap& m, int64_t batches, int64_t classes, int64_t voxels, size_t each) {
  if (batches * classes * voxels == 0) return 0;
  const int64_t last = (batches - 1) * m.batch_stride + (classes - 1) * m.class_stride + (voxels - 1) * m.voxel_stride;
  return (last + 1) * static_cast<int64_t>(each);
}

template <class T>
void backward_of(const SoftdiceArgs& a) {
  using M = math_t<T>;
  const int64_t tile = tile_size<M>(a.classes);
  const Pieces pieces(a.voxels, tile);
  ask_for_large_pages(a.out.data, bytes_between(a.out, a.batches, a.classes, a.voxels, sizeof(T)));
  Vector<Slopes<M>> slopes;
  for (int64_t b = 0; b < a.batches; ++b) slopes.emplace_back(a.sums + b * a.classes * kSoftdiceSums, a.classes);
  parallel_ranges(a.batches * pieces.per_batch, a.threads, [&](int64_t first, int64_t last) {
    Tile<T> t(a, tile);
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t b = piece / pieces.per_batch, begin = piece % pieces.per_batch * pieces.size;
      const int64_t end = begin + pieces.size < a.voxels ? begin + pieces.size : a.voxels;
      const Slopes<M>& g = slopes[static_cast<size_t>(b)];
      for (int64_t v = begin; v < end; v += tile) {
        t.open(b, v, end - v < tile ? end - v : tile);
        if (a.activation == kSoftmax) {
          const M* lse = static_cast<const M*>(a.lse) + b * a.voxels + v;
          for (int64_t i = 0; i < t.padded; ++i) t.lse[i] = i < t.count ? lse[i] : 0;
        }
        if (a.activation != kSoftmax) {
          backward_elements(t, a, g);
        } else if (a.dense) {
          backward_map(t, a, g);
        } else {
          backward_labels(t, a, g);
        }
        t.write(a.out, b, v);
      }
    }
  });
}

template <class Run>
void by_dtype(int dtype, const Run& run) {
  switch (dtype) {
    case kFloat32: return run(float{});
    case kFloat64: return run(double{});
    case kBFloat16: return run(bfloat16{});
    default: return run(float16{});
  }
}

void forward(const SoftdiceArgs& a) {
  by_dtype(a.logits.dtype, [&](auto zero) { forward_of<decltype(zero)>(a); });
}

void backward(const SoftdiceArgs& a) {
  by_dtype(a.logits.dtype, [&](auto zero) { backward_of<decltype(zero)>(a); });
}

}  // namespace

extern const tenfold::SoftdiceKernels softdice_kernels;
const tenfold::SoftdiceKernels softdice_kernels = {forward, backward};

}  // namespace TF_NS
