// Sums of kernels over pairs, their gradients, contrasts and digits of distances. Sums are float32 in the order of the lanes and are not
// compared.
#include "mmd/mmd_api.hpp"
#include "native.hpp"
TF_TABLES(Mmd, mmd)
using namespace tenfold;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const int dtype = in.byte() % 3 == 0 ? 0 : 2 + in.byte() % 2, way = in.byte() % 3;
  const int64_t batch = in.size(1, 2), n = in.size(1, 40), m = in.size(1, 40), d = in.size(1, 30), all = n + m, classes = in.size(1, 4);
  in.tame = in.byte() % 4 != 0;
  const auto x = in.typed(batch * n * d, dtype), y = in.typed(batch * m * d, dtype);
  const bool alone = in.flag(), unbiased = n > 1 && m > 1 && in.flag(), clamp = in.flag(), given = in.flag();
  std::vector<double> factors(in.size(1, 6));
  double next = 0.125;
  for (double& f : factors) f = next, next *= in.flag() ? 2 : 1.5;
  const Widths widths = {factors.data(), static_cast<int>(factors.size()), 1e-5, clamp};
  const auto base_in = in.numbers<double>(batch, true);
  const auto v = in.numbers<float>(batch * (alone ? n : all) * 2);
  const auto ys = in.integers<int64_t>(batch * n, 0, classes - 1), yt = in.integers<int64_t>(batch * m, 0, classes - 1);
  bool ordinary = in.tame;
  for (double b : base_in) ordinary = ordinary && b > 0;
  on_each("mmd", TF_EACH(mmd), false, [&](const MmdKernels& k) {
    if (way == 0) {
      const int64_t rows = alone ? n : all;
      const bool weighted = alone || in.tame == given;
      std::vector<double> value(batch), base(batch);
      std::vector<float> gradient(batch * rows * d);
      k.pairs({x.data(), alone ? nullptr : y.data(), batch, n, alone ? 0 : m, d, dtype, weighted ? v.data() : nullptr, weighted ? 2 : 0,
               false, widths, given ? base_in.data() : nullptr, unbiased && !weighted, false, value.data(), base.data(), gradient.data(),
               1});
      for (float g : gradient) require(!ordinary || std::isfinite(g), "mmd", "has a gradient that is not finite, of finite points");
    }
    if (way == 1) {
      std::vector<double> intra(batch), inter(batch), matrix(batch * classes * classes);
      std::vector<float> by_intra(batch * all * d), by_inter(batch * all * d);
      k.contrast({x.data(), y.data(), ys.data(), yt.data(), batch, n, m, d, classes, dtype, widths, 1 + (given ? 1 : 0), intra.data(),
                  inter.data(), matrix.data(), by_intra.data(), by_inter.data(), 1});
    }
    if (way == 2) {
      std::vector<int64_t> counts(1 << 11);
      k.digits({x.data(), n, d, dtype, 0, 21, 11, counts.data(), 1});
      int64_t pairs = 0;
      for (int64_t c : counts) pairs += c;
      require(!in.tame || pairs == n * n, "digits", "counted another number of pairs");
    }
    return Found();
  });
  return 0;
}
