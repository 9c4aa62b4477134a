// Prints a digest of what the kernels on points compute. Nearest rows, their distances, clusters and k-centers are decided in float64 in
// one order and are the same to the bit, and so are the digits of pairs' distances; kernel sums are float32 in the order of the lanes, and
// shown to 4 places.
#include <cstdio>
#include <vector>
#include "digest.hpp"
#include "distance/distance_api.hpp"
#include "mmd/mmd_api.hpp"
namespace TF_NS {
extern const tenfold::DistanceKernels distance_kernels;
extern const tenfold::KCenterKernels kcenter_kernels;
extern const tenfold::MmdKernels mmd_kernels;
}  // namespace TF_NS
using namespace tenfold;

static void distances() {
  const DistanceKernels& kernels = TF_NS::distance_kernels;
  const int64_t rows = 421, m = 37;
  for (int dtype : {0, 2, 3})
    for (int64_t d : {19, 96}) {
      const auto x = drawn(rows * d, dtype, 3.0f);
      const auto centers = floats(m * d, 3.0f);
      const int64_t half_way = 200, width = d * (dtype == 0 ? 4 : 2), first[2] = {0, half_way};
      const void* pieces[2] = {x.data(), x.data() + half_way * width};
      const RowShards shards = {pieces, first, 2, rows, d, dtype};
      for (int way = 0; way < 4; ++way) {  // bit 0: by angle; bit 1: candidates by 16-bit products
        const bool cosine = way % 2 == 1, reduced = way / 2 == 1;
        std::vector<int32_t> index(rows * 3), owner(rows);
        std::vector<float> nearest(rows * 3), distance(rows), radius(20), cover(2 * rows);
        std::vector<int64_t> picked(20), candidates = {7, 300};
        kernels.assign({shards, nullptr, rows, centers.data(), m, 3, cosine, reduced, index.data(), nearest.data(), 1});
        TF_NS::kcenter_kernels.kcenter(
            {shards, 20, nullptr, 0, reduced ? 5 : -1, cosine, 8, reduced, picked.data(), radius.data(), distance.data(), owner.data(), 1});
        kernels.cover({shards, candidates.data(), 2, distance.data(), cosine, cover.data(), 1});
        std::printf("distance %d %ld %d %016lx %016lx %016lx %016lx %016lx %016lx %016lx\n", dtype, (long)d, way, digest(index),
                    digest(nearest), digest(picked), digest(radius), digest(distance), digest(owner), digest(cover));
      }
      std::vector<int32_t> labels(rows);
      std::vector<float> distance(rows);
      std::vector<double> sums(m * d), mean(d);
      std::vector<int64_t> counts(m);
      kernels.lloyd({shards, centers.data(), m, labels.data(), distance.data(), sums.data(), counts.data(), 1});
      kernels.mean(shards, false, mean.data(), 1);
      std::printf("lloyd %d %ld %016lx %016lx %016lx %016lx %016lx %ld\n", dtype, (long)d, digest(labels), digest(distance), digest(sums),
                  digest(counts), digest(mean), (long)kernels.farthest_from(shards, mean.data(), false, 1));
    }
}

static void discrepancies() {
  const MmdKernels& kernels = TF_NS::mmd_kernels;
  const int64_t batch = 2, n = 150, m = 61, d = 21, all = n + m, classes = 3;
  const double doubling[5] = {0.25, 0.5, 1, 2, 4}, other[3] = {0.3, 1.1, 2.0};
  std::vector<int64_t> ys(batch * n), yt(batch * m);
  for (auto& y : ys) y = static_cast<int64_t>((next() + 1) * 1.5f);
  for (auto& y : yt) y = static_cast<int64_t>((next() + 1) * 1.5f);
  for (int dtype : {0, 2, 3}) {
    const auto x = drawn(batch * n * d, dtype, 1.0f), y = drawn(batch * m * d, dtype, 1.5f);
    for (int way = 0; way < 4; ++way) {
      const Widths widths = way % 2 ? Widths{other, 3, 1e-5, way == 3} : Widths{doubling, 5, 1e-5, false};
      std::vector<double> value(batch), base(batch), intra(batch), inter(batch), matrix(batch * classes * classes);
      std::vector<float> gradient(batch * all * d), by_intra(batch * all * d), by_inter(batch * all * d);
      kernels.pairs({x.data(), y.data(), batch, n, m, d, dtype, nullptr, 0, false, widths, nullptr, way > 1, false, value.data(),
                     base.data(), gradient.data(), 1});
      kernels.contrast({x.data(), y.data(), ys.data(), yt.data(), batch, n, m, d, classes, dtype, widths, 2, intra.data(), inter.data(),
                        matrix.data(), by_intra.data(), by_inter.data(), 1});
      for (int64_t b = 0; b < batch; ++b)
        std::printf("mmd %d %d %.4f %.3f %.4f %.4f %.4f %.4f %.4f %.4f\n", dtype, way, value[b], base[b], gradient[b * all * d + 5] * 100,
                    gradient[b * all * d + n * d + 5] * 100, intra[b], inter[b], matrix[b * 9 + 4], by_intra[b * all * d + 7] * 10);
    }
    std::vector<int64_t> counts(1 << 11);
    kernels.digits({x.data(), n, d, dtype, 0, 21, 11, counts.data(), 1});
    int64_t pairs = 0;
    for (int64_t c : counts) pairs += c;
    std::printf("digits %d %ld\n", dtype, (long)pairs);
  }
}

int main() {
  distances();
  discrepancies();
}
