// Similarity of pictures, squared errors, and their gradients: every dtype, window and layout, with and without halved pictures. Halved
// pictures and gradients of squared errors are equal; means of ordinary pictures are within rounding, where the constants are not small
// beside it; equal pictures have exactly 1.
#include "native.hpp"
#include "quality/quality_api.hpp"
TF_TABLES(Quality, quality)
using namespace tenfold;

struct Picture {
  Layout layout;
  int dtype;
  std::vector<unsigned char> data;

  QualityImage image(std::vector<unsigned char>& of) const {
    return {of.data(), dtype, layout.strides[0], layout.strides[1], layout.strides[2], layout.strides[3]};
  }
  QualityImage image() const { return image(const_cast<std::vector<unsigned char>&>(data)); }
};

static Picture picture(Bytes& in, const std::vector<int64_t>& sizes, int dtype, bool repeat) {
  const Layout layout(in, sizes, repeat);
  return {layout, dtype, dtype == kQualityByte ? in.integers<unsigned char>(layout.reach, 0, 255) : in.typed(layout.reach, dtype)};
}

static std::vector<int64_t> sizes(Bytes& in, int64_t least) {
  const bool wide = in.byte() % 4 == 0, high = in.byte() % 8 == 0;
  return {in.size(1, 2), in.size(1, wide || high ? 1 : 3), in.size(least, high ? 150 : least + 20),
          in.size(least, wide ? 300 : least + 40)};
}

// Gradients for floating pictures: of their dtypes, any layout without repeats.
struct Gradients {
  Picture x, y;
  bool of_x, of_y;
  Gradients(Bytes& in, const std::vector<int64_t>& of, int x_dtype, int y_dtype)
      : x(picture(in, of, x_dtype == kQualityByte ? 0 : x_dtype, false)),
        y(picture(in, of, y_dtype == kQualityByte ? 0 : y_dtype, false)),
        of_x(x_dtype != kQualityByte && in.byte() % 4 != 0),
        of_y(y_dtype != kQualityByte && in.byte() % 4 != 0) {}
};

static void similarities(Bytes& in) {
  const int taps = in.flag() ? 11 : 7, x_dtype = in.byte() % 5, y_dtype = in.byte() % 5;
  const bool wide = x_dtype == 1 || y_dtype == 1, alike = in.byte() % 4 == 0, pool = in.flag(), ordinary = in.tame && in.flag();
  const auto of = sizes(in, taps);
  const std::vector<int64_t> halved = {of[0], of[1], (of[2] + 1) / 2, (of[3] + 1) / 2};
  const Picture x = picture(in, of, x_dtype, true), y = alike ? x : picture(in, of, y_dtype, true);
  const Gradients to(in, of, x.dtype, y.dtype);
  const Picture px = picture(in, halved, wide, true), py = picture(in, halved, wide, true);
  const auto grad = in.numbers<double>(of[0] * of[1]);
  const bool bytes = x.dtype == kQualityByte || y.dtype == kQualityByte;
  QualityArgs shared = {};
  shared.x = x.image(), shared.y = y.image(), shared.batches = of[0], shared.channels = of[1], shared.height = of[2], shared.width = of[3];
  shared.taps = taps, shared.unbiased = taps == 7 ? 49.0 / 48 : 1.0, shared.wide = wide, shared.contrast = in.flag(), shared.threads = 1;
  double total = 0;
  for (int i = 0; i < taps; ++i) total += shared.weights[i] = taps == 7 ? 1 : std::exp(-(i - 5) * (i - 5) / 4.5);
  for (int i = 0; i < taps; ++i) shared.weights[i] /= total;
  const double span = ordinary ? (bytes ? 255 : 16) : std::ldexp(1.0, in.byte() % 60 - 30) * (1 + in.byte() / 256.0);
  int exponent = 0;
  std::frexp(span, &exponent);
  shared.scale = std::ldexp(1.0, -exponent);
  const double k1 = ordinary ? 0.01 : 0.01 * in.byte(), k2 = ordinary ? 0.03 : 0.01 * in.byte();
  shared.c1 = k1 * span * shared.scale * k1 * span * shared.scale, shared.c2 = k2 * span * shared.scale * k2 * span * shared.scale;
  on_each("similarity", TF_EACH(quality), true, [&](const QualityKernels& k) {
    std::vector<double> means(of[0] * of[1]);
    const int64_t small = pool ? halved[0] * halved[1] * halved[2] * halved[3] * Bytes::width(wide) : 0;
    std::vector<unsigned char> half_x(small), half_y(small), dx = to.x.data, dy = to.y.data;
    QualityArgs a = shared;
    a.means = means.data();
    const int64_t plane = halved[2] * halved[3];
    if (pool) a.px = {half_x.data(), wide, halved[1] * plane, plane, halved[3], 1}, a.py = a.px, a.py.data = half_y.data();
    k.similarity(a);
    a = shared, a.grad = grad.data();
    if (to.of_x) a.dx = to.x.image(dx);
    if (to.of_y) a.dy = to.y.image(dy);
    if (pool && to.of_x) a.px = px.image();
    if (pool && to.of_y) a.py = py.image();
    k.similarity_backward(a);
    Found found;
    found.add("half of x", half_x, wide), found.add("half of y", half_y, wide);
    if (ordinary) found.near("means", means, 0.02);
    const bool one = alike && in.tame && span >= 1 && shared.c1 > 0 && shared.c2 > 0;
    for (double m : means) require(!one || m == 1, "similarity", "of a picture to itself is not 1");
    return found;
  });
}

static void errors(Bytes& in) {
  const int x_dtype = in.byte() % 5, y_dtype = in.byte() % 5;
  const bool wide = x_dtype == 1 || y_dtype == 1;
  const auto of = sizes(in, 1);
  const Picture x = picture(in, of, x_dtype, true), y = picture(in, of, y_dtype, true);
  const Gradients to(in, of, x_dtype, y_dtype);
  const auto grad = in.numbers<double>(of[0]);
  on_each("squared_error", TF_EACH(quality), true, [&](const QualityKernels& k) {
    std::vector<double> means(of[0]);
    std::vector<unsigned char> dx = to.x.data, dy = to.y.data;
    QualityArgs a = {};
    a.x = x.image(), a.y = y.image(), a.batches = of[0], a.channels = of[1], a.height = of[2], a.width = of[3], a.wide = wide;
    a.threads = 1, a.means = means.data();
    k.squared_error(a);
    a.grad = grad.data();
    if (to.of_x) a.dx = to.x.image(dx);
    if (to.of_y) a.dy = to.y.image(dy);
    k.squared_error_backward(a);
    Found found;
    if (in.tame) found.near("means", means, 1e-4);
    found.add("gradient of x", dx, to.x.dtype), found.add("gradient of y", dy, to.y.dtype);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const bool similar = in.byte() % 3 != 0;
  in.tame = in.flag();
  similar ? similarities(in) : errors(in);
  return 0;
}
