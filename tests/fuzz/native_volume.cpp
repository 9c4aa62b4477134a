// Labels of interpolated logits, compared where interpolation is exact; components, their largest and holes, which are integers and
// compared always, with components also counted by flooding.
#include "native.hpp"
#include "volume/volume_api.hpp"
TF_TABLES(Volume, volume)
TF_TABLES(Component, component)
using namespace tenfold;

static void resampled(Bytes& in) {
  constexpr int kTypes[] = {0, 2, 3};
  const int dtype = kTypes[in.byte() % 3];
  const int64_t classes = in.size(1, in.byte() % 16 == 0 ? 300 : 12), bytes = classes > 256 || in.flag() ? 2 : 1;
  const bool exact = in.flag(), align = !exact && in.flag();
  int64_t from[3] = {in.size(1, 4), in.size(1, 5), in.size(1, 40)}, to[3];
  for (int i = 0; i < 3; ++i) to[i] = exact ? from[i] << in.byte() % 3 : in.size(1, i == 2 ? 90 : 9);
  const Layout layout(in, {classes, from[0], from[1], from[2]}, true, true);
  const auto logits = in.typed(layout.reach, dtype);
  // Sixteenths up to 8, and shares of eighths along each axis: products and sums are exact, whether fused or not.
  on_each("resample", TF_EACH(volume), exact && in.tame, [&](const VolumeKernels& k) {
    std::vector<uint8_t> labels(to[0] * to[1] * to[2] * bytes, 0xAA);
    k.resample_argmax({logits.data(),
                       dtype,
                       classes,
                       {from[0], from[1], from[2]},
                       {layout.strides[0], layout.strides[1], layout.strides[2]},
                       {to[0], to[1], to[2]},
                       align,
                       labels.data(),
                       static_cast<int>(bytes),
                       1});
    for (size_t i = 0; i < labels.size(); i += bytes) {
      const int64_t label = labels[i] + (bytes == 2 ? labels[i + 1] * 256 : 0);
      require(label < classes, "resample", "chose a class that there is not");
    }
    Found found;
    found.add("labels", labels);
    return found;
  });
}

struct Labels {
  int64_t size[3], bytes;
  std::vector<unsigned char> data;
  int64_t count() const { return size[0] * size[1] * size[2]; }
  int64_t at(int64_t i) const {
    int64_t out = 0;
    std::memcpy(&out, data.data() + i * bytes, bytes);
    return out << (64 - 8 * bytes) >> (64 - 8 * bytes);
  }
};

// How many components there are, each flooded from its first voxel.
static int64_t flooded(const Labels& v, int connectivity, bool multilabel, const std::vector<int32_t>& numbers) {
  std::vector<bool> seen(v.count());
  std::vector<int64_t> waiting;
  int64_t components = 0;
  const int most = connectivity == 6 ? 1 : connectivity == 18 ? 2 : 3;
  for (int64_t i = 0; i < v.count(); ++i) {
    require((v.at(i) == 0) == (numbers[i] == 0), "components", "numbered a zero, or left a voxel out");
    if (v.at(i) == 0 || seen[i]) continue;
    require(numbers[i] == ++components, "components", "are not numbered by first voxels");
    seen[i] = true;
    for (waiting.push_back(i); !waiting.empty();) {
      const int64_t p = waiting.back(), z = p / v.size[2] / v.size[1], y = p / v.size[2] % v.size[1], x = p % v.size[2];
      waiting.pop_back();
      require(numbers[p] == components, "components", "are cut where they are connected");
      for (int64_t step = 0; step < 27; ++step) {
        const int64_t dz = step / 9 - 1, dy = step / 3 % 3 - 1, dx = step % 3 - 1;
        const int64_t q = ((z + dz) * v.size[1] + y + dy) * v.size[2] + x + dx;
        if (std::abs(dz) + std::abs(dy) + std::abs(dx) > most || z + dz < 0 || z + dz >= v.size[0]) continue;
        if (y + dy < 0 || y + dy >= v.size[1] || x + dx < 0 || x + dx >= v.size[2]) continue;
        if (seen[q] || v.at(q) == 0 || (multilabel && v.at(q) != v.at(p))) continue;
        seen[q] = true;
        waiting.push_back(q);
      }
    }
  }
  return components;
}

static void components(Bytes& in) {
  constexpr int kConnectivities[] = {6, 18, 26};
  const int connectivity = kConnectivities[in.byte() % 3];
  Labels v = {{in.size(in.byte() % 16 == 0 ? 0 : 1, 6), in.size(1, 7), in.size(in.byte() % 16 == 0 ? 0 : 1, 40)}, 1 << in.byte() % 4, {}};
  const bool multilabel = in.flag(), all = in.flag(), largest = in.flag(), numbered = in.byte() % 4 != 0;
  const int64_t least = in.byte() % 3 == 0 ? 0 : in.size(0, 9), kinds = in.size(1, 4);
  v.data.resize(v.count() * v.bytes);
  unsigned char value = 0;
  for (int64_t i = 0; i < v.count(); ++i) {
    if (in.byte() % 3 != 0) value = static_cast<unsigned char>(in.byte() % (kinds + 1) * 85);  // 255 of one byte is -1
    std::memset(v.data.data() + i * v.bytes, 0, v.bytes);
    v.data[i * v.bytes] = value;
  }
  const auto chosen = in.integers<int64_t>(in.size(0, 3), -1, 254);
  const auto args = [&](const Labels& of) {
    return ComponentArgs{of.data.data(), static_cast<int>(of.bytes), {of.size[0], of.size[1], of.size[2]}, connectivity, multilabel};
  };
  const ComponentSink no_sink = {nullptr, [](void*, int64_t n) {
                                   static std::vector<Component> room;
                                   room.resize(n + 1);
                                   return room.data();
                                 }};
  on_each("components", TF_EACH(component), true, [&](const ComponentKernels& k) {
    std::vector<Component> table;
    const ComponentSink sink = {&table, [](void* context, int64_t n) {
                                  auto* room = static_cast<std::vector<Component>*>(context);
                                  room->resize(n);
                                  return room->data();
                                }};
    std::vector<int32_t> numbers(v.count(), -1);
    Found found;
    const int64_t n = k.label(args(v), numbered ? numbers.data() : nullptr, sink);
    require(n == static_cast<int64_t>(table.size()), "components", "listed another number of components");
    if (numbered) require(n == flooded(v, connectivity, multilabel, numbers), "components", "counted another number than flooding");
    int64_t voxels = 0, present = 0;
    for (int64_t i = 0; i < v.count(); ++i) present += v.at(i) != 0;
    for (const Component& c : table) {
      voxels += c.voxels;
      for (int axis = 0; axis < 3; ++axis)
        require(0 <= c.lo[axis] && c.lo[axis] < c.hi[axis] && c.hi[axis] <= v.size[axis], "components", "has a box outside the volume");
      found.add("component", std::vector<int64_t>{c.value, c.voxels, c.lo[0], c.lo[1], c.lo[2], c.hi[0], c.hi[1], c.hi[2]});
    }
    require(voxels == present, "components", "has another number of voxels");
    Labels kept = v, filled = v;
    const int64_t cleared = k.keep_largest(args(kept), all ? nullptr : chosen.data(), chosen.size(), largest, least);
    require(k.label(args(kept), nullptr, no_sink) == n - cleared, "keep_largest", "cleared another number of components");
    const int64_t more = k.fill_holes(args(filled), all ? nullptr : chosen.data(), chosen.size());
    int64_t changed = 0;
    for (int64_t i = 0; i < v.count(); ++i) {
      require(kept.at(i) == v.at(i) || kept.at(i) == 0, "keep_largest", "changed a value");
      require(filled.at(i) == v.at(i) || v.at(i) == 0, "fill_holes", "changed what was no hole");
      changed += filled.at(i) != v.at(i);
    }
    require(changed == more, "fill_holes", "filled another number of voxels");
    found.add("numbers", numbers), found.add("kept", kept.data), found.add("filled", filled.data);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const bool interpolate = in.byte() % 3 == 0;
  in.tame = in.flag();
  interpolate ? resampled(in) : components(in);
  return 0;
}
