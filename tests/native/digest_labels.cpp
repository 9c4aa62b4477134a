// Prints a digest of what the kernels on label volumes compute: counts, words, masks and distances are the same to the bit.
#include <cstdio>
#include <vector>
#include "digest.hpp"
#include "overlap/overlap_api.hpp"
#include "surface/surface_api.hpp"
namespace TF_NS {
extern const tenfold::OverlapKernels overlap_kernels;
extern const tenfold::EdtKernels edt_kernels;
}  // namespace TF_NS
using namespace tenfold;

constexpr int64_t kSizes[3] = {5, 23, 131}, kVoxels = 5 * 23 * 131, kLabels = 9;

// Runs of one label of up to 32 voxels, as rows of a segmentation have them.
template <class T>
static std::vector<T> volume() {
  std::vector<T> out;
  while (static_cast<int64_t>(out.size()) < kVoxels) {
    const T label = static_cast<T>((next() + 1) * 0.5f * kLabels);
    out.insert(out.end(), static_cast<size_t>(1 + (next() + 1) * 16), label);
  }
  out.resize(kVoxels);
  for (int64_t i = 0; i < kVoxels; ++i)  // labels above 4 in the middle alone, so that boxes differ
    if (out[i] > 4 && (i < kVoxels * out[i] / 20 || i > kVoxels - 77 * out[i])) out[i] = 0;
  return out;
}
template <class T>
static Labels labels(const std::vector<T>& v, bool backwards = false) {
  Labels out = {v.data(), sizeof(T), T(-1) < T(0), 3, {}, {}};
  for (int axis = 0; axis < 3; ++axis) out.sizes[axis] = kSizes[axis];
  out.strides[0] = kSizes[1] * kSizes[2], out.strides[1] = kSizes[2], out.strides[2] = 1;
  if (backwards) {  // the middle axis from its end
    out.data = v.data() + (kSizes[1] - 1) * kSizes[2];
    out.strides[1] = -kSizes[2];
  }
  return out;
}

template <class T, class S>
static void counted(const char* name) {
  const OverlapKernels& k = TF_NS::overlap_kernels;
  const std::vector<T> a = volume<T>();
  const std::vector<S> b = volume<S>();
  for (bool backwards : {false, true}) {
    std::vector<int64_t> counts(kLabels * kLabels), boxes[2], lut(kLabels), words(kVoxels);
    for (auto& box : boxes) box.resize(kLabels * 6);
    const bool fine = k.counts({labels(a), labels(b, backwards), kLabels, counts.data(), boxes[0].data(), boxes[1].data(), false, 1});
    for (int64_t i = 0; i < kLabels; ++i) lut[i] = int64_t{1} << i | int64_t{1} << (i * 7);
    k.lut({labels(b, backwards), lut.data(), kLabels, words.data(), 1});
    std::printf("overlap %s %d %d %016lx %016lx %016lx %016lx\n", name, backwards, fine, digest(counts), digest(boxes[0]), digest(boxes[1]),
                digest(words));
  }
}

static void bits() {
  const OverlapKernels& k = TF_NS::overlap_kernels;
  const int64_t channels = 5, count = 1003, words = (count + 63) / 64;
  std::vector<uint8_t> masks(channels * count), back(channels * count, 7);
  for (uint8_t& m : masks) m = next() > 0.3f ? 3 : 0;
  std::vector<int64_t> packed(channels * words), moved(channels * words), counts(channels * 3), owners(channels * 3);
  k.pack({masks.data(), packed.data(), channels, count, count, 1});
  for (size_t i = 0; i < moved.size(); ++i) moved[i] = packed[(i + 1) % packed.size()];
  k.multihot({packed.data(), moved.data(), channels, words, counts.data(), 1});
  k.owners({packed.data(), moved.data(), channels, channels * words, owners.data(), 1});
  k.unpack({back.data(), packed.data(), channels, count, count, 1});
  std::printf("bits %016lx %016lx %016lx %016lx\n", digest(packed), digest(counts), digest(owners), digest(back));
}

static void distances() {
  std::vector<uint8_t> features(2 * kVoxels);
  for (uint8_t& f : features) f = next() > 0.995f;
  for (bool wide : {false, true})
    for (bool squared : {false, true}) {
      std::vector<double> out(2 * kVoxels);
      std::vector<int32_t> index(6 * kVoxels);
      TF_NS::edt_kernels.edt({features.data(), 2, {5, 23, 131}, {3.0, 0.54, 0.7}, wide, squared, out.data(), index.data(), 1});
      std::printf("edt %d %d %016lx %016lx\n", wide, squared, digest(out), digest(index));
    }
}

int main() {
  counted<uint8_t, uint8_t>("u8");
  counted<int16_t, uint8_t>("i16 u8");
  counted<int32_t, int64_t>("i32 i64");
  bits();
  distances();
}
