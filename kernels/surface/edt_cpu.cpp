// The exact Euclidean distance transform on the CPU: traversal only. Compiled once per instruction set, into a namespace of its own.
//
// Axes are taken from the innermost out. Along the innermost a row is scanned once forth and once back; along the others, vectors of
// columns are copied into a tile that stays in the first-level cache, and come back as distances. Columns are independent, so results do
// not depend on threads.
#include <algorithm>

#include "../core/pages.hpp"
#include "../core/parallel.hpp"
#include "edt.hpp"
#include "surface_api.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

// Squared distance along a row to the row's nearest feature; `squares[k]` = (k s)^2, squares[n] = infinity.
template <class T>
void scan_row(const uint8_t* features, int64_t n, const T* squares, int32_t* steps, T* out, int32_t* from) {
  int64_t first = 0;
  while (first < n && features[first] == 0) ++first;
  if (first == n) {
    std::fill(out, out + n, static_cast<T>(INFINITY));
    if (from != nullptr) std::fill(from, from + n, -1);
    return;
  }
  int32_t since = static_cast<int32_t>(n);
  for (int64_t i = 0; i < n; ++i) {
    since = features[i] != 0 ? 0 : std::min(since + 1, static_cast<int32_t>(n));
    steps[i] = since;
  }
  since = static_cast<int32_t>(n);
  for (int64_t i = n - 1; i >= 0; --i) {
    since = features[i] != 0 ? 0 : std::min(since + 1, static_cast<int32_t>(n));
    if (from != nullptr) from[i] = static_cast<int32_t>(steps[i] <= since ? i - steps[i] : i + since);
    out[i] = squares[std::min(steps[i], since)];
  }
}

template <class T>
struct Transform {
  const EdtArgs& args;
  int64_t voxels;
  Room<T> squares[3];

  explicit Transform(const EdtArgs& a) : args(a), voxels(a.sizes[0] * a.sizes[1] * a.sizes[2]) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t n = a.sizes[axis] + 2;
      squares[axis].take(n + 1);
      for (int64_t k = 0; k <= n; ++k) {
        const double step = static_cast<double>(k) * a.spacing[axis];
        squares[axis][k] = static_cast<T>(step * step);
      }
    }
    squares[2][a.sizes[2]] = static_cast<T>(INFINITY);
  }

  void run() {
    if (voxels == 0 || args.batch == 0) return;
    ask_for_large_pages(args.out, args.batch * voxels * int64_t{sizeof(T)});
    rows();
    const int64_t* const n = args.sizes;
    if (n[1] > 1) columns(1, n[1], n[2], args.batch * n[0], n[1] * n[2], !args.squared && n[0] == 1);
    if (n[0] > 1) columns(0, n[0], n[1] * n[2], args.batch, voxels, !args.squared);
    if (!args.squared && n[0] == 1 && n[1] == 1) roots();
    for (int axis = 0; args.index != nullptr && axis < 2; ++axis) {
      if (n[axis] == 1) single_index(axis);
    }
  }

 private:
  T* out() const { return static_cast<T*>(args.out); }

  // index [3][voxels] of each volume: along c here, b and a as their axes are done
  int32_t* index(int64_t volume, int axis) const { return args.index == nullptr ? nullptr : args.index + (volume * 3 + axis) * voxels; }

  template <class Work>
  void ranges(int64_t pieces, int64_t grain, const Work& work) const {
    parallel_ranges(pieces, args.threads, work, grain);
  }

  void rows() {
    const int64_t n = args.sizes[2], each = args.sizes[0] * args.sizes[1];
    ranges(args.batch * each, std::max<int64_t>(1, 16384 / n), [&](int64_t first, int64_t last) {
      Room<int32_t> steps;
      steps.take(n);
      for (int64_t row = first; row < last; ++row) {
        const int64_t volume = row / each;
        int32_t* const from = index(volume, 2);
        const int64_t at = row % each * n;
        scan_row(args.features + row * n, n, squares[2].data(), steps.data(), out() + row * n, from == nullptr ? nullptr : from + at);
      }
    });
  }

  static void copy(const T* from, int64_t stride, int64_t n, int64_t count, T* tile) {
    constexpr int64_t kWide = kColumns<T>;
    if (count == kWide) {
      for (int64_t q = 0; q < n; ++q) std::memcpy(tile + q * kWide, from + q * stride, sizeof(Column<T>));
      return;
    }
    for (int64_t q = 0; q < n; ++q) {
      for (int64_t i = 0; i < kWide; ++i) tile[q * kWide + i] = i < count ? from[q * stride + i] : T(0);  // 0: no reason to look further
    }
  }

  // Columns of n values `wide` apart, `wide` of them side by side, in `slabs` slabs that are `slab` apart; `rooted` in the last pass.
  void columns(int axis, int64_t n, int64_t wide, int64_t slabs, int64_t slab, bool rooted) {
    constexpr int64_t kWide = kColumns<T>;
    const int64_t blocks = (wide + kWide - 1) / kWide;
    ranges(slabs * blocks, std::max<int64_t>(1, 16384 / (n * kWide)), [&](int64_t first, int64_t last) {
      Room<Column<T>> tile, result;
      HullRoom hull;
      Room<int32_t> from;
      tile.take(n);
      result.take(n);
      hull.at.take(n);
      hull.start.take(n);
      from.take(n);
      for (int64_t block = first; block < last; ++block) {
        const int64_t at = block / blocks * slab + block % blocks * kWide;
        const int64_t count = std::min(kWide, wide - block % blocks * kWide);
        copy(out() + at, wide, n, count, reinterpret_cast<T*>(tile.data()));
        T *const in = reinterpret_cast<T*>(tile.data()), *const to = reinterpret_cast<T*>(result.data());
        if (args.index != nullptr || !window_pass<T>(tile.data(), n, squares[axis].data(), result.data())) {
          for (int64_t i = 0; i < count; ++i) {
            int32_t* const v = args.index == nullptr ? nullptr : from.data();
            hull_pass(in + i, kWide, n, args.spacing[axis], hull, to + i, kWide, v);
            if (v != nullptr) take_index(axis, at + i, n, wide, v);
          }
        }
        for (int64_t i = 0; rooted && i < n * kWide; ++i) to[i] = std::sqrt(to[i]);
        for (int64_t q = 0; q < n; ++q) std::memcpy(out() + at + q * wide, to + q * kWide, static_cast<size_t>(count) * sizeof(T));
      }
    });
  }

  // The index of a column along this axis is `from`; along the axes before, that of the voxel it comes from.
  void take_index(int axis, int64_t at, int64_t n, int64_t wide, const int32_t* from) const {
    const int64_t volume = at / voxels, place = at % voxels;
    Room<int32_t> held;
    held.take(n);
    for (int done = axis + 1; done < 3; ++done) {
      int32_t* const x = index(volume, done) + place;
      for (int64_t q = 0; q < n; ++q) held[q] = x[q * wide];
      for (int64_t q = 0; q < n; ++q) x[q * wide] = from[q] < 0 ? -1 : held[from[q]];
    }
    int32_t* const x = index(volume, axis) + place;
    for (int64_t q = 0; q < n; ++q) x[q * wide] = from[q];
  }

  // Along an axis of one voxel everything comes from it.
  void single_index(int axis) const {
    for (int64_t volume = 0; volume < args.batch; ++volume) {
      for (int64_t i = 0; i < voxels; ++i) index(volume, axis)[i] = index(volume, 2)[i] < 0 ? -1 : 0;
    }
  }

  void roots() {
    ranges(args.batch * voxels, 1 << 16, [&](int64_t first, int64_t last) {
      T* const x = out();
      for (int64_t i = first; i < last; ++i) x[i] = std::sqrt(x[i]);
    });
  }
};

void edt(const EdtArgs& a) {
  if (a.wide) {
    Transform<double>(a).run();
  } else {
    Transform<float>(a).run();
  }
}

}  // namespace

extern const tenfold::EdtKernels edt_kernels;
const tenfold::EdtKernels edt_kernels = {edt};

}  // namespace TF_NS
