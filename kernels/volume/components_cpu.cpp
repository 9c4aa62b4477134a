// Connected components of integer volumes by runs (Rosenfeld and Pfaltz, JACM 1966; He, Chao and Suzuki, IEEE TIP 2008): a row is cut into
// runs of one value, runs that touch in neighbouring rows are joined in a union-find over runs, and voxels are written only where
// something changes. Bound by reading the volume once, eight bytes at a time.
#include "../core/room.hpp"
#include "volume_api.hpp"

#include <cstring>

namespace TF_NS {
namespace {

using namespace tenfold;

template <class T>
struct Run {
  int32_t start, end;
  T value;
};

template <class T>
struct Runs {
  Vector<Run<T>> run;
  Vector<int64_t> first;  // of each row, and one behind the last
  Vector<uint32_t> parent;

  const Run<T>& operator[](int64_t i) const { return run[static_cast<size_t>(i)]; }
  int64_t root(int64_t at) {
    uint32_t i = static_cast<uint32_t>(at);
    while (parent[i] != i) {
      parent[i] = parent[parent[i]];
      i = parent[i];
    }
    return i;
  }
  void join(int64_t p, int64_t q) {
    const uint32_t a = static_cast<uint32_t>(root(p)), b = static_cast<uint32_t>(root(q));
    if (a < b) parent[b] = a;  // a root is the first run of its component
    if (b < a) parent[a] = b;
  }
};

// Where the run that begins at `from` ends: eight bytes at a time.
template <class T>
int64_t end_of_run(const T* row, int64_t from, int64_t size) {
  constexpr int64_t kPer = 8 / static_cast<int64_t>(sizeof(T));
  const T value = row[from];
  uint64_t pattern;
  T copies[kPer];
  for (T& copy : copies) copy = value;
  std::memcpy(&pattern, copies, 8);
  int64_t i = from + 1;
  for (uint64_t word; i + kPer <= size; i += kPer) {
    std::memcpy(&word, row + i, 8);
    if (word != pattern) break;
  }
  while (i < size && row[i] == value) ++i;
  return i;
}

// Runs of all rows; zeros only with `zeros`.
template <class T>
void find_runs(const ComponentArgs& a, bool zeros, Runs<T>& runs) {
  const int64_t rows = a.size[0] * a.size[1], width = a.size[2];
  const T* volume = static_cast<const T*>(a.volume);
  runs.first.reserve(static_cast<size_t>(rows + 1));
  for (int64_t r = 0; r < rows; ++r) {
    runs.first.push_back(static_cast<int64_t>(runs.run.size()));
    const T* row = volume + r * width;
    for (int64_t x = 0; x < width;) {
      const int64_t end = end_of_run(row, x, width);
      if (row[x] != 0 || zeros) runs.run.push_back({static_cast<int32_t>(x), static_cast<int32_t>(end), row[x]});
      x = end;
    }
  }
  runs.first.push_back(static_cast<int64_t>(runs.run.size()));
  runs.parent.resize(runs.run.size());
  for (size_t i = 0; i < runs.parent.size(); ++i) runs.parent[i] = static_cast<uint32_t>(i);
}

// touch(a, b) for every run a of a row and b of another that overlap, or with `diagonal` meet at a corner.
template <class T, class Touch>
void pairs_of_rows(const Runs<T>& runs, int64_t row, int64_t other, int diagonal, const Touch& touch) {
  int64_t a = runs.first[static_cast<size_t>(row)], b = runs.first[static_cast<size_t>(other)];
  const int64_t a_end = runs.first[static_cast<size_t>(row) + 1], b_end = runs.first[static_cast<size_t>(other) + 1];
  while (a < a_end && b < b_end) {
    const auto &p = runs[a], &q = runs[b];
    if (p.start < q.end + diagonal && q.start < p.end + diagonal) touch(a, b);
    if (p.end == q.end && diagonal != 0 && a + 1 < a_end && runs[a + 1].start < q.end + diagonal) {
      // Both end together: the next of each may still meet the other at a corner.
      if (b + 1 < b_end && runs[b + 1].start < p.end + diagonal) touch(a, b + 1);
      ++a;
    } else if (p.end < q.end) {
      ++a;
    } else {
      ++b;
    }
  }
}

// touch for the rows before each row that its connectivity reaches.
template <class T, class Touch>
void all_pairs(const ComponentArgs& a, const Runs<T>& runs, const Touch& touch) {
  const int straight = a.connectivity == 6 ? 0 : 1, corner = a.connectivity == 26 ? 1 : 0;
  for (int64_t z = 0; z < a.size[0]; ++z) {
    for (int64_t y = 0; y < a.size[1]; ++y) {
      const int64_t row = z * a.size[1] + y;
      if (y > 0) pairs_of_rows(runs, row, row - 1, straight, touch);
      if (z == 0) continue;
      const int64_t below = row - a.size[1];
      pairs_of_rows(runs, row, below, straight, touch);
      if (a.connectivity == 6) continue;
      if (y > 0) pairs_of_rows(runs, row, below - 1, corner, touch);
      if (y + 1 < a.size[1]) pairs_of_rows(runs, row, below + 1, corner, touch);
    }
  }
}

template <class Use>
auto by_bytes(const ComponentArgs& a, const Use& use) {
  switch (a.item_bytes) {
    case 1: return use(int8_t{});
    case 2: return use(int16_t{});
    case 4: return use(int32_t{});
    default: return use(int64_t{});
  }
}

// Components in the order of their first voxel, and the component of each run.
template <class T>
Vector<Component> components_of(const ComponentArgs& a, Runs<T>& runs, Vector<int32_t>& of_run) {
  find_runs<T>(a, false, runs);
  // Without multilabel runs of different values in one row touch as well.
  if (!a.multilabel) {
    for (size_t r = 0; r + 1 < runs.first.size(); ++r) {
      for (int64_t i = runs.first[r] + 1; i < runs.first[r + 1]; ++i) {
        if (runs[i].start == runs[i - 1].end) runs.join(i - 1, i);
      }
    }
  }
  all_pairs(a, runs, [&](int64_t p, int64_t q) {
    if (!a.multilabel || runs[p].value == runs[q].value) runs.join(p, q);
  });
  Vector<Component> found;
  of_run.resize(runs.run.size());
  for (int64_t r = 0; r < a.size[0] * a.size[1]; ++r) {
    const int64_t z = r / a.size[1], y = r % a.size[1];
    for (int64_t i = runs.first[static_cast<size_t>(r)]; i < runs.first[static_cast<size_t>(r) + 1]; ++i) {
      const auto& run = runs[i];
      const int64_t root = runs.root(i);
      if (root == i) {
        of_run[static_cast<size_t>(i)] = static_cast<int32_t>(found.size());
        found.push_back({run.value, 0, {z, y, run.start}, {z, y, run.end}});
      }
      const int32_t c = of_run[static_cast<size_t>(root)];
      of_run[static_cast<size_t>(i)] = c;
      Component& into = found[static_cast<size_t>(c)];
      into.voxels += run.end - run.start;
      const int64_t lo[3] = {z, y, run.start}, hi[3] = {z + 1, y + 1, run.end};
      for (int k = 0; k < 3; ++k) {
        into.lo[k] = lo[k] < into.lo[k] ? lo[k] : into.lo[k];
        into.hi[k] = hi[k] > into.hi[k] ? hi[k] : into.hi[k];
      }
    }
  }
  return found;
}

int64_t label(const ComponentArgs& a, int32_t* labels, const ComponentSink& sink) {
  return by_bytes(a, [&](auto zero) -> int64_t {
    Runs<decltype(zero)> runs;
    Vector<int32_t> of_run;
    const Vector<Component> found = components_of<decltype(zero)>(a, runs, of_run);
    Component* to = sink.room(sink.context, static_cast<int64_t>(found.size()));
    for (size_t i = 0; i < found.size(); ++i) to[i] = found[i];
    if (labels != nullptr) {
      const int64_t width = a.size[2];
      for (int64_t r = 0; r < a.size[0] * a.size[1]; ++r) {
        int32_t* row = labels + r * width;
        int64_t x = 0;
        for (int64_t i = runs.first[static_cast<size_t>(r)]; i < runs.first[static_cast<size_t>(r) + 1]; ++i) {
          const auto& run = runs[i];
          const int32_t number = of_run[static_cast<size_t>(i)] + 1;
          for (; x < run.start; ++x) row[x] = 0;
          for (; x < run.end; ++x) row[x] = number;
        }
        for (; x < width; ++x) row[x] = 0;
      }
    }
    return static_cast<int64_t>(found.size());
  });
}

bool among(int64_t value, const int64_t* chosen, int64_t n) {
  for (int64_t i = 0; chosen != nullptr && i < n; ++i) {
    if (chosen[i] == value) return true;
  }
  return chosen == nullptr;
}

// The largest component of each value, by position; values are few, so a list does.
Vector<size_t> largest_of_each(const Vector<Component>& found, bool multilabel) {
  Vector<size_t> best;
  for (size_t i = 0; i < found.size(); ++i) {
    size_t k = 0;
    while (k < best.size() && multilabel && found[best[k]].value != found[i].value) ++k;
    if (k == best.size()) {
      best.push_back(i);
    } else if (found[i].voxels > found[best[k]].voxels) {
      best[k] = i;
    }
  }
  return best;
}

int64_t keep_largest(const ComponentArgs& a, const int64_t* chosen, int64_t n_chosen, bool largest_only, int64_t least_voxels) {
  return by_bytes(a, [&](auto zero) -> int64_t {
    using T = decltype(zero);
    Runs<T> runs;
    Vector<int32_t> of_run;
    const Vector<Component> found = components_of<T>(a, runs, of_run);
    Vector<bool> clear(found.size());
    Vector<bool> best(found.size());
    for (size_t i : largest_of_each(found, a.multilabel)) best[i] = true;
    int64_t cleared = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      const bool loses = (largest_only && !best[i]) || found[i].voxels < least_voxels;
      clear[i] = loses && among(found[i].value, chosen, n_chosen);
      cleared += clear[i];
    }
    T* volume = static_cast<T*>(const_cast<void*>(a.volume));
    for (int64_t r = 0; cleared > 0 && r < a.size[0] * a.size[1]; ++r) {
      for (int64_t i = runs.first[static_cast<size_t>(r)]; i < runs.first[static_cast<size_t>(r) + 1]; ++i) {
        if (!clear[static_cast<size_t>(of_run[static_cast<size_t>(i)])]) continue;
        const auto& run = runs[i];
        std::memset(volume + r * a.size[2] + run.start, 0, static_cast<size_t>(run.end - run.start) * sizeof(T));
      }
    }
    return cleared;
  });
}

// What a component of zeros touches: nothing yet, one value, or several (or the border).
struct Shore {
  int64_t value = 0;
  bool open = false;
  void touch(int64_t other) {
    if (value == 0) value = other;
    if (value != other) open = true;
  }
};

int64_t fill_holes(const ComponentArgs& a, const int64_t* chosen, int64_t n_chosen) {
  return by_bytes(a, [&](auto zero) -> int64_t {
    using T = decltype(zero);
    ComponentArgs six = a;
    six.connectivity = 6;
    Runs<T> runs;
    find_runs<T>(six, true, runs);
    const auto value = [&](int64_t i) { return static_cast<int64_t>(runs[i].value); };
    all_pairs(six, runs, [&](int64_t p, int64_t q) {
      if (value(p) == 0 && value(q) == 0) runs.join(p, q);
    });
    Vector<Shore> shore(runs.run.size());
    const auto at = [&](int64_t i) -> Shore& { return shore[static_cast<size_t>(runs.root(i))]; };
    all_pairs(six, runs, [&](int64_t p, int64_t q) {
      if (value(p) == 0 && value(q) != 0) at(p).touch(value(q));
      if (value(q) == 0 && value(p) != 0) at(q).touch(value(p));
    });
    const int64_t rows = a.size[0] * a.size[1];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t z = r / a.size[1], y = r % a.size[1];
      // An axis of length one has no border: a plane is filled as a plane.
      const bool edge = (a.size[0] > 1 && (z == 0 || z + 1 == a.size[0])) || (a.size[1] > 1 && (y == 0 || y + 1 == a.size[1]));
      for (int64_t i = runs.first[static_cast<size_t>(r)]; i < runs.first[static_cast<size_t>(r) + 1]; ++i) {
        if (value(i) != 0) continue;
        const auto& run = runs[i];
        Shore& s = at(i);
        s.open = s.open || edge || run.start == 0 || run.end == a.size[2];
        if (run.start > 0) s.touch(value(i - 1));
        if (run.end < a.size[2]) s.touch(value(i + 1));
      }
    }
    int64_t filled = 0;
    T* volume = static_cast<T*>(const_cast<void*>(a.volume));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = runs.first[static_cast<size_t>(r)]; i < runs.first[static_cast<size_t>(r) + 1]; ++i) {
        if (value(i) != 0) continue;
        const Shore& s = at(i);
        if (s.open || !among(s.value, chosen, n_chosen)) continue;
        const auto& run = runs[i];
        for (int64_t x = run.start; x < run.end; ++x) volume[r * a.size[2] + x] = static_cast<T>(s.value);
        filled += run.end - run.start;
      }
    }
    return filled;
  });
}

}  // namespace

extern const tenfold::ComponentKernels component_kernels;
const tenfold::ComponentKernels component_kernels = {label, keep_largest, fill_holes};

}  // namespace TF_NS
