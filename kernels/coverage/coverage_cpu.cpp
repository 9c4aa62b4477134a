// Greedy facility location on the CPU. Compiled once per instruction set.
//
// Lazy greedy (Minoux 1978): a heap of upper bounds, the gains of earlier steps. The top few that are not of this step are brought up to
// date together, as one product of their points with all rows (coverage_points.hpp), more at a time the longer a step takes; the first one
// of this step at the top is the pick. Similarities are never stored: memory is one float32 copy of the points and a few numbers per row.
#include "coverage_walks.hpp"

#include <algorithm>

namespace TF_NS {
namespace {

struct Entry {
  double key;
  int64_t j;
};
// For a heap with the largest key on top, of equals the smallest j.
struct Below {
  bool operator()(const Entry& a, const Entry& b) const { return a.key < b.key || (a.key == b.key && a.j > b.j); }
};

// Lowers bounds [n] by what CoverMoments says of gains after pick p.
void bound_by_moments(const GreedyArgs& a, FromPoints<kSquared>& source, int64_t p, double* bound) {
  const Points& z = source.z;
  const CoverMoments& m = a.moments;
  Room<float> pick, moved, dots;
  fetch_point(z, z.place[p], pick.take(z.d));
  moved.take(z.d);  // M z_p
  for (int64_t r = 0; r < z.d; ++r) {
    double sum = 0.0;
    for (int64_t k = 0; k < z.d; ++k) sum += m.second[r * z.d + k] * static_cast<double>(pick[k]);
    moved[r] = static_cast<float>(sum);
  }
  dots.take(source.rows());
  for (int64_t q = 0; q < z.panels; ++q) {
    panel_product<1>(z.panel(q), z.d, moved.data(), [&](int, int j, V dot) { store_lanes(dots.data() + q * kPanel + j * kLane, dot); });
  }
  const double rounding = 2.4e-7 * static_cast<double>(z.d);
  const double norm = static_cast<double>(z.norms[z.place[p]]);
  for (int64_t j = 0; j < z.n; ++j) {
    const double alpha = norm - static_cast<double>(z.norms[z.place[j]]);
    const double slope = m.slope[p] - m.slope[j];
    const double both = m.square[p] + m.square[j];
    const double first = m.mass * alpha - 2.0 * slope;
    double second = m.mass * alpha * alpha - 4.0 * alpha * slope + 4.0 * (both - 2.0 * static_cast<double>(dots[z.place[j]]));
    second = (second > 0.0 ? second : 0.0) + 16.0 * rounding * both;
    const double above = 0.5 * (first + __builtin_sqrt(m.mass * second)) + m.slack;
    if (above < bound[j]) bound[j] = above;
  }
}
template <class Source>
void bound_by_moments(const GreedyArgs&, Source&, int64_t, double*) {}

constexpr int64_t kFirstBatch = kTile;  // in every step; then twice as many each time, to kBatch

template <class Source>
class Greedy {
 public:
  Greedy(const GreedyArgs& args, Source& from) : a_(args), source_(from) {
    const int64_t rows = source_.rows();
    floor_ = floor_of(a_.source, source_);
    scale_ = cover_scale(a_.source.form, a_.source.kind);
    float* current = cover_.current.take(rows);
    float* weights = cover_.weights.take(rows);
    cover_.owner.zeros(rows);
    for (int64_t i = 0; i < rows; ++i) {
      current[i] = static_cast<float>(floor_);
      weights[i] = !source_.real(i) ? 0.0f : a_.weights == nullptr ? 1.0f : static_cast<float>(a_.weights[source_.row(i)]);
    }
    bound_.resize(static_cast<size_t>(a_.source.candidates), __builtin_inf());
    if (a_.first != nullptr) {
      for (size_t j = 0; j < bound_.size(); ++j) bound_[j] = a_.first[j];
    }
    stamp_.resize(bound_.size(), -1);
    left_ = a_.budget;
  }

  void run() {
    Vector<int64_t> free = unselected();
    int64_t made = 0;
    if (a_.optimizer == kLazy) {
      fill(heap_, free.data(), static_cast<int64_t>(free.size()));
      for (; made < a_.k && lazily(heap_, made); ++made) {
        accept(made);
        if (made == 0 && a_.initials == 0 && a_.moments.mass > 0.0) {
          bound_by_moments(a_, source_, picked_, bound_.data());
          remove(free, picked_);
          fill(heap_, free.data(), static_cast<int64_t>(free.size()));
        }
      }
    } else {
      for (; made < a_.k; ++made) {
        const int64_t count = sample(free, made);
        const bool found = a_.optimizer == kLazier ? lazily_among(free.data(), count, made) : eagerly(free.data(), count, made);
        if (!found) break;
        accept(made);
        remove(free, picked_);
      }
    }
    *a_.made = made;
    finish();
  }

 private:
  Vector<int64_t> unselected() {
    Vector<char> taken(bound_.size(), 0);
    for (int64_t p = 0; p < a_.initials; ++p) {
      take(a_.initial[p]);
      taken[static_cast<size_t>(a_.initial[p])] = 1;
    }
    Vector<int64_t> free;
    for (int64_t j = 0; j < a_.source.candidates; ++j) {
      if (!taken[static_cast<size_t>(j)]) free.push_back(j);
    }
    return free;
  }

  bool fits(int64_t j) const { return a_.costs == nullptr || a_.costs[j] <= left_; }
  double key(int64_t j) const {
    const double bound = bound_[static_cast<size_t>(j)];
    return a_.costs == nullptr ? bound : bound / a_.costs[j];
  }

  // The candidates of a step: all, or the front of a shuffle of those that fit (Fisher and Yates).
  int64_t sample(Vector<int64_t>& free, int64_t step) {
    if (a_.optimizer == kNaive) return static_cast<int64_t>(free.size());
    free.erase(std::remove_if(free.begin(), free.end(), [&](int64_t j) { return !fits(j); }), free.end());
    const int64_t m = static_cast<int64_t>(free.size());
    const int64_t count = a_.sample < m ? a_.sample : m;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t word = static_cast<uint64_t>(a_.words[step * a_.sample + i]);
      int64_t& here = free[static_cast<size_t>(i)];
      int64_t& there = free[static_cast<size_t>(i) + (word * static_cast<uint64_t>(m - i) >> 32)];
      const int64_t kept = here;
      here = there;
      there = kept;
    }
    return count;
  }
  static void remove(Vector<int64_t>& free, int64_t which) {
    *std::find(free.begin(), free.end(), which) = free.back();
    free.pop_back();
  }

  void evaluate(const int64_t* which, int64_t count, int64_t step) {
    double gains[kBatch];
    source_.gains(which, count, cover_, gains);
    for (int64_t r = 0; r < count; ++r) {
      bound_[static_cast<size_t>(which[r])] = scale_ * gains[r];
      stamp_[static_cast<size_t>(which[r])] = step;
    }
    *a_.evaluations += count;
  }

  void fill(Vector<Entry>& heap, const int64_t* which, int64_t count) {
    heap.clear();
    for (int64_t r = 0; r < count; ++r) {
      if (fits(which[r])) heap.push_back({key(which[r]), which[r]});
    }
    std::make_heap(heap.begin(), heap.end(), Below());
  }
  static int64_t pop(Vector<Entry>& heap) {
    std::pop_heap(heap.begin(), heap.end(), Below());
    const int64_t j = heap.back().j;
    heap.pop_back();
    return j;
  }
  bool lazily_among(const int64_t* which, int64_t count, int64_t step) {
    fill(heap_, which, count);
    return lazily(heap_, step);
  }
  bool lazily(Vector<Entry>& heap, int64_t step) {
    const auto fresh = [&] { return stamp_[static_cast<size_t>(heap.front().j)] == step; };
    for (int64_t most = kFirstBatch; !heap.empty(); most = 2 * most < kBatch ? 2 * most : kBatch) {
      if (fresh()) {
        picked_ = pop(heap);
        return true;
      }
      int64_t stale[kBatch];
      int64_t count = 0;
      while (!heap.empty() && count < most && !fresh()) {
        const int64_t j = pop(heap);
        if (fits(j)) stale[count++] = j;  // what does not fit now never will
      }
      if (count == 0) continue;
      evaluate(stale, count, step);
      for (int64_t r = 0; r < count; ++r) {
        heap.push_back({key(stale[r]), stale[r]});
        std::push_heap(heap.begin(), heap.end(), Below());
      }
    }
    return false;
  }
  bool eagerly(const int64_t* which, int64_t count, int64_t step) {
    Vector<int64_t> affordable;
    for (int64_t r = 0; r < count; ++r) {
      if (fits(which[r])) affordable.push_back(which[r]);
    }
    Entry best = {0.0, -1};
    const int64_t n = static_cast<int64_t>(affordable.size());
    for (int64_t r = 0; r < n; r += kBatch) evaluate(affordable.data() + r, n - r < kBatch ? n - r : kBatch, step);
    for (const int64_t j : affordable) {
      const Entry here = {key(j), j};
      if (best.j < 0 || Below()(best, here)) best = here;
    }
    picked_ = best.j;
    return best.j >= 0;
  }

  void accept(int64_t step) {
    a_.indices[step] = picked_;
    a_.gains[step] = bound_[static_cast<size_t>(picked_)];
    if (a_.costs != nullptr) left_ -= a_.costs[picked_];
    take(picked_);
  }
  void take(int64_t j) {
    source_.take(j, taken_, cover_);
    ++taken_;
  }
  void finish() {
    source_.settle(cover_);
    double total = 0.0;
    for (int64_t i = 0; i < source_.rows(); ++i) {
      if (!source_.real(i)) continue;
      total += static_cast<double>(cover_.weights[i]) * (static_cast<double>(cover_.current[i]) - floor_);
      a_.owner[source_.row(i)] = cover_.owner[i];
    }
    *a_.objective = scale_ * total;
  }

  const GreedyArgs& a_;
  Source& source_;
  Covered cover_;
  Vector<double> bound_;   // of the gain
  Vector<int64_t> stamp_;  // the step whose gain it is
  Vector<Entry> heap_;
  double floor_ = 0.0, scale_ = 1.0, left_ = 0.0;
  int32_t taken_ = 0;
  int64_t picked_ = -1;
};

void greedy(const GreedyArgs& a) {
  *a.evaluations = 0;
  with_source(a.source, a.threads, [&](auto& source) {
    Greedy<std::remove_reference_t<decltype(source)>> run(a, source);
    run.run();
  });
}

void values(const CoverSource& s, const int64_t* which, int64_t count, float* out, int threads) {
  with_source(s, threads, [&](auto& source) {
    const double floor = floor_of(s, source), scale = cover_scale(s.form, s.kind);
    Room<float> column;
    column.take(source.rows());
    for (int64_t r = 0; r < count; ++r) {
      source.values(which[r], column.data());
      for (int64_t i = 0; i < source.rows(); ++i) {
        if (source.real(i)) out[r * s.rows + source.row(i)] = static_cast<float>(scale * (static_cast<double>(column[i]) - floor));
      }
    }
  });
}

void sums(const CoverSource& s, double* out, float* own, int threads) {
  with_source(s, threads, [&](auto& source) {
    const double floor = floor_of(s, source), scale = cover_scale(s.form, s.kind);
    Covered cover;
    cover.current.take(source.rows());
    cover.weights.take(source.rows());
    for (int64_t i = 0; i < source.rows(); ++i) {
      cover.current[i] = static_cast<float>(floor);
      cover.weights[i] = source.real(i) ? 1.0f : 0.0f;
    }
    for (int64_t first = 0; first < s.candidates; first += kBatch) {
      int64_t which[kBatch];
      const int64_t count = s.candidates - first < kBatch ? s.candidates - first : kBatch;
      for (int64_t r = 0; r < count; ++r) which[r] = first + r;
      source.gains(which, count, cover, out + first);
    }
    for (int64_t j = 0; j < s.candidates; ++j) {
      out[j] *= scale;
      own[j] = static_cast<float>(scale * (static_cast<double>(source.own(j)) - floor));
    }
  });
}

double largest(const CoverSource& s, int threads) {
  FromPoints<kSquared> source(s, threads);
  const double square = largest_square(source.z, s.order != nullptr, threads);
  return s.kind == kSquared ? square : static_cast<double>(root(static_cast<float>(square)));
}

}  // namespace

extern const tenfold::CoverKernels cover_kernels;
const tenfold::CoverKernels cover_kernels = {greedy, walk, values, sums, largest};

}  // namespace TF_NS
