// Surface metrics of all organs of a pair of volumes on the CPU. Compiled once per instruction set, into a namespace of its own.
//
// An organ is worked on inside the box around both of its masks, as rows of bits (bit_rows.hpp), and its distances are found by a search
// that knows where surfaces usually are: near each other (search.hpp). Organs are tasks that threads take in order of their size; each is
// computed by one thread, so results do not depend on how many there are. What bounds it is the number of surface elements.
#include <atomic>

#include "../core/parallel.hpp"
#include "far.hpp"
#include "summary.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

struct Side {
  Room<uint64_t> voxels;
  Elements elements;
  Room<Record> records;
};

struct Workspace {
  Side side[2];
  Room<Active> active;
  Room<Place> far;
  Room<double> squares;
  FarRoom far_room;
  Room<Record> pooled;
  Room<uint8_t> member;
  Room<int64_t> present;
};

// The internal order of axes: the target's contiguous axis last; a picture gets an axis of one voxel before its own.
struct Frame {
  bool flat;
  int axis[3];  // of the caller, counted in three axes
  View3 view[2];
  Metric metric;
  double areas[256];  // of codes in the internal order
};

int64_t caller_stride(const Labels& v, int axis) {
  const int own = axis - (3 - v.ndim);
  return own < 0 ? 0 : v.strides[own];
}

int64_t caller_size(const Labels& v, int axis) {
  const int own = axis - (3 - v.ndim);
  return own < 0 ? 1 : v.sizes[own];
}

int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

void order_axes(const Labels& v, Frame& f) {
  f.flat = v.ndim == 2;
  for (int i = 0; i < 3; ++i) f.axis[i] = i;
  int inner = 2;
  for (int i = f.flat ? 1 : 0; i < 3; ++i) {
    const bool longer = caller_size(v, i) > 1 && magnitude(caller_stride(v, i)) < magnitude(caller_stride(v, inner));
    if (longer || (caller_size(v, inner) == 1 && caller_size(v, i) > 1)) inner = i;
  }
  std::swap(f.axis[inner], f.axis[2]);
}

Frame make_frame(const Labels& target, const Labels& pred, const double* spacing, const double* areas) {
  Frame f = {};
  order_axes(target, f);
  const Labels* const both[2] = {&target, &pred};
  for (int side = 0; side < 2; ++side) {
    f.view[side].data = static_cast<const char*>(both[side]->data);
    for (int i = 0; i < 3; ++i) f.view[side].stride[i] = caller_stride(*both[side], f.axis[i]);
  }
  for (int i = 0; i < 3; ++i) {
    f.metric.axis[i] = f.axis[i];
    f.metric.spacing[i] = spacing[i];
  }
  for (int code = 0; code < 256; ++code) {  // bit 7 - (4 i + 2 j + k) of internal i, j, k
    int outside = 0;
    for (int lane = 0; lane < 8; ++lane) {
      int at[3];
      at[f.axis[0]] = lane >> 2 & 1, at[f.axis[1]] = lane >> 1 & 1, at[f.axis[2]] = lane & 1;
      if (code >> (7 - lane) & 1) outside |= 1 << (7 - (4 * at[0] + 2 * at[1] + at[2]));
    }
    f.areas[code] = areas[outside];
  }
  return f;
}

struct Box {
  int64_t low[3] = {INT64_MAX, INT64_MAX, INT64_MAX}, high[3] = {0, 0, 0};
  int64_t volume() const { return high[0] <= low[0] ? 0 : (high[0] - low[0]) * (high[1] - low[1]) * (high[2] - low[2]); }
};

// Widens the box by a row of [K, 2 * ndim], in the caller's axes.
void add_box(const int64_t* row, int ndim, const int* axis, Box& box) {
  const int before = 3 - ndim;
  if (row[ndim] == 0) return;  // an absent label
  for (int i = 0; i < 3; ++i) {
    const int own = axis[i] - before;
    box.low[i] = std::min(box.low[i], own < 0 ? 0 : row[own]);
    box.high[i] = std::max(box.high[i], own < 0 ? 1 : row[ndim + own]);
  }
}

template <class T>
void fill(const Frame& f, const Grid& g, int side, const Room<int64_t>& labels, const Room<uint8_t>& member, Room<uint64_t>& bits) {
  mask_rows<T>(f.view[side], g, labels.data(), labels.size(), member.data(), member.size(), bits);
}

void fill_mask(const Labels& v, const Frame& f, const Grid& g, int side, Workspace& w) {
  Room<uint64_t>& bits = w.side[side].voxels;
  switch (v.bytes) {
    case 1: return fill<uint8_t>(f, g, side, w.present, w.member, bits);
    case 2: return fill<uint16_t>(f, g, side, w.present, w.member, bits);
    case 4: return fill<uint32_t>(f, g, side, w.present, w.member, bits);
    default: return fill<uint64_t>(f, g, side, w.present, w.member, bits);
  }
}

// What the separable search costs per element, in row offsets looked at one by one: its passes over the planes that hold elements,
// shared by the `left` elements, and the planes that each then compares.
int64_t visits_worth(const Room<Active>& active, const Extent& has, int64_t left) {
  int64_t b0 = INT64_MAX, b1 = 0, w0 = INT64_MAX, w1 = 0;
  for (const Active& at : active) {
    b0 = std::min<int64_t>(b0, at.b), b1 = std::max<int64_t>(b1, at.b + 1);
    w0 = std::min<int64_t>(w0, at.w), w1 = std::max<int64_t>(w1, at.w + 1);
  }
  const int64_t planes = has.a1 - has.a0, rows = has.b1 - has.b0, columns = 64 * (w1 - w0);
  return planes * columns * (2 * rows + (b1 - b0)) / 8 / left + 16 + planes / 4;
}

// The elements that search_near left: one by one, and what is too far for that together.
void search_left(const Frame& f, const Elements& other, const Offsets& offsets, Weigher& weigher, Workspace& w, Room<Record>& records) {
  w.far.clear();
  int64_t left = 0;
  for (const Active& at : w.active) left += __builtin_popcountll(at.bits);
  if (left == 0) return;
  // One by one goes on while it costs no more than the separable search would have for the elements so far, and a little in advance.
  const int64_t worth = visits_worth(w.active, extent_of(other), left), most = 4096 + worth * std::min<int64_t>(64, left);
  int64_t visits = most;
  Place nearest = {-1, 0, 0};
  for (const Active& at : w.active) {
    for (uint64_t bits = at.bits; bits != 0; bits &= bits - 1) {
      const int bit = lowest_bit(bits);
      const Place p = {at.a, at.b, at.w * 64 + bit};
      if (visits >= 0) {
        double best = INFINITY;
        if (nearest.a >= 0) best = f.metric.square(nearest.a - p.a, nearest.b - p.b, nearest.c - p.c);
        if (search_rows(other, f.metric, offsets, p, best, nearest, visits)) {
          records.push(weigher.single(at, bit, best));
          visits = std::min(visits + worth, most);
          continue;
        }
      }
      w.far.push(p);
    }
  }
  if (w.far.size() == 0) return;
  std::sort(w.far.begin(), w.far.end(), [](const Place& x, const Place& y) {
    if (x.c / kColumnBlock != y.c / kColumnBlock) return x.c < y.c;
    if (x.a != y.a) return x.a < y.a;
    return x.b != y.b ? x.b < y.b : x.c < y.c;
  });
  const Extent has = extent_of(other);
  for (int64_t i = 0; i < w.far.size();) {
    int64_t end = i;
    while (end < w.far.size() && w.far[end].c / kColumnBlock == w.far[i].c / kColumnBlock) ++end;
    double* const squares = w.squares.take(end - i);
    search_far_block(other, f.metric, has, w.far.data() + i, end - i, w.far_room, squares);
    for (int64_t k = i; k < end; ++k) {
      const Place& p = w.far[k];
      records.push(weigher.single({0, p.a, p.b, p.c / 64}, p.c % 64, squares[k - i]));
    }
    i = end;
  }
}

// All distances from one side to the other, sorted.
void search(const Frame& f, const Grid& g, const Offsets& offsets, bool edge, int side, Workspace& w) {
  Side &mine = w.side[side], &other = w.side[1 - side];
  mine.records.clear();
  list_active(mine.elements, w.active);
  Weigher weigher = {g, mine.voxels.data(), edge ? nullptr : f.areas};
  bool any = false;
  for (const uint8_t row : other.elements.occupied) any |= row != 0;
  if (any) {
    search_near(other.elements, offsets, weigher, w.active, mine.records);
    search_left(f, other.elements, offsets, weigher, w, mine.records);
    sort_records(mine.records);
  } else if (w.active.size() > 0) {
    for (const Active& at : w.active) weigher.add(at, at.bits);
    mine.records.push(weigher.take(INFINITY));
  }
}

void write_side(const SurfaceArgs& a, int64_t organ, int side, const Room<Record>& records) {
  const int64_t at = 2 * organ + side;
  for (const Record& r : records) a.elements[at] += r.count;
  a.area[at] = total_weight(records);
  a.distance_sum[at] = distance_sum(records);
  const double* const tolerances = a.tolerances + organ * a.n_tolerances;
  for (int64_t t = 0; t < a.n_tolerances; ++t) a.within[at * a.n_tolerances + t] = weight_within(records, tolerances[t]);
  for (int64_t p = 0; p < a.n_percentiles; ++p) a.hd[at * a.n_percentiles + p] = percentile(records, a.percentiles[p], a.edge);
}

void count_voxels(const SurfaceArgs& a, int64_t organ) {
  const int64_t *const first = a.organ_labels + a.organ_starts[organ], *const last = a.organ_labels + a.organ_starts[organ + 1];
  int64_t* const out = a.voxels + 3 * organ;
  for (const int64_t* l = first; l != last; ++l) {
    for (int64_t m = 0; m < a.num_labels; ++m) {
      out[0] += a.counts[*l * a.num_labels + m];
      out[1] += a.counts[m * a.num_labels + *l];
    }
    for (const int64_t* m = first; m != last; ++m) out[2] += a.counts[*l * a.num_labels + *m];
  }
}

void find_elements(const Grid& g, bool edge, Side& side) {
  shape_elements(g, edge, side.elements);
  (edge ? find_edges : find_surfels)(g, side.voxels.data(), side.elements);
}

void score(const SurfaceArgs& a, const Frame& f, const Offsets& offsets, int64_t organ, const Box& box, Workspace& w) {
  count_voxels(a, organ);
  for (int side = 0; side < 2; ++side) w.side[side].records.clear();
  if (box.volume() > 0) {
    w.present.clear();
    w.member.zeros(a.num_labels);
    for (int64_t i = a.organ_starts[organ]; i < a.organ_starts[organ + 1]; ++i) {
      const int64_t label = a.organ_labels[i];
      w.member[label] = 1;
      const int ndim = a.target.ndim;
      if (a.box_target[label * 2 * ndim + ndim] != 0 || a.box_pred[label * 2 * ndim + ndim] != 0) w.present.push(label);
    }
    const Grid g = make_grid(box.low, box.high, f.flat);
    fill_mask(a.target, f, g, 0, w);
    fill_mask(a.pred, f, g, 1, w);
    for (Side& side : w.side) find_elements(g, a.edge, side);
    for (int side = 0; side < 2; ++side) search(f, g, offsets, a.edge, side, w);
  }
  for (int side = 0; side < 2; ++side) write_side(a, organ, side, w.side[side].records);
  w.pooled.clear();
  for (const Side& side : w.side) {
    for (const Record& r : side.records) w.pooled.push(r);
  }
  sort_records(w.pooled);
  for (int64_t p = 0; p < a.n_percentiles; ++p) {
    a.hd_pooled[organ * a.n_percentiles + p] = percentile(w.pooled, a.percentiles[p], a.edge);
  }
}

struct Task {
  int64_t organ;
  Box box;
};

void metrics(const SurfaceArgs& a) {
  if (a.organs == 0) return;
  const Frame f = make_frame(a.target, a.pred, a.spacing, a.areas);
  Offsets offsets;
  find_offsets(f.metric, f.flat, offsets);
  Room<Task> tasks;
  for (int64_t o = 0; o < a.organs; ++o) {
    Task task = {o, {}};
    for (int64_t i = a.organ_starts[o]; i < a.organ_starts[o + 1]; ++i) {
      add_box(a.box_target + a.organ_labels[i] * 2 * a.target.ndim, a.target.ndim, f.axis, task.box);
      add_box(a.box_pred + a.organ_labels[i] * 2 * a.pred.ndim, a.pred.ndim, f.axis, task.box);
    }
    tasks.push(task);
  }
  std::sort(tasks.begin(), tasks.end(), [](const Task& x, const Task& y) {
    if (x.box.volume() != y.box.volume()) return x.box.volume() > y.box.volume();
    return x.organ < y.organ;
  });
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(a.threads, tasks.size());
  parallel_ranges(workers, a.threads, [&](int64_t, int64_t) {
    Workspace w;
    for (int64_t i = next++; i < tasks.size(); i = next++) score(a, f, offsets, tasks[i].organ, tasks[i].box, w);
  });
}

int64_t surfels(const SurfelArgs& a) {
  Frame f = make_frame(a.mask, a.mask, a.areas, a.areas);  // spacing is not used
  for (int i = 0; i < 3; ++i) f.axis[i] = i;               // row-major order of the caller
  f.view[0].data = static_cast<const char*>(a.mask.data);
  for (int i = 0; i < 3; ++i) f.view[0].stride[i] = caller_stride(a.mask, i);
  Box box;
  add_box(a.box, a.mask.ndim, f.axis, box);
  if (box.volume() == 0) return 0;
  Workspace w;
  w.member.zeros(2);
  w.member[1] = 1;
  w.present.push(1);
  const Grid g = make_grid(box.low, box.high, f.flat);
  fill_mask(a.mask, f, g, 0, w);
  find_elements(g, a.edge, w.side[0]);
  list_active(w.side[0].elements, w.active);
  int64_t n = 0;
  const int ndim = a.mask.ndim;
  for (const Active& at : w.active) {
    const CodeWords words = code_words(g, w.side[0].voxels.data(), a.edge ? 0 : at.a, a.edge ? 0 : at.b, at.w);
    for (uint64_t bits = at.bits; bits != 0; bits &= bits - 1, ++n) {
      if (a.at == nullptr) continue;
      const int bit = lowest_bit(bits);
      const int64_t place[3] = {at.a + g.low[0], at.b + g.low[1], at.w * 64 + bit - (a.edge ? 1 : 0) + g.low[2]};
      for (int i = 0; i < ndim; ++i) a.at[n * ndim + i] = place[3 - ndim + i];
      a.codes[n] = a.edge ? 0 : static_cast<uint8_t>(words.code(bit));
      a.area[n] = a.edge ? 1.0 : a.areas[a.codes[n]];
    }
  }
  return n;
}

}  // namespace

extern const tenfold::SurfaceKernels surface_kernels;
const tenfold::SurfaceKernels surface_kernels = {metrics, surfels};

}  // namespace TF_NS
