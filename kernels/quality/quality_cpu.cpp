// Similarity of pictures on the CPU. Bound by arithmetic: 88 fma and a division per window of 11 x 11, a row of windows being made from
// sums down the columns, which are shared (quality_tile.hpp). A piece of work is a band of rows of one plane; its size depends on the
// shape alone and pieces are joined in order, so that the number of threads changes nothing.
#include "quality_tile.hpp"

#include "../core/parallel.hpp"

namespace TF_NS {
namespace {

constexpr int64_t kBand = 64;  // rows of windows

struct Bands {
  int64_t rows, per_plane;
  explicit Bands(int64_t rows_) : rows(rows_), per_plane((rows_ + kBand - 1) / kBand) {}
  int64_t begin(int64_t band) const { return band * kBand; }
  int64_t end(int64_t band) const { return (band + 1) * kBand < rows ? (band + 1) * kBand : rows; }
};

// Rows first .. last of the pictures of half the size.
template <class M>
void pool_rows(const QualityArgs& a, const QualityImage& image, const QualityImage& out, int64_t b, int64_t c, int64_t first, int64_t last,
               Room<M>& room) {
  const int64_t odd_row = a.height % 2, odd = a.width % 2, width = (a.width + 1) / 2;
  M* upper = room.zeros(2 * (a.width + 2));
  M* lower = upper + a.width + 2;
  for (int64_t row = first; row < last; ++row) {
    const int64_t from = 2 * row - odd_row;
    if (from < 0) {
      for (int64_t i = 0; i < a.width; ++i) upper[odd + i] = 0;
    } else {
      load_row(image, b, c, from, 0, a.width, M{1}, M{0}, upper + odd);
    }
    load_row(image, b, c, from + 1, 0, a.width, M{1}, M{0}, lower + odd);
    M* to = pixel<M>(out, b, c, row, 0);
    for (int64_t i = 0; i < width; ++i) {
      to[i] = static_cast<M>(0.25) * ((upper[2 * i] + upper[2 * i + 1]) + (lower[2 * i] + lower[2 * i + 1]));
    }
  }
}

template <class M, int kTaps>
double band_sum(Strip<M, kTaps>& strip, const QualityArgs& a, int64_t b, int64_t c, int64_t begin, int64_t end) {
  using L = lanes_t<M>;
  constexpr int64_t kW = LanesOf<M>::count;
  const int64_t across = a.width - kTaps + 1;
  double total = 0.0;
  for (int64_t column = 0; column < across; column += kStrip) {
    const int64_t count = across - column < kStrip ? across - column : kStrip;
    strip.open(b, c, column, count, begin);
    for (int64_t row = begin; row < end; row += kRows) {
      strip.take(row);
      strip.sum_down(row);
      L sum{};
      for (int64_t r = 0; r < kRows && row + r < end; ++r) {
        for (int64_t i = 0; i < count; i += kW) {
          const auto m = strip.windows(r, i);
          const L value = a.contrast ? m.above_c / m.below_c : m.above_l * m.above_c / (m.below_l * m.below_c);
          sum = sum + (count - i < kW ? first_lanes<M>(value, count - i) : value);
        }
      }
      total += sum_lanes(sum);
    }
  }
  return total;
}

template <class M, int kTaps>
void similarity_of(const QualityArgs& a) {
  const Bands bands(a.height - kTaps + 1);
  const int64_t planes = a.batches * a.channels, pooled = (a.height + 1) / 2;
  Vector<double> sums(static_cast<size_t>(planes * bands.per_plane));
  parallel_ranges(planes * bands.per_plane, a.threads, [&](int64_t first, int64_t last) {
    Strip<M, kTaps> strip(a);
    Room<M> room;
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t plane = piece / bands.per_plane, band = piece % bands.per_plane;
      const int64_t b = plane / a.channels, c = plane % a.channels;
      sums[static_cast<size_t>(piece)] = band_sum(strip, a, b, c, bands.begin(band), bands.end(band));
      if (a.px.data == nullptr) continue;
      const int64_t begin = pooled * band / bands.per_plane, end = pooled * (band + 1) / bands.per_plane;
      pool_rows(a, a.x, a.px, b, c, begin, end, room);
      pool_rows(a, a.y, a.py, b, c, begin, end, room);
    }
  });
  const double count = static_cast<double>(a.height - kTaps + 1) * static_cast<double>(a.width - kTaps + 1);
  for (int64_t plane = 0; plane < planes; ++plane) {
    double total = 0.0;
    for (int64_t band = 0; band < bands.per_plane; ++band) total += sums[static_cast<size_t>(plane * bands.per_plane + band)];
    a.means[plane] = total / count;
  }
}

// What depends on the dtype of the arithmetic and on the windows: which<float, 11>::run(a) and so on.
template <template <class, int> class Which>
void run(const QualityArgs& a) {
  if (a.wide) {
    return a.taps == 11 ? Which<double, 11>::run(a) : Which<double, 7>::run(a);
  }
  return a.taps == 11 ? Which<float, 11>::run(a) : Which<float, 7>::run(a);
}
template <class M, int kTaps>
struct Similarity {
  static void run(const QualityArgs& a) { similarity_of<M, kTaps>(a); }
};

void similarity(const QualityArgs& a) { run<Similarity>(a); }

// ---- squared error ------------------------------------------------------------------------------------------------------------------

constexpr int64_t kErrorPixels = 32768;  // in a piece, at least a row
constexpr int64_t kFlush = 16;

struct ErrorPieces {
  int64_t rows, size, per_picture;  // rows of all channels of a picture
  explicit ErrorPieces(const QualityArgs& a) : rows(a.channels * a.height), size(kErrorPixels / a.width + 1) {
    per_picture = (rows + size - 1) / size;
  }
};

// A run of pixels: where it lies, if it is whole registers of the arithmetic's dtype, or a copy with zeros behind.
template <class M>
const M* run_of(const QualityImage& image, int64_t b, int64_t c, int64_t row, int64_t column, int64_t n, M* room) {
  constexpr int64_t kW = LanesOf<M>::count;
  if (image.dtype == (sizeof(M) == sizeof(double) ? kFloat64 : kFloat32) && image.column_stride == 1 && n % kW == 0) {
    return pixel<M>(image, b, c, row, column);
  }
  load_row(image, b, c, row, column, n, M{1}, M{0}, room);
  for (int64_t i = n; i % kW != 0; ++i) room[i] = 0;
  return room;
}

// work(b, c, row, column, n, x, y) on runs of at most kStrip pixels, zeros behind the last.
template <class M, class Work>
void each_run(const QualityArgs& a, const ErrorPieces& pieces, int64_t piece, const Work& work) {
  M x[kStrip] = {}, y[kStrip] = {};
  const int64_t b = piece / pieces.per_picture, begin = piece % pieces.per_picture * pieces.size;
  const int64_t end = begin + pieces.size < pieces.rows ? begin + pieces.size : pieces.rows;
  for (int64_t each = begin; each < end; ++each) {
    const int64_t c = each / a.height, row = each % a.height;
    for (int64_t column = 0; column < a.width; column += kStrip) {
      const int64_t n = a.width - column < kStrip ? a.width - column : kStrip;
      work(b, c, row, column, n, run_of(a.x, b, c, row, column, n, x), run_of(a.y, b, c, row, column, n, y));
    }
  }
}

template <class M>
void squared_error_of(const QualityArgs& a) {
  const ErrorPieces pieces(a);
  Vector<double> sums(static_cast<size_t>(a.batches * pieces.per_picture));
  parallel_ranges(a.batches * pieces.per_picture, a.threads, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      double total = 0.0;
      lanes_t<M> sum{};  // of at most kFlush runs, then double
      int64_t waiting = 0;
      each_run<M>(a, pieces, piece, [&](int64_t, int64_t, int64_t, int64_t, int64_t n, const M* x, const M* y) {
        for (int64_t i = 0; i < n; i += LanesOf<M>::count) {
          const auto gap = load_lanes(x + i) - load_lanes(y + i);
          sum = fused(gap, gap, sum);
        }
        if (++waiting < kFlush) return;
        total += sum_lanes(sum);
        sum = lanes_t<M>{};
        waiting = 0;
      });
      sums[static_cast<size_t>(piece)] = total + sum_lanes(sum);
    }
  });
  const double count = static_cast<double>(pieces.rows) * static_cast<double>(a.width);
  for (int64_t b = 0; b < a.batches; ++b) {
    double total = 0.0;
    for (int64_t i = 0; i < pieces.per_picture; ++i) total += sums[static_cast<size_t>(b * pieces.per_picture + i)];
    a.means[b] = total / count;
  }
}

void squared_error(const QualityArgs& a) { a.wide ? squared_error_of<double>(a) : squared_error_of<float>(a); }

template <class M>
void squared_error_backward_of(const QualityArgs& a) {
  const ErrorPieces pieces(a);
  const double count = static_cast<double>(pieces.rows) * static_cast<double>(a.width);
  parallel_ranges(a.batches * pieces.per_picture, a.threads, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const M slope = static_cast<M>(2.0 * a.grad[piece / pieces.per_picture] / count);
      each_run<M>(a, pieces, piece, [&](int64_t b, int64_t c, int64_t row, int64_t column, int64_t n, const M* x, const M* y) {
        M found[kStrip];
        for (const bool for_x : {true, false}) {
          const QualityImage& out = for_x ? a.dx : a.dy;
          if (out.data == nullptr) continue;
          const M signed_slope = for_x ? slope : -slope;
          for (int64_t i = 0; i < n; ++i) found[i] = x[i] == y[i] ? M{0} : signed_slope * (x[i] - y[i]);
          store_row(out, b, c, row, column, n, found);
        }
      });
    }
  });
}

void squared_error_backward(const QualityArgs& a) {
  ask_for_image(a.dx, a);
  ask_for_image(a.dy, a);
  a.wide ? squared_error_backward_of<double>(a) : squared_error_backward_of<float>(a);
}

}  // namespace

extern const tenfold::QualityKernels quality_kernels;
const tenfold::QualityKernels quality_kernels = {similarity, similarity_backward, squared_error, squared_error_backward};

}  // namespace TF_NS
