// Counts, boxes, words and packed bits of label volumes of any strides; surface metrics and distance maps of what was counted.
#include "native.hpp"
#include "overlap/overlap_api.hpp"
#include "surface/surface_api.hpp"
TF_TABLES(Overlap, overlap)
TF_TABLES(Surface, surface)
TF_TABLES(Edt, edt)
using namespace tenfold;

constexpr int64_t kLabels = 6;

struct Volume {
  std::vector<unsigned char> data;
  Labels labels;
};

// Labels in [low, high] of 1, 2, 4 or 8 bytes; axes in any order, some backwards.
static Volume volume(Bytes& in, const std::vector<int64_t>& sizes, int64_t high) {
  const int bytes = 1 << in.byte() % 4, ndim = static_cast<int>(sizes.size());
  Labels out = {nullptr, bytes, in.flag(), ndim, {}, {}};
  int64_t count = 1, start = 0;
  const bool reversed = in.flag();
  for (int i = 0; i < ndim; ++i) {
    const int axis = reversed ? i : ndim - 1 - i;
    out.sizes[axis] = sizes[axis], out.strides[axis] = count;
    count *= sizes[axis];
  }
  for (int axis = 0; axis < ndim; ++axis)
    if (in.byte() % 4 == 0 && count > 0) {
      start += (sizes[axis] - 1) * out.strides[axis];
      out.strides[axis] = -out.strides[axis];
    }
  Volume made = {std::vector<unsigned char>(count * bytes), out};
  int64_t label = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (in.byte() % 3 == 0) label = in.byte() % (high + 1);
    for (int b = 0; b < bytes; ++b) made.data[i * bytes + b] = b == 0 ? static_cast<unsigned char>(label) : 0;
  }
  made.labels.data = made.data.data() + start * bytes;
  return made;
}

static void counted(Bytes& in) {
  std::vector<int64_t> sizes(in.size(1, 4));
  for (auto& n : sizes) n = in.size(in.byte() % 16 == 0 ? 0 : 1, 11);
  const bool clamp = in.flag();
  const int64_t high = in.byte() % 4 == 0 ? kLabels : kLabels - 1, ndim = sizes.size();
  const Volume a = volume(in, sizes, high), b = volume(in, sizes, high);
  int64_t voxels = 1;
  for (int64_t n : sizes) voxels *= n;
  on_each("overlap", TF_EACH(overlap), true, [&](const OverlapKernels& k) {
    std::vector<int64_t> counts(kLabels * kLabels), boxes[2], lut(kLabels), words(voxels);
    for (auto& box : boxes) box.resize(kLabels * 2 * ndim);
    for (int64_t i = 0; i < kLabels; ++i) lut[i] = int64_t{1} << (i * 9);
    const bool fine = k.counts({a.labels, b.labels, kLabels, counts.data(), boxes[0].data(), boxes[1].data(), clamp, 1});
    const bool known = k.lut({a.labels, lut.data(), kLabels, words.data(), 1});
    int64_t total = 0;
    for (int64_t n : counts) total += n;
    require(!fine || total == voxels, "overlap", "counted another number of voxels");
    Found found;
    found.add("fine", std::vector<int>{fine, known});
    if (fine) found.add("counts", counts), found.add("target's boxes", boxes[0]), found.add("boxes", boxes[1]);
    if (known) found.add("words", words);
    return found;
  });
}

static void bits(Bytes& in) {
  const int64_t channels = in.size(1, 9), count = in.size(0, 300), stride = count + in.size(0, 3), words = (count + 63) / 64;
  const auto masks = in.integers<uint8_t>(channels * stride, 0, 2);
  on_each("bits", TF_EACH(overlap), true, [&](const OverlapKernels& k) {
    auto given = masks;
    std::vector<uint8_t> back(channels * count, 7);
    std::vector<int64_t> packed(channels * words), counts(channels * 3), owners(channels * 3);
    k.pack({given.data(), packed.data(), channels, count, stride, 1});
    k.multihot({packed.data(), packed.data(), channels, words, counts.data(), 1});
    k.owners({packed.data(), packed.data(), channels, channels * words, owners.data(), 1});
    k.unpack({back.data(), packed.data(), channels, count, count, 1});
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; ++i)
        require((back[c * count + i] != 0) == (masks[c * stride + i] != 0), "bits", "packed and unpacked is another mask");
    Found found;
    found.add("packed", packed), found.add("counts", counts), found.add("owners", owners), found.add("back", back);
    return found;
  });
}

static void metrics(Bytes& in) {
  std::vector<int64_t> sizes(3);
  for (auto& n : sizes) n = in.size(1, 12);
  const Volume a = volume(in, sizes, kLabels - 2), b = volume(in, sizes, kLabels - 2);
  const int64_t organs = 2, tolerances = in.size(0, 2), percentiles = in.size(1, 2);
  std::vector<int64_t> counts(kLabels * kLabels), boxes[2];
  for (auto& box : boxes) box.resize(kLabels * 6);
  tf_baseline::overlap_kernels.counts({a.labels, b.labels, kLabels, counts.data(), boxes[0].data(), boxes[1].data(), false, 1});
  const std::vector<int64_t> labels = {1, 2, 3}, starts = {0, 1, 3};
  std::vector<double> areas(256), within(organs * tolerances), ranks(percentiles);
  for (int i = 1; i < 255; ++i) areas[i] = 0.25 + i % 5;
  for (auto& t : within) t = 0.5 * in.byte();
  for (auto& p : ranks) p = in.byte() % 101;
  double spacing[3];
  for (double& s : spacing) s = 0.25 * (1 + in.byte() % 12);
  const bool edge = in.flag();
  on_each("surface", TF_EACH(surface), true, [&](const SurfaceKernels& k) {
    std::vector<int64_t> voxels(organs * 3), elements(organs * 2);
    std::vector<double> area(organs * 2), near(organs * 2 * tolerances), sum(organs * 2), hd(organs * 2 * percentiles),
        pooled(organs * percentiles);
    SurfaceArgs s = {};
    s.target = a.labels, s.pred = b.labels, s.num_labels = kLabels, s.counts = counts.data(), s.box_target = boxes[0].data();
    s.box_pred = boxes[1].data(), s.organ_labels = labels.data(), s.organ_starts = starts.data(), s.organs = organs;
    for (int i = 0; i < 3; ++i) s.spacing[i] = spacing[i];
    s.areas = areas.data(), s.tolerances = within.data(), s.n_tolerances = tolerances, s.percentiles = ranks.data();
    s.n_percentiles = percentiles, s.edge = edge, s.voxels = voxels.data(), s.elements = elements.data(), s.area = area.data();
    s.within = near.data(), s.distance_sum = sum.data(), s.hd = hd.data(), s.hd_pooled = pooled.data(), s.threads = 1;
    k.metrics(s);
    Found found;
    found.add("voxels", voxels), found.add("elements", elements), found.add("area", area), found.add("within", near);
    found.add("sum", sum), found.add("hd", hd), found.add("pooled", pooled);
    return found;
  });
}

static void distances(Bytes& in) {
  const int64_t batch = in.size(0, 2), sizes[3] = {in.size(1, 9), in.size(1, 9), in.size(1, 40)};
  const int64_t voxels = sizes[0] * sizes[1] * sizes[2];
  const auto features = in.integers<uint8_t>(batch * voxels, 0, 1 + in.byte() % 3 * 40);
  auto sparse = features;
  for (auto& f : sparse) f = f == 1;
  double spacing[3];
  for (double& s : spacing) s = 0.25 * (1 + in.byte() % 12);
  const bool squared = in.flag();
  on_each("edt", TF_EACH(edt), true, [&](const EdtKernels& k) {
    std::vector<double> out(batch * voxels);
    std::vector<int32_t> index(3 * batch * voxels);
    k.edt({sparse.data(),
           batch,
           {sizes[0], sizes[1], sizes[2]},
           {spacing[0], spacing[1], spacing[2]},
           true,
           squared,
           out.data(),
           index.data(),
           1});
    for (int64_t i = 0; i < batch * voxels; ++i) require((out[i] == 0) == (sparse[i] != 0), "edt", "zero elsewhere than at features");
    Found found;
    found.add("distance", out), found.add("index", index);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  switch (in.byte() % 4) {
    case 0: counted(in); break;
    case 1: bits(in); break;
    case 2: metrics(in); break;
    default: distances(in);
  }
  return 0;
}
