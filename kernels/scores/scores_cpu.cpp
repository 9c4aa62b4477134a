// Scores, cross-entropies and votes of rows of logits on the CPU: a row comes from memory once, a block of 2048 logits at a time is
// searched for its maximum and then summed about it from the first-level cache. Bound by memory (200 MB of float32 logits for 50,000 rows
// of 1000) and, close behind, by exp: about 20 instructions per register of logits.
//
// A row is summed by one thread in one order, so that the number of threads changes nothing; histograms are integers.
#include "row_lanes.hpp"

#include "../core/dtype.hpp"
#include "../core/parallel.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

template <class T>
const T* row_of(const Matrix& m, int64_t r) {
  return static_cast<const T*>(m.data) + r * m.stride;
}

// The row behind row r, or null.
template <class T>
const T* following(const Matrix& m, int64_t r) {
  return r + 1 < m.rows ? row_of<T>(m, r + 1) : nullptr;
}

template <class Call>
void with_logits(int dtype, const Call& call) {
  switch (dtype) {
    case kBFloat16: return call(bfloat16{});
    case kFloat16: return call(float16{});
    default: return call(float{});
  }
}

// Lowers *at to `row`.
void lower_to(int64_t* at, int64_t row) {
  int64_t seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (row < seen && !__atomic_compare_exchange_n(at, &seen, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

void count(int64_t* at) { __atomic_fetch_add(at, 1, __ATOMIC_RELAXED); }

// Sums of the block over all but the label. `finite` becomes NaN where a logit is not finite.
template <bool second, bool sums, class T>
TF_INLINE inline OtherSums block_sums(RowBlock<T>& b, const T* after, V& finite) {
  V top[4], next[4];
  for (int j = 0; j < 4; ++j) top[j] = next[j] = spread(kNoLogit);
  V seen = finite;
  b.each([&](V x, int j) TF_INLINE {
    seen = multiply_add(x, V{}, seen);
    if constexpr (second) next[j] = larger(next[j], lower(top[j], x));
    top[j] = larger(top[j], x);
  });
  finite = seen;
  const auto join = [&](int i, int j) TF_INLINE {
    next[i] = larger(lower(top[i], top[j]), larger(next[i], next[j]));
    top[i] = larger(top[i], top[j]);
  };
  join(0, 1);
  join(2, 3);
  join(0, 2);
  OtherSums out = other_none();
  out.max = tree_max(top[0]);
  if constexpr (second) {
    // The second largest of all: among the lanes' second ones, or the largest of the lanes but one that holds the maximum.
    float once[kLanes];
    __builtin_memcpy(once, &top[0], sizeof(once));
    for (uint32_t j = 0; j < kLanes; ++j) {
      if (once[j] == out.max) {
        once[j] = kNoLogit;
        break;
      }
    }
    V rest;
    __builtin_memcpy(&rest, once, sizeof(rest));
    out.second = larger(tree_max(rest), tree_max(next[0]));
  }
  // Where every logit is -inf or NaN, other_about takes s for nothing, unless it is NaN.
  V s[4] = {}, a[4] = {}, q[4] = {};
  const V max = spread(out.max), least = spread(kLeastExponent);
  b.next = after;
  b.each([&](V x, int j) TF_INLINE {
    const V d = larger(x - max, least);
    const V e = exp_scores(d);
    s[j] = s[j] + e;
    if constexpr (sums) {
      a[j] = multiply_add(e, d, a[j]);
      q[j] = multiply_add(e, e, q[j]);
    }
  });
  const auto total = [](const V* v) { return tree_sum((v[0] + v[1]) + (v[2] + v[3])); };
  out.s = total(s);
  if constexpr (sums) {
    out.a = total(a);
    out.q = total(q);
  }
  return out;
}

template <bool second, bool sums, class T>
TF_INLINE inline OtherSums row_sums(const T* z, int64_t n, int64_t label, const T* after, V& finite) {
  OtherSums all = other_none();
  for (int64_t first = 0; first < n; first += kScoreBlock) {
    const int64_t here = n - first < kScoreBlock ? n - first : kScoreBlock;
    const bool last = first + here == n;
    RowBlock<T> block(z + first, here, label - first);
    const OtherSums found = block_sums<second, sums>(block, last ? after : z + first + kScoreBlock, finite);
    all = first == 0 ? found : other_join(all, found);
  }
  return all;
}

template <bool second, class T>
void score_row(const ScoreArgs& a, int64_t r) {
  const T* z = row_of<T>(a.logits, r);
  const int64_t n = a.logits.columns, label = a.labels[r];
  const bool valid = label >= 0 && label < n;
  V finite = {};
  const float own = valid ? to_math(z[label]) : -INFINITY;
  const OtherSums others = row_sums<second, true>(z, n, valid ? label : -1, following<T>(a.logits, r), finite);
  const RowScore s = score_of(others, own);
  const bool infinite = std::isnan(tree_sum(finite)) || (valid && !std::isfinite(own));
  if (infinite) lower_to(a.bad, r);
  if (!valid) lower_to(a.bad + 1, r);
  int64_t choice = label;
  if (!s.hopeless && !(valid && own > others.max)) {
    // A tie is decided by index, and the histogram wants to know which class it is.
    if (a.histogram != nullptr || (a.correct != nullptr && own == others.max))
      choice = find_logit(z, n, s.top);
    else
      choice = -1;
  }
  if (a.histogram != nullptr && !s.hopeless) count(a.histogram + choice);
  write_scores(a, r, s, valid, choice == label);
}

void score(const ScoreArgs& a) {
  with_logits(a.logits.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(a.logits.rows, a.threads, [&](int64_t first, int64_t last) {
      if (a.margin != nullptr) {
        for (int64_t r = first; r < last; ++r) score_row<true, T>(a, r);
      } else {
        for (int64_t r = first; r < last; ++r) score_row<false, T>(a, r);
      }
    });
  });
}

// ---- cross-entropy ----------------------------------------------------------------------------------------------------------------------

void cross_entropy(const CrossEntropyArgs& a) {
  with_logits(a.logits.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(a.logits.rows, a.threads, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const T* z = row_of<T>(a.logits, r);
        const int64_t n = a.logits.columns, label = a.labels[r];
        const bool valid = label >= 0 && label < n;
        V finite = {};
        const OtherSums others = row_sums<false, false>(z, n, valid ? label : -1, following<T>(a.logits, r), finite);
        const RowScore s = score_of(others, valid ? to_math(z[label]) : -INFINITY);
        a.loss[r] = valid && !s.hopeless ? s.loss : not_a_number();
        a.top[r] = s.top;
        a.log_total[r] = s.hopeless ? not_a_number() : s.log_total;
      }
    });
  });
}

template <class T>
void cross_entropy_gradient(const CrossEntropyArgs& a, int64_t r) {
  const T* z = row_of<T>(a.logits, r);
  T* out = static_cast<T*>(a.out) + r * a.out_stride;
  const int64_t n = a.logits.columns, label = a.labels[r];
  const float grad = a.grad[r];
  if (grad == 0.0f) {
    for (int64_t i = 0; i < n; ++i) out[i] = Round<T>::nearest(0.0f);
    return;
  }
  const V top = spread(a.top[r]), log_total = spread(a.log_total[r]), g = spread(grad);
  int64_t i = 0;
  for (; i + kW <= n; i += kW) store_lanes(out + i, g * exp_lanes((load_lanes(z + i) - top) - log_total));
  for (; i < n; ++i) out[i] = Round<T>::nearest(grad * exp_nonpositive((to_math(z[i]) - a.top[r]) - a.log_total[r]));
  if (label < 0 || label >= n) return;
  const float own = (to_math(z[label]) - a.top[r]) - a.log_total[r];
  out[label] = Round<T>::nearest(grad * ::expm1f(own));
}

void cross_entropy_backward(const CrossEntropyArgs& a) {
  with_logits(a.logits.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(a.logits.rows, a.threads, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) cross_entropy_gradient<T>(a, r);
    });
  });
}

void dynamics(const DynamicsArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) observe(a, r);
}

// ---- votes ------------------------------------------------------------------------------------------------------------------------------

template <class T>
void vote_row(const VoteArgs& a, int64_t r) {
  const T* z = row_of<T>(a.logits, r);
  const int64_t n = a.logits.columns;
  float best = -INFINITY, finite = 0.0f;
  if (n >= kW) {
    V top[4], seen[4] = {};
    for (V& t : top) t = spread(-INFINITY);
    const T* next = following<T>(a.logits, r);
    const auto visit = [&](int64_t at, int j) TF_INLINE {
      const V x = load_lanes(z + at);
      top[j] = larger(top[j], x);
      seen[j] = multiply_add(x, V{}, seen[j]);
      if (next != nullptr) __builtin_prefetch(next + at);
    };
    int64_t i = 0;
    for (; i + 4 * kW <= n; i += 4 * kW) {
      for (int j = 0; j < 4; ++j) visit(i + j * kW, j);
    }
    for (; i + kW <= n; i += kW) visit(i, 0);
    if (i < n) visit(n - kW, 1);  // some again: a maximum does not mind
    best = tree_max(larger(larger(top[0], top[1]), larger(top[2], top[3])));
    finite = tree_sum((seen[0] + seen[1]) + (seen[2] + seen[3]));
  } else {
    for (int64_t i = 0; i < n; ++i) {
      best = larger(best, to_math(z[i]));
      finite += to_math(z[i]) * 0.0f;
    }
  }
  bool bad = best == -INFINITY;
  if (finite != finite) {  // NaN, or an infinity, which is allowed
    for (int64_t i = 0; i < n; ++i) bad |= to_math(z[i]) != to_math(z[i]);
  }
  if (bad) return lower_to(a.bad, r);
  const int64_t choice = find_logit(z, n, best);
  count(a.histogram + choice);
  if (a.matrix != nullptr) count(a.matrix + a.targets[r] * n + choice);
}

void vote(const VoteArgs& a) {
  with_logits(a.logits.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(a.logits.rows, a.threads, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) vote_row<T>(a, r);
    });
  });
}

// ---- masks ------------------------------------------------------------------------------------------------------------------------------

template <class Label>
void mask_pieces(const MaskArgsOfClasses& a) {
  const Label* labels = static_cast<const Label*>(a.labels);
  const int64_t pieces = (a.rows + kMaskPiece - 1) / kMaskPiece;
  parallel_ranges(pieces, a.threads, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t from = p * kMaskPiece, to = from + kMaskPiece < a.rows ? from + kMaskPiece : a.rows;
      int64_t kept = 0;
      if (a.out != nullptr) {
        int64_t before = 0;
        for (int64_t o = 0; o < p; ++o) before += a.counts[o];
        int64_t* out = a.out + before;
        const int64_t last_kept = a.counts[p];  // what is written for a label left out is overwritten by the next, or not wanted
        for (int64_t i = from; i < to && kept < last_kept; ++i) {
          out[kept] = i;
          kept += a.keep[labels[i]];
        }
        continue;
      }
      int64_t bad = a.rows;
      for (int64_t i = from; i < to; ++i) {
        const int64_t label = int64_t{0} + labels[i];
        if (label < 0 || label >= a.classes) {
          bad = i;
          break;
        }
        kept += a.keep[label];
      }
      a.counts[p] = kept;
      if (bad < a.rows) lower_to(a.bad, bad);
    }
  });
}

void mask(const MaskArgsOfClasses& a) {
  switch (a.bytes) {
    case 1: return a.is_signed ? mask_pieces<int8_t>(a) : mask_pieces<uint8_t>(a);
    case 2: return mask_pieces<int16_t>(a);
    case 4: return mask_pieces<int32_t>(a);
    default: return mask_pieces<int64_t>(a);
  }
}

}  // namespace

extern const tenfold::ScoreKernels score_kernels;
const tenfold::ScoreKernels score_kernels = {score, cross_entropy, cross_entropy_backward, dynamics, vote, mask};

}  // namespace TF_NS
