// A tile of voxels times classes, as the soft-overlap kernels of the CPU see it: rows of logits and labels in the arithmetic's dtype,
// padded to whole registers, and which voxels count.
#pragma once

#include "softdice_api.hpp"
#include "softdice_lanes.hpp"

#include "../core/dtype.hpp"
#include "../core/room.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kRoom = 16384;  // entries of a tile over all classes: 64 KiB of floats
constexpr int64_t kStep = 64;     // a multiple of every number of lanes

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class M>
int64_t tile_size(int64_t classes) {
  const int64_t fits = kRoom / classes / kStep * kStep;
  return fits < kStep ? kStep : (fits > 1024 ? 1024 : fits);
}

// value where the factor is not zero, else zero, whatever the value is.
TF_HD V if_set(V factor, V value) { return choose(reinterpret_cast<I>(factor != 0.0f), value, V{}); }
TF_HD D if_set(D factor, D value) { return factor != 0.0 ? value : D{}; }

// p, 1 - p, -log p and -log(1 - p) of the logistic function.
template <class M>
struct Sigmoid {
  using L = lanes_t<M>;
  L p, q, loss_positive, loss_negative;
  explicit TF_HD Sigmoid(L x) {
    const L size = larger(x, -x), none{};
    const L e = exp_small(-size), tail = log_one_plus(e), large = 1 / (1 + e), small = e * large;
    const auto up = x >= none;
    p = pick(up, large, small);
    q = pick(up, small, large);
    loss_positive = tail + larger(none, -x);
    loss_negative = tail + larger(none, x);
    p = p + (x - x);  // NaN stays NaN
    loss_positive = loss_positive + (x - x);
  }

 private:
  template <class Mask>
  static TF_HD V pick(Mask mask, V a, V b) {
    return choose(reinterpret_cast<I>(mask), a, b);
  }
  template <class Mask>
  static TF_HD D pick(Mask mask, D a, D b) {
    return mask ? a : b;
  }
};

// One line of a map as numbers of the arithmetic's dtype, zero behind its end.
template <class From, class M>
void read_line(const void* data, int64_t offset, int64_t stride, int64_t count, int64_t padded, M* to) {
  const From* from = static_cast<const From*>(data) + offset;
  int64_t i = 0;
  if constexpr (!std::is_integral<From>::value && std::is_same<M, math_t<From>>::value) {
    constexpr int64_t kW = LanesOf<M>::count;
    for (; stride == 1 && i + kW <= count; i += kW) store_lanes(to + i, load_lanes(from + i));
  }
  for (; i < count; ++i) {
    if constexpr (std::is_integral<From>::value) {
      to[i] = static_cast<M>(from[i * stride]);
    } else {
      to[i] = static_cast<M>(to_math(from[i * stride]));
    }
  }
  for (; i < padded; ++i) to[i] = 0;
}

// Writes whole registers straight to memory where the instruction set can, which saves reading what is overwritten; returns how many
// entries.
template <class T, class M>
int64_t write_past_caches(T* to, const M* from, int64_t count) {
  int64_t i = 0;
#if defined(TF_ISA_AVX512)
  if constexpr (std::is_same<T, float>::value) {
    if (reinterpret_cast<uintptr_t>(to) % 64 != 0) return 0;
    for (; i + 16 <= count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
  }
#elif defined(TF_ISA_AVX2)
  if constexpr (std::is_same<T, float>::value) {
    if (reinterpret_cast<uintptr_t>(to) % 32 != 0) return 0;
    for (; i + 8 <= count; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
  }
#endif
  (void)to, (void)from, (void)count;
  return i;
}

template <class Use>
void by_label_type(int dtype, const Use& use) {
  switch (dtype) {
    case kFloat32: return use(float{});
    case kFloat64: return use(double{});
    case kBFloat16: return use(bfloat16{});
    case kFloat16: return use(float16{});
    case kLabelU8: return use(uint8_t{});
    case kLabelI8: return use(int8_t{});
    case kLabelI16: return use(int16_t{});
    case kLabelI32: return use(int32_t{});
    default: return use(int64_t{});
  }
}

template <class T>
class Tile {
  using M = math_t<T>;

 public:
  int64_t classes, tile, count = 0, padded = 0;
  bool dense;
  M *top, *scale, *lse, *at_label, *p, *loss, *keep;  // one number per voxel
  Vector<int32_t> label;                              // -1: left out, or behind the end; only without `dense`
  Vector<M> extra;

  Tile(const SoftdiceArgs& a, int64_t tile_size)
      : classes(a.classes), tile(tile_size), dense(a.dense), label(static_cast<size_t>(tile_size)), a_(a) {
    storage_.resize(static_cast<size_t>((classes + 9) * tile) + 64 / sizeof(M));
    M* at = storage_.data();
    while (reinterpret_cast<uintptr_t>(at) % 64 != 0) ++at;
    room_ = at;
    at += classes * tile;
    for (M** array : {&top, &scale, &lse, &at_label, &p, &loss, &keep, &line_, &label_line_}) {
      *array = at;
      at += tile;
    }
  }

  // Goes to voxels first .. first + n of batch item b; returns how many labels are outside the classes.
  int64_t open(int64_t b, int64_t first, int64_t n) {
    b_ = b;
    first_ = first;
    count = n;
    padded = round_up(n, kStep);
    for (int64_t v = 0; v < padded; ++v) keep[v] = v < n ? 1 : 0;
    if (a_.mask.data != nullptr) {
      const uint8_t* m = static_cast<const uint8_t*>(a_.mask.data) + b * a_.mask.batch_stride + first * a_.mask.voxel_stride;
      for (int64_t v = 0; v < n; ++v) keep[v] = m[v * a_.mask.voxel_stride] != 0 ? 1 : 0;
    }
    int64_t bad = 0;
    if (!dense) {
      by_label_type(a_.target.dtype, [&](auto zero) {
        using From = decltype(zero);
        if constexpr (std::is_integral<From>::value) bad = read_labels<From>();
      });
    }
    left_out_.clear();
    for (int64_t v = 0; v < n; ++v) {
      if (keep[v] == 0) left_out_.push_back(v);
    }
    for (int64_t v = n; v < padded; ++v) label[static_cast<size_t>(v)] = -1;
    return bad;
  }

  // Logits of a class, read where they lie if they are of the arithmetic's dtype and fill the tile.
  const M* row(int64_t c) {
    const int64_t offset = b_ * a_.logits.batch_stride + c * a_.logits.class_stride + first_ * a_.logits.voxel_stride;
    if constexpr (std::is_same<T, M>::value) {
      if (a_.logits.voxel_stride == 1 && count == padded) return static_cast<const M*>(a_.logits.data) + offset;
    }
    read_line<T>(a_.logits.data, offset, a_.logits.voxel_stride, count, padded, line_);
    return line_;
  }
  M* room(int64_t c) { return room_ + c * tile; }

  // The labels of a class as numbers.
  const M* label_row(int64_t c) {
    if (!dense) {
      for (int64_t v = 0; v < padded; ++v) label_line_[v] = label[static_cast<size_t>(v)] == c ? 1 : 0;
      return label_line_;
    }
    const int64_t offset = b_ * a_.target.batch_stride + c * a_.target.class_stride + first_ * a_.target.voxel_stride;
    by_label_type(a_.target.dtype, [&](auto zero) {
      read_line<decltype(zero)>(a_.target.data, offset, a_.target.voxel_stride, count, padded, label_line_);
    });
    return label_line_;
  }

  // The logit of each voxel's label.
  void gather_rows(M* to) {
    const T* x = static_cast<const T*>(a_.logits.data) + b_ * a_.logits.batch_stride + first_ * a_.logits.voxel_stride;
    for (int64_t v = 0; v < padded; ++v) {
      const int32_t y = label[static_cast<size_t>(v)];
      to[v] = y < 0 ? 0 : to_math(x[y * a_.logits.class_stride + v * a_.logits.voxel_stride]);
    }
  }

  // use(v) for the voxels that are left out and those behind the end.
  template <class Use>
  void leave_out(const Use& use) {
    for (int64_t v : left_out_) use(v);
    for (int64_t v = count; v < padded; ++v) use(v);
  }
  // What a voxel that is left out has in the room may be NaN, and 0 * NaN must not reach a sum.
  void clear_left_out() {
    for (int64_t v : left_out_) {
      for (int64_t c = 0; c < classes; ++c) room(c)[v] = 0;
    }
  }

  void write(const SoftdiceMap& out, int64_t b, int64_t first) {
    constexpr int64_t kW = LanesOf<M>::count;
    for (int64_t c = 0; c < classes; ++c) {
      T* to = static_cast<T*>(out.data) + b * out.batch_stride + c * out.class_stride + first * out.voxel_stride;
      const M* from = room(c);
      int64_t i = 0;
      if (out.voxel_stride == 1) i = write_past_caches(to, from, count);
      for (; out.voxel_stride == 1 && i + kW <= count; i += kW) store_lanes(to + i, load_lanes(from + i));
      for (; i < count; ++i) to[i * out.voxel_stride] = Round<T>::nearest(from[i]);
    }
  }

 private:
  template <class From>
  int64_t read_labels() {
    const From* y = static_cast<const From*>(a_.target.data) + b_ * a_.target.batch_stride + first_ * a_.target.voxel_stride;
    int64_t bad = 0;
    for (int64_t v = 0; v < count; ++v) {
      const int64_t value = static_cast<int64_t>(y[v * a_.target.voxel_stride]);  // NOLINT(bugprone-signed-char-misuse)
      const bool ignored = keep[v] == 0 || (a_.has_ignore && value == a_.ignore);
      const bool outside = value < 0 || value >= classes;
      bad += outside && !ignored;
      label[static_cast<size_t>(v)] = ignored || outside ? -1 : static_cast<int32_t>(value);
      if (ignored || outside) keep[v] = 0;
    }
    return bad;
  }

  const SoftdiceArgs& a_;
  int64_t b_ = 0, first_ = 0;
  Vector<M> storage_;
  Vector<int64_t> left_out_;
  M *room_, *line_, *label_line_;
};

}  // namespace
}  // namespace TF_NS
