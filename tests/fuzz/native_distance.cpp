// Nearest rows, Lloyd's passes, covers and k-centers of rows in pieces; decided in float64 in one order, so equal to the bit.
#include "distance/distance_api.hpp"
#include "native.hpp"
TF_TABLES(Distance, distance)
TF_TABLES(KCenter, kcenter)
using namespace tenfold;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const int dtype = in.byte() % 3 == 0 ? 0 : 2 + in.byte() % 2, way = in.byte() % 4;
  const int64_t rows = in.size(1, 60), d = in.size(1, 40), m = in.size(1, 24), cut = in.size(0, rows);
  const bool cosine = in.flag(), reduced = in.flag(), listed = in.flag();
  in.tame = in.byte() % 4 != 0;
  const auto x = in.typed(rows * d, dtype);
  const auto centers = in.numbers<float>(m * d);
  const int64_t width = d * Bytes::width(dtype), first[3] = {0, cut == 0 || cut == rows ? rows : cut, rows};
  const std::vector<unsigned char> head(x.begin(), x.begin() + first[1] * width), tail(x.begin() + first[1] * width, x.end());
  const void* pieces[2] = {head.data(), tail.data()};
  const RowShards shards = {pieces, first, first[1] == rows ? 1 : 2, rows, d, dtype};
  const auto chosen = in.integers<int64_t>(in.size(1, 8), 0, rows - 1);
  const int k = static_cast<int>(in.size(1, m < 4 ? m : 4));
  const int64_t picks = in.size(0, rows), start = in.byte() % 2 == 0 ? -1 : in.byte() % rows, n = listed ? chosen.size() : rows;
  const int lookahead = static_cast<int>(in.size(1, 9));
  auto known = in.numbers<float>(rows, true);
  on_each("distance", TF_EACH(distance), true, [&](const DistanceKernels& kernels) {
    Found found;
    const bool fine = kernels.first_bad_row(shards, 1) < 0;
    found.add("fine", std::vector<int>{fine});
    if (way == 0) {
      std::vector<int32_t> index(n * k, -1);
      std::vector<float> nearest(n * k);
      const int64_t bad = kernels.assign(
          {shards, listed ? chosen.data() : nullptr, n, centers.data(), m, k, cosine, reduced, index.data(), nearest.data(), 1});
      bool finite = bad < 0;
      for (float c : centers) finite = finite && std::isfinite(c);
      if (finite) {
        for (int32_t at : index) require(at >= 0 && at < m, "assign", "found a row that there is not");
        found.add("index", index), found.add("nearest", nearest);
      }
    }
    if (!fine) return found;
    if (way == 1) {
      std::vector<int32_t> labels(rows);
      std::vector<float> distance(rows);
      std::vector<double> sums(m * d), mean(d);
      std::vector<int64_t> counts(m);
      for (float c : centers)
        if (!std::isfinite(c)) return found;
      kernels.lloyd({shards, centers.data(), m, labels.data(), distance.data(), sums.data(), counts.data(), 1});
      kernels.mean(shards, cosine, mean.data(), 1);
      const int64_t far = kernels.farthest_from(shards, mean.data(), cosine, 1);
      require(far >= 0 && far < rows, "farthest_from", "found a row that there is not");
      found.add("labels", labels), found.add("distance", distance), found.add("sums", sums), found.add("counts", counts);
    }
    if (way == 2) {
      std::vector<float> cover(chosen.size() * rows);
      kernels.cover({shards, chosen.data(), static_cast<int64_t>(chosen.size()), known.data(), cosine, cover.data(), 1});
      found.add("cover", cover);
    }
    return found;
  });
  if (way == 3)
    on_each("kcenter", TF_EACH(kcenter), true, [&](const KCenterKernels& kernels) {
      std::vector<int64_t> picked(picks);
      std::vector<float> radius(picks), distance(rows);
      std::vector<int32_t> owner(rows);
      const int64_t bad = kernels.kcenter(
          {shards, picks, nullptr, 0, start, cosine, lookahead, reduced, picked.data(), radius.data(), distance.data(), owner.data(), 1});
      Found found;
      if (bad >= 0) return found;
      for (int64_t at : picked) require(at >= 0 && at < rows, "kcenter", "picked a row that there is not");
      found.add("picked", picked), found.add("radius", radius), found.add("distance", distance), found.add("owner", owner);
      return found;
    });
  return 0;
}
