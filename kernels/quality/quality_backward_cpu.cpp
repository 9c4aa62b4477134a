// The gradient of the similarity on the CPU. Moments are made again, eight rows of windows at a time; from them three fields (four where
// both pictures want a gradient), which are summed along rows into a ring, and from there down columns onto the pixels. Three filters
// beside the four of the forward pass, and nothing of the size of a picture but the gradient.
#include "quality_tile.hpp"

#include "../core/parallel.hpp"

namespace TF_NS {
namespace {

constexpr int64_t kBand = 128;            // rows of pixels; ten more rows of windows are made for each band
constexpr int64_t kPixels = kStrip - 16;  // columns: their windows fit into a strip
enum Back : int { kOfProduct, kOfSquares, kOfX, kOfY, kBacks };

template <class M, int kTaps>
class Backward {
 public:
  using L = lanes_t<M>;
  static constexpr int64_t kW = LanesOf<M>::count, kRing = kRows + kTaps - 1;
  static constexpr int64_t kWide = kStride + 16;  // a row of a field: zeros, windows, zeros

  explicit Backward(const QualityArgs& args) : a(args), strip_(args) {
    rows_ = fields_.zeros(kBacks * kWide);
    ring_ = summed_.zeros(kRing * kBacks * kPixels);
  }

  // Pixels begin .. end by left .. right of plane (b, c).
  void run(int64_t b, int64_t c, int64_t begin, int64_t end, int64_t left, int64_t right) {
    const int64_t down = a.height - kTaps + 1, across = a.width - kTaps + 1;
    const int64_t first = left - kTaps + 1 < 0 ? 0 : left - kTaps + 1, last = right < across ? right : across;
    const int64_t top = begin - kTaps + 1 < 0 ? 0 : begin - kTaps + 1, bottom = end < down ? end : down;
    constexpr int64_t kBefore = (kTaps - 1 + kRows - 1) / kRows * kRows;
    const double count = static_cast<double>(down) * static_cast<double>(across);
    slope_ = all_lanes<M>(static_cast<M>(2.0 * a.grad[b * a.channels + c] / count));
    for (int64_t i = 0; i < kBacks * kWide; ++i) rows_[i] = 0;
    strip_.open(b, c, first, last - first, begin - kBefore < 0 ? 0 : begin - kBefore);
    lead_ = first - (left - kTaps + 1);
    count_ = last - first;
    width_ = right - left;
    for (int64_t row = begin - kBefore; row < end; row += kRows) {
      strip_.take(row);
      const bool any = row + kRows > top && row < bottom;
      if (any) strip_.sum_down(row);
      for (int64_t r = 0; r < kRows; ++r) {
        M* to = ring(row + r);
        if (row + r >= top && row + r < bottom) {
          make_fields(r);
          sum_across(to);
        } else {
          for (int64_t i = 0; i < kBacks * kPixels; ++i) to[i] = 0;
        }
      }
      if (row >= begin) write(b, c, row, end, left, first);
    }
  }

 private:
  M* ring(int64_t row) { return ring_ + (row + kRing) % kRing * kBacks * kPixels; }  // row >= -kRing

  // The fields of the r-th row of windows; the names are those of quality_reference.py.
  void make_fields(int64_t r) {
    for (int64_t i = 0; i < count_; i += kW) {
      const auto m = strip_.windows(r, i);
      const L both = 1 / (m.below_l * m.below_c);
      const L under_c = a.contrast ? 1 / m.below_c : both * m.below_l, under_l = both * m.below_c;
      const L contrast = m.above_c * under_c, luminance = m.above_l * under_l;
      const L of_contrast = unbiased() * slope_ * under_c * (a.contrast ? all_lanes<M>(1) : luminance);
      const L of_luminance = a.contrast ? L{} : slope_ * contrast * under_l;
      L found[kBacks];
      found[kOfProduct] = of_contrast;
      found[kOfSquares] = -contrast * of_contrast;
      found[kOfX] = of_luminance * (m.mean_y - luminance * m.mean_x) + of_contrast * (contrast * m.x - m.y);
      found[kOfY] = of_luminance * (m.mean_x - luminance * m.mean_y) + of_contrast * (contrast * m.y - m.x);
      for (int k = 0; k < kBacks; ++k) {
        store_lanes(rows_ + k * kWide + lead_ + i, count_ - i < kW ? first_lanes<M>(found[k], count_ - i) : found[k]);
      }
    }
  }
  L unbiased() const { return all_lanes<M>(static_cast<M>(a.unbiased)); }

  void sum_across(M* to) {
    for (int64_t i = 0; i < width_; i += kW) {
      L sums[kBacks];
      if (a.dy.data == nullptr) {
        filter_across<kBacks - 1>(strip_.w, rows_ + i, kWide, sums);
        sums[kOfY] = L{};
      } else {
        filter_across<kBacks>(strip_.w, rows_ + i, kWide, sums);
      }
      for (int k = 0; k < kBacks; ++k) store_lanes(to + k * kPixels + i, sums[k]);
    }
  }

  // Pixels row .. row + kRows, as far as they are before `end`.
  void write(int64_t b, int64_t c, int64_t row, int64_t end, int64_t left, int64_t first) {
    const M* from[kRing];
    for (int64_t j = 0; j < kRing; ++j) from[j] = ring(row - kTaps + 1 + j);
    for (int64_t i = 0; i < width_; i += kW) {
      for (int k = 0; k < kBacks; ++k) {
        if ((k == kOfX && a.dx.data == nullptr) || (k == kOfY && a.dy.data == nullptr)) continue;
        L sums[kRows];
        filter_down(strip_.w, [&](int j) { return load_lanes(from[j] + k * kPixels + i); }, sums);
        for (int64_t r = 0; r < kRows; ++r) store_lanes(back_[k][r] + i, sums[r]);
      }
    }
    const L scale = all_lanes<M>(static_cast<M>(a.scale));
    for (int64_t r = 0; r < kRows && row + r < end; ++r) {
      const M *x = strip_.x(row + r) + left - first, *y = strip_.y(row + r) + left - first;
      for (const bool for_x : {true, false}) {
        const QualityImage& out = for_x ? a.dx : a.dy;
        if (out.data == nullptr) continue;
        const M *own = for_x ? x : y, *other = for_x ? y : x, *of_mean = back_[for_x ? kOfX : kOfY][r];
        M found[kPixels];
        for (int64_t i = 0; i < width_; i += kW) {
          L sum = fused(load_lanes(other + i), load_lanes(back_[kOfProduct][r] + i), load_lanes(of_mean + i));
          sum = fused(load_lanes(own + i), load_lanes(back_[kOfSquares][r] + i), sum);
          store_lanes(found + i, sum * scale);
        }
        add_pooled(for_x ? a.px : a.py, b, c, row + r, left, found);
        store_row(out, b, c, row + r, left, width_, found);
      }
    }
  }

  // A quarter of the gradient of the 2 x 2 pixels' mean.
  void add_pooled(const QualityImage& pooled, int64_t b, int64_t c, int64_t row, int64_t left, M* found) {
    if (pooled.data == nullptr) return;
    const int64_t odd = a.width % 2, from = (left + odd) / 2, n = (left + width_ - 1 + odd) / 2 - from + 1;
    M more[kPixels];
    load_row(pooled, b, c, (row + a.height % 2) / 2, from, n, static_cast<M>(0.25), M{0}, more);
    for (int64_t i = 0; i < width_; ++i) found[i] += more[(left + i + odd) / 2 - from];
  }

  const QualityArgs& a;
  Strip<M, kTaps> strip_;
  Room<M> fields_, summed_;
  M *rows_, *ring_;
  M back_[kBacks][kRows][kPixels];
  L slope_;
  int64_t lead_ = 0, count_ = 0, width_ = 0;
};

template <class M, int kTaps>
void backward_of(const QualityArgs& a) {
  const int64_t bands = (a.height + kBand - 1) / kBand, strips = (a.width + kPixels - 1) / kPixels;
  parallel_ranges(a.batches * a.channels * bands * strips, a.threads, [&](int64_t first, int64_t last) {
    Backward<M, kTaps> work(a);
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t plane = piece / (bands * strips), begin = piece / strips % bands * kBand, left = piece % strips * kPixels;
      const int64_t end = begin + kBand < a.height ? begin + kBand : a.height;
      work.run(plane / a.channels, plane % a.channels, begin, end, left, left + kPixels < a.width ? left + kPixels : a.width);
    }
  });
}

}  // namespace

void similarity_backward(const QualityArgs& a) {
  ask_for_image(a.dx, a);
  ask_for_image(a.dy, a);
  if (a.wide) {
    a.taps == 11 ? backward_of<double, 11>(a) : backward_of<double, 7>(a);
  } else {
    a.taps == 11 ? backward_of<float, 11>(a) : backward_of<float, 7>(a);
  }
}

}  // namespace TF_NS
