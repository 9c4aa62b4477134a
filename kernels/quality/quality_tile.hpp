// The four moments of a strip of windows, eight rows at a time. Pixels of the strip are held in a ring of rows, as many as the eight rows
// of windows look at; sums down the columns go to a tile of four fields, sums along its rows give the moments. All of it stays in the
// first two levels of cache.
#pragma once

#include "quality_lanes.hpp"

#include "../core/pages.hpp"

namespace TF_NS {

constexpr int64_t kStrip = 128;                       // windows side by side, at most
constexpr int64_t kStride = kStrip + 16;              // room for the pixels that the last windows look at
constexpr int64_t kMostRing = kRows + kMostTaps - 1;  // rows of pixels
enum Field : int { kMeanX, kMeanY, kSquares, kProduct, kFields };

// A gradient that is about to be written.
inline void ask_for_image(const QualityImage& out, const QualityArgs& a) {
  if (out.data == nullptr || a.batches * a.channels * a.height * a.width == 0) return;
  const int64_t each = out.dtype == kFloat64 ? 8 : out.dtype == kFloat32 ? 4 : 2;
  const int64_t last = (a.batches - 1) * out.batch_stride + (a.channels - 1) * out.channel_stride + (a.height - 1) * out.row_stride +
                       (a.width - 1) * out.column_stride;
  ask_for_large_pages(out.data, (last + 1) * each);
}

template <class M, int kTaps>
class Strip {
 public:
  using L = lanes_t<M>;
  static constexpr int64_t kW = LanesOf<M>::count;
  static constexpr int64_t kRing = kRows + kTaps - 1;

  explicit Strip(const QualityArgs& args)
      : a(args),
        w(args),
        c1_(all_lanes<M>(static_cast<M>(a.c1))),
        c2_(all_lanes<M>(static_cast<M>(a.c2))),
        unbiased_(all_lanes<M>(static_cast<M>(a.unbiased))) {
    x_ = pixels_.zeros(2 * kMostRing * kStride);
    y_ = x_ + kMostRing * kStride;
    tile_ = sums_.zeros(kFields * kRows * kStride);
  }

  // Windows in columns first .. first + count of plane (b, c), from the row of pixels `row` on. Moments are taken about a pixel of the
  // strip: the variance of a bright, even area would otherwise be lost in the rounding of squares.
  void open(int64_t b, int64_t c, int64_t first, int64_t count, int64_t row) {
    b_ = b;
    c_ = c;
    first_ = first;
    columns_ = count + kTaps - 1;
    next_ = row;
    const int64_t middle = first + columns_ / 2;
    load_row(a.x, b, c, row, middle, 1, static_cast<M>(a.scale), M{0}, &middle_x_);
    load_row(a.y, b, c, row, middle, 1, static_cast<M>(a.scale), M{0}, &middle_y_);
    shift_x_ = all_lanes<M>(middle_x_);
    shift_y_ = all_lanes<M>(middle_y_);
  }

  // Pixels of the row, less the strip's own; only of the last kRing rows that were taken in.
  const M* x(int64_t row) const { return x_ + row % kRing * kStride; }
  const M* y(int64_t row) const { return y_ + row % kRing * kStride; }

  // Takes in the pixels that rows of windows row .. row + kRows look at.
  void take(int64_t row) {
    const int64_t end = row + kRing < a.height ? row + kRing : a.height;
    for (; next_ < end; ++next_) {
      const int64_t at = next_ % kRing * kStride;
      load_row(a.x, b_, c_, next_, first_, columns_, static_cast<M>(a.scale), middle_x_, x_ + at);
      load_row(a.y, b_, c_, next_, first_, columns_, static_cast<M>(a.scale), middle_y_, y_ + at);
    }
  }

  // Sums down the columns for those rows of windows. Rows above and below the picture are taken for its nearest; nobody asks for them.
  void sum_down(int64_t row) {
    const M *xs[kRing], *ys[kRing];
    for (int64_t j = 0; j < kRing; ++j) {
      const int64_t inside = row + j < 0 ? 0 : row + j < a.height ? row + j : a.height - 1;
      xs[j] = x(inside);
      ys[j] = y(inside);
    }
    const auto put = [&](int field, int64_t i, const L* sums) {
      M* to = tile_ + field * kStride + i;
      for (int64_t r = 0; r < kRows; ++r) store_lanes(to + r * kFields * kStride, sums[r]);
    };
    for (int64_t i = 0; i < columns_; i += kW) {
      L sums[kRows];
      filter_down(w, [&](int j) { return load_lanes(xs[j] + i); }, sums);
      put(kMeanX, i, sums);
      filter_down(w, [&](int j) { return load_lanes(ys[j] + i); }, sums);
      put(kMeanY, i, sums);
      filter_down(
          w,
          [&](int j) {
            const L p = load_lanes(xs[j] + i), q = load_lanes(ys[j] + i);
            return p * p + q * q;
          },
          sums);
      put(kSquares, i, sums);
      filter_down(w, [&](int j) { return load_lanes(xs[j] + i) * load_lanes(ys[j] + i); }, sums);
      put(kProduct, i, sums);
    }
  }

  // What the windows from column i on, of the r-th of those rows, hold; names as in quality_reference.py.
  struct Windows {
    L x, y;  // means less the strip's own pixels
    L mean_x, mean_y;
    L above_l, below_l, above_c, below_c;
  };
  Windows windows(int64_t r, int64_t i) const {
    L m[kFields];
    filter_across<kFields>(w, tile_ + r * kFields * kStride + i, kStride, m);
    Windows out;
    out.x = m[kMeanX];
    out.y = m[kMeanY];
    out.mean_x = out.x + shift_x_;
    out.mean_y = out.y + shift_y_;
    // Each sum is rounded alike above and below, so that equal pictures have exactly 1.
    out.above_l = 2 * (out.mean_x * out.mean_y) + c1_;
    out.below_l = out.mean_x * out.mean_x + out.mean_y * out.mean_y + c1_;
    out.above_c = unbiased_ * (2 * (m[kProduct] - out.x * out.y)) + c2_;
    out.below_c = unbiased_ * (m[kSquares] - (out.x * out.x + out.y * out.y)) + c2_;
    return out;
  }

  const QualityArgs& a;
  const Weights<M, kTaps> w;

 private:
  Room<M> pixels_, sums_;
  M *x_, *y_, *tile_;
  L c1_, c2_, unbiased_, shift_x_, shift_y_;
  M middle_x_ = 0, middle_y_ = 0;
  int64_t b_ = 0, c_ = 0, first_ = 0, columns_ = 0, next_ = 0;
};

void similarity_backward(const QualityArgs& a);  // quality_backward_cpu.cpp

}  // namespace TF_NS
