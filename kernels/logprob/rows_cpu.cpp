// Rows of logits on the CPU: each is read once from memory, in blocks of 2048 entries that stay in the first-level cache while they are
// searched for their maximum and then summed about it. Bound by exp: about one vector of logits per 20 cycles with AVX-512, against 412 MB
// of float32 logits (2048 rows of 50,257) that take about as long to arrive.
//
// A row is always summed by one thread in one order, so that the number of threads changes nothing. Sums of a block are float32 in lanes,
// at most 32 terms each with AVX-512 (128 in the baseline), and are joined in double.
#include "rows_lanes.hpp"

#include "../core/dtype.hpp"
#include "../core/pages.hpp"
#include "../core/parallel.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kW = kLanes;
constexpr int64_t kStep = 4 * kW;  // four accumulators, so that additions do not wait for each other
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
T* row_of(const Rows& rows, int64_t r) {
  return static_cast<T*>(rows.data) + (r / rows.inner) * rows.outer_stride + (r % rows.inner) * rows.inner_stride;
}

struct Block {
  const float* x;  // 64 entries may be read together: padded with -inf
  int64_t first;
  int64_t count;   // entries of the vocabulary
  int64_t padded;  // a multiple of kStep
};

// x = cap(z) / temperature for 2048 entries.
template <class T>
void exponents(const T* z, int64_t n, const RowShape& shape, float* x) {
  const bool capped = shape.softcap != 0.0f;
  const V cap = spread(shape.softcap), inverse = spread(capped ? 1.0f / shape.softcap : 1.0f);
  const V scale = spread(shape.inverse_temperature);
  for (int64_t i = 0; i < n; i += kW) {
    V v;
    if (i + kW <= n) {
      v = load_lanes(z + i);
    } else {
      v = spread(kMinusInfinity);
      for (int64_t j = 0; i + j < n; ++j) v[j] = to_math(z[i + j]);
    }
    if (capped) v = cap * tanh_lanes(v * inverse);
    if (shape.inverse_temperature != 1.0f) v = v * scale;
    store_lanes(x + i, v);
  }
}

// One row, a block at a time; a float32 row that needs no change is read where it lies.
template <class T>
class RowReader {
 public:
  RowReader(const T* z, const RowShape& shape) : z_(z), shape_(shape) {
    plain_ = sizeof(T) == sizeof(float) && shape.softcap == 0.0f && shape.inverse_temperature == 1.0f;
  }
  Block block(int64_t first) {
    const int64_t n = smaller(kRowBlock, shape_.vocabulary - first);
    const int64_t padded = (n + kStep - 1) / kStep * kStep;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (plain_ && n == padded) return {z_ + first, first, n, padded};
    }
    return copy(first, n, padded);
  }
  // The block with one entry changed by `amount`, where the entry lies in it.
  Block changed(int64_t first, int64_t entry, float amount) {
    const int64_t n = smaller(kRowBlock, shape_.vocabulary - first);
    if (entry < first || entry >= first + n) return block(first);
    const Block b = copy(first, n, (n + kStep - 1) / kStep * kStep);
    room_[entry - first] += amount;
    return b;
  }
  float at(int64_t entry) {
    const int64_t first = entry / kRowBlock * kRowBlock;
    return block(first).x[entry - first];
  }
  int64_t size() const { return shape_.vocabulary; }

 private:
  Block copy(int64_t first, int64_t n, int64_t padded) {
    exponents(z_ + first, n, shape_, room_);
    for (int64_t i = n; i < padded; ++i) room_[i] = kMinusInfinity;
    return {room_, first, n, padded};
  }
  const T* z_;
  RowShape shape_;
  bool plain_;
  alignas(64) float room_[kRowBlock + kStep];
};

float block_max(const Block& b) {
  V top[4];
  for (V& t : top) t = spread(kNoLogit);
  for (int64_t i = 0; i < b.padded; i += kStep) {
    for (int j = 0; j < 4; ++j) top[j] = larger(top[j], load_lanes(b.x + i + j * kW));
  }
  return max_lanes(larger(larger(top[0], top[1]), larger(top[2], top[3])));
}

// Sums of exp(d), and with moments of exp(d) d and exp(d) d^2, d = x - max. Where exp(d) is zero so are the products, also for d = -inf.
template <bool moments>
RowSums block_sums(const Block& b, float max) {
  V s[4] = {}, a[4] = {}, q[4] = {};
  const V top = spread(max);
  for (int64_t i = 0; i < b.padded; i += kStep) {
    for (int j = 0; j < 4; ++j) {
      const V d = load_lanes(b.x + i + j * kW) - top;
      const V e = exp_lanes(d);
      s[j] = s[j] + e;
      if constexpr (moments) {
        const V finite = larger(spread(-128.0f), d);
        const V ed = e * finite;
        a[j] = a[j] + ed;
        q[j] = multiply_add(ed, finite, q[j]);
      }
    }
  }
  const auto total = [](const V* v) { return (sum_lanes(v[0]) + sum_lanes(v[1])) + (sum_lanes(v[2]) + sum_lanes(v[3])); };
  RowSums out = {max, total(s), 0.0, 0.0};
  if constexpr (moments) {
    out.a = total(a);
    out.b = total(q);
  }
  return out;
}

double plain_sum(const Block& b) {
  V s[4] = {};
  int64_t i = 0;
  for (; i + kStep <= b.count; i += kStep) {
    for (int j = 0; j < 4; ++j) s[j] = s[j] + load_lanes(b.x + i + j * kW);
  }
  double total = (sum_lanes(s[0]) + sum_lanes(s[1])) + (sum_lanes(s[2]) + sum_lanes(s[3]));
  for (; i < b.count; ++i) total += static_cast<double>(b.x[i]);
  return total;
}

// The lowest index of the largest entry, or of the first NaN.
template <class T>
int64_t find_argmax(RowReader<T>& row, int64_t block, const RowSums& sums) {
  if (!std::isnan(sums.s)) {
    const Block b = row.block(block);
    for (int64_t i = 0; i < b.count; ++i) {
      if (b.x[i] == sums.max) return block + i;
    }
    return 0;  // nothing above -inf
  }
  int64_t best = 0;
  float top = kMinusInfinity;
  for (int64_t first = 0; first < row.size(); first += kRowBlock) {
    const Block b = row.block(first);
    for (int64_t i = 0; i < b.count; ++i) {
      if (std::isnan(b.x[i])) return first + i;
      if (b.x[i] > top) {
        top = b.x[i];
        best = first + i;
      }
    }
  }
  return best;
}

template <class T>
void forward_row(const RowForwardArgs& a, int64_t r) {
  const bool stats = a.argmax != nullptr;
  const int64_t target = a.targets[r];
  a.logp[r] = a.lse[r] = 0.0;
  if (stats) {
    a.argmax[r] = 0;
    a.mean_logit[r] = a.mean_logp[r] = a.mean_logp2[r] = 0.0;
  }
  if (target < 0) return;
  RowReader<T> row(row_of<const T>(a.logits, r), a.shape);
  RowSums sums = row_sums_empty();
  int64_t best = 0;
  double logit_sum = 0.0;
  for (int64_t first = 0; first < row.size(); first += kRowBlock) {
    const Block b = row.block(first);
    const float max = block_max(b);
    if (max > sums.max) best = first;
    sums = row_sums_join(sums, stats ? block_sums<true>(b, max) : block_sums<false>(b, max));
    if (stats) logit_sum += plain_sum(b);
  }
  a.lse[r] = row_lse(sums);
  a.logp[r] = static_cast<double>(row.at(target)) - a.lse[r];
  if (!stats) return;
  const double log_s = std::log(sums.s), first = sums.a / sums.s, second = sums.b / sums.s;
  a.argmax[r] = find_argmax(row, best, sums);
  a.mean_logit[r] = logit_sum / static_cast<double>(row.size());
  a.mean_logp[r] = first - log_s;
  a.mean_logp2[r] = second - 2.0 * log_s * first + log_s * log_s;
}

template <class T>
void softmax_row(const RowSoftmaxArgs& a, int64_t r) {
  T* out = row_of<T>(a.out, r);
  const int64_t target = a.targets[r], size = a.shape.vocabulary;
  if (target < 0) {
    for (int64_t i = 0; i < size; ++i) out[i] = Round<T>::nearest(0.0f);
    return;
  }
  const TwoFloats lse = two_floats(a.lse[r]);
  const V high = spread(lse.high), low = spread(lse.low), coef = spread(static_cast<float>(a.coef[r]));
  const bool capped = a.shape.softcap != 0.0f;
  const float whole = a.shape.softcap * a.shape.inverse_temperature;
  const V scale = spread(a.shape.inverse_temperature), inverse = spread(capped ? 1.0f / whole : 0.0f);
  RowReader<T> row(row_of<const T>(a.logits, r), a.shape);
  alignas(64) float values[kRowBlock];
  for (int64_t first = 0; first < size; first += kRowBlock) {
    const Block b = row.block(first);
    for (int64_t i = 0; i < b.padded; i += kW) {
      const V x = load_lanes(b.x + i);
      store_lanes(values + i, coef * exp_lanes((x - high) - low));
    }
    if (target >= first && target < first + b.count) values[target - first] = static_cast<float>(a.at_target[r]);
    if (capped || a.shape.inverse_temperature != 1.0f) {
      for (int64_t i = 0; i < b.padded; i += kW) {
        const V t = load_lanes(b.x + i) * inverse;
        store_lanes(values + i, load_lanes(values + i) * (scale * (1.0f - t * t)));
      }
      for (int64_t i = 0; capped && i < b.count; ++i) {
        if (std::isinf(b.x[i])) values[i] = 0.0f;
      }
    }
    int64_t i = 0;
    for (; i + kW <= b.count; i += kW) store_lanes(out + first + i, load_lanes(values + i));
    for (; i < b.count; ++i) out[first + i] = Round<T>::nearest(values[i]);
  }
}

// Integer weights exp(x - max) 2^30 of a block into w; their sum is exact, and so the same in any order. NaN if there is one.
struct Weights {
  int64_t sum;
  bool nan;
};
template <bool keep>
Weights block_weights(const Block& b, float max, int32_t* w) {
  const V top = spread(max);
  V seen = {};
  L even = {}, odd = {};
  for (int64_t i = 0; i < b.padded; i += kW) {
    const V e = exp_exact(load_lanes(b.x + i) - top);
    seen = seen + e;
    const I weight = __builtin_convertvector(e * kWeightOne + 0.5f, I);
    if constexpr (keep) __builtin_memcpy(w + i, &weight, sizeof(weight));
    const L pairs = reinterpret_cast<L>(weight);
    even = even + (pairs & 0xFFFFFFFFu);
    odd = odd + (pairs >> 32);
  }
  uint64_t total = 0;
  for (int64_t j = 0; j < kW / 2; ++j) total += even[j] + odd[j];
  return {static_cast<int64_t>(total), std::isnan(sum_lanes(seen))};
}

// What one thread needs for the blocks of a row.
struct Draw {
  std::vector<float> tops;
  std::vector<int64_t> counts;
  explicit Draw(int64_t blocks) : tops(static_cast<size_t>(blocks)), counts(static_cast<size_t>(blocks)) {}
};

template <class T>
void sample_row(const RowSampleArgs& a, int64_t r, Draw& draw) {
  const double u = a.uniforms[r];
  a.tokens[r] = -1;
  a.logp[r] = a.lse[r] = u >= 0.0 ? kNan : 0.0;
  if (u < 0.0) return;
  RowReader<T> row(row_of<const T>(a.logits, r), a.shape);
  const size_t blocks = draw.tops.size();
  float top = kNoLogit;
  for (size_t k = 0; k < blocks; ++k) {
    const Block b = row.block(static_cast<int64_t>(k) * kRowBlock);
    draw.tops[k] = block_max(b);
    const Weights found = block_weights<false>(b, draw.tops[k], nullptr);
    if (found.nan) return;  // an infinity is one as well: inf - inf
    draw.counts[k] = found.sum;
    top = larger(top, draw.tops[k]);
  }
  const auto scale = [&](size_t k) { return static_cast<double>(exp_exact(draw.tops[k] - top)); };
  double total = 0.0;
  for (size_t k = 0; k < blocks; ++k) total += static_cast<double>(draw.counts[k]) * scale(k);
  if (!(total > 0.0)) return;
  const double threshold = u * total;
  double before = 0.0, end = 0.0;
  size_t chosen = 0;
  for (; chosen < blocks; ++chosen) {
    before = end;
    end = before + static_cast<double>(draw.counts[chosen]) * scale(chosen);
    if (end > threshold || chosen + 1 == blocks) break;
  }
  alignas(64) int32_t w[kRowBlock + kStep];
  const Block b = row.block(static_cast<int64_t>(chosen) * kRowBlock);
  block_weights<true>(b, draw.tops[chosen], w);
  const double here = scale(chosen), left = threshold - before;
  int64_t token = 0, sum = 0;
  for (int64_t i = 0; i < b.count; ++i) {
    if (w[i] == 0) continue;
    token = i;
    sum += w[i];
    if (static_cast<double>(sum) * here > left) break;
  }
  a.tokens[r] = b.first + token;
  a.lse[r] = static_cast<double>(top) + std::log(total / static_cast<double>(kWeightOne));
  a.logp[r] = static_cast<double>(b.x[token]) - a.lse[r];
}

template <class T>
void ceu_row(const RowCeuArgs& a, int64_t r) {
  const int64_t target = a.targets[r];
  a.loss[r] = a.rest[r] = a.logp[r] = 0.0;
  if (target < 0) return;
  RowReader<T> row(row_of<const T>(a.logits, r), a.shape);
  RowSums others = row_sums_empty();
  for (int64_t first = 0; first < row.size(); first += kRowBlock) {
    const Block b = row.changed(first, target, kMinusInfinity);
    others = row_sums_join(others, block_sums<true>(b, block_max(b)));
  }
  const double x = static_cast<double>(row.at(target)), rest = row_lse(others);
  const double high = x > rest ? x : rest;
  const double lse = high + std::log1p(std::exp((x > rest ? rest : x) - high));
  a.rest[r] = rest;
  a.logp[r] = x - lse;
  a.loss[r] = (lse - static_cast<double>(others.max)) - others.a / others.s;
}

// Rows as wide as the vocabulary that are about to be written. Written over logits, they are the caller's.
template <class T>
void ask_for_rows(const Rows& out, const Rows& logits, int64_t vocabulary) {
  if (out.rows == 0 || out.data == logits.data) return;
  const T* const begin = row_of<const T>(out, 0);
  ask_for_large_pages(out.data, (row_of<const T>(out, out.rows - 1) - begin + vocabulary) * static_cast<int64_t>(sizeof(T)));
}

template <class Work>
void for_rows(int64_t rows, int threads, const Work& work) {
  parallel_ranges(rows, threads, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) work(r);
  });
}

void forward(const RowForwardArgs& a) {
  switch (a.shape.dtype) {
    case kBFloat16: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { forward_row<bfloat16>(a, r); });
    case kFloat16: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { forward_row<float16>(a, r); });
    default: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { forward_row<float>(a, r); });
  }
}

void softmax(const RowSoftmaxArgs& a) {
  a.shape.dtype == kFloat32 ? ask_for_rows<float>(a.out, a.logits, a.shape.vocabulary)
                            : ask_for_rows<float16>(a.out, a.logits, a.shape.vocabulary);
  switch (a.shape.dtype) {
    case kBFloat16: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { softmax_row<bfloat16>(a, r); });
    case kFloat16: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { softmax_row<float16>(a, r); });
    default: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { softmax_row<float>(a, r); });
  }
}

template <class T>
void sample_rows(const RowSampleArgs& a) {
  parallel_ranges(a.logits.rows, a.threads, [&](int64_t first, int64_t last) {
    Draw draw((a.shape.vocabulary + kRowBlock - 1) / kRowBlock);
    for (int64_t r = first; r < last; ++r) sample_row<T>(a, r, draw);
  });
}

void sample(const RowSampleArgs& a) {
  switch (a.shape.dtype) {
    case kBFloat16: return sample_rows<bfloat16>(a);
    case kFloat16: return sample_rows<float16>(a);
    default: return sample_rows<float>(a);
  }
}

void ceu(const RowCeuArgs& a) {
  switch (a.shape.dtype) {
    case kBFloat16: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { ceu_row<bfloat16>(a, r); });
    case kFloat16: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { ceu_row<float16>(a, r); });
    default: return for_rows(a.logits.rows, a.threads, [&](int64_t r) { ceu_row<float>(a, r); });
  }
}

// ---- two rows at a time ---------------------------------------------------------------------------------------------------------------

constexpr RowShape plain_shape(int64_t vocabulary) { return {vocabulary, kFloat32, 0.0f, 1.0f}; }

// Sum over a block of exp(t - max) gap, gap = t - o, or -o when `cross`; nothing where the exponential is zero.
template <bool cross>
double block_gap(const Block& t, const Block& o, float max) {
  V s[4] = {};
  const V top = spread(max);
  for (int64_t i = 0; i < t.padded; i += kStep) {
    for (int j = 0; j < 4; ++j) {
      const V x = load_lanes(t.x + i + j * kW), y = load_lanes(o.x + i + j * kW);
      const V e = exp_lanes(x - top);
      const V product = e * (cross ? -y : x - y);
      s[j] = s[j] + choose(reinterpret_cast<I>(e == 0.0f), V{}, product);
    }
  }
  return (sum_lanes(s[0]) + sum_lanes(s[1])) + (sum_lanes(s[2]) + sum_lanes(s[3]));
}

void divergence_row(const RowDivergenceArgs& a, int64_t r) {
  const int64_t target = a.targets[r];
  a.loss[r] = a.lse[r] = a.ref_lse[r] = 0.0;
  if (target < 0) return;
  RowReader<float> row(row_of<const float>(a.logits, r), plain_shape(a.vocabulary));
  RowReader<float> ref(row_of<const float>(a.ref_logits, r), plain_shape(a.vocabulary));
  RowSums p = row_sums_empty(), q = row_sums_empty();
  double gap = 0.0;  // about the maximum of the distribution that weighs
  for (int64_t first = 0; first < a.vocabulary; first += kRowBlock) {
    const Block x = row.block(first);
    const Block y = a.beta != 0.0f ? ref.changed(first, target, -a.beta) : ref.block(first);
    const float x_max = block_max(x), y_max = block_max(y);
    const bool reverse = a.kind == kReverseKl;
    const float before = reverse ? p.max : q.max, max = reverse ? x_max : y_max;
    const double added = reverse                   ? block_gap<false>(x, y, x_max)
                         : a.kind == kCrossEntropy ? block_gap<true>(y, x, y_max)
                                                   : block_gap<false>(y, x, y_max);
    p = row_sums_join(p, block_sums<false>(x, x_max));
    q = row_sums_join(q, block_sums<false>(y, y_max));
    const double top = static_cast<double>(reverse ? p.max : q.max);
    if (gap != 0.0) gap *= std::exp(static_cast<double>(before) - top);
    if (added != 0.0) gap += added * std::exp(static_cast<double>(max) - top);
  }
  const double lse = row_lse(p), ref_lse = row_lse(q);
  const double mean = gap / (a.kind == kReverseKl ? p.s : q.s);
  a.lse[r] = lse;
  a.ref_lse[r] = ref_lse;
  a.loss[r] = a.kind == kForwardKl ? mean + (lse - ref_lse) : a.kind == kReverseKl ? mean + (ref_lse - lse) : mean + lse;
}

void divergence_backward_row(const RowDivergenceArgs& a, int64_t r) {
  float* out = row_of<float>(a.out, r);
  const int64_t target = a.targets[r];
  if (target < 0) {
    for (int64_t i = 0; i < a.vocabulary; ++i) out[i] = 0.0f;
    return;
  }
  RowReader<float> row(row_of<const float>(a.logits, r), plain_shape(a.vocabulary));
  RowReader<float> ref(row_of<const float>(a.ref_logits, r), plain_shape(a.vocabulary));
  const TwoFloats lse = two_floats(a.lse[r]), ref_lse = two_floats(a.ref_lse[r]);
  const V grad = spread(static_cast<float>(a.grad[r])), loss = spread(static_cast<float>(a.loss[r]));
  alignas(64) float values[kRowBlock];
  for (int64_t first = 0; first < a.vocabulary; first += kRowBlock) {
    const Block x = row.block(first);
    const Block y = a.beta != 0.0f ? ref.changed(first, target, -a.beta) : ref.block(first);
    for (int64_t i = 0; i < x.padded; i += kW) {
      const V log_p = (load_lanes(x.x + i) - lse.high) - lse.low;
      const V log_q = (load_lanes(y.x + i) - ref_lse.high) - ref_lse.low;
      const V p = exp_lanes(log_p);
      V slope;
      if (a.kind == kReverseKl) {
        slope = choose(reinterpret_cast<I>(p == 0.0f), V{}, p * ((log_p - log_q) - loss));
      } else {
        slope = p - exp_lanes(log_q);
      }
      store_lanes(values + i, grad * slope);
    }
    for (int64_t i = 0; i < x.count; ++i) out[first + i] = values[i];
  }
}

void divergence(const RowDivergenceArgs& a) {
  for_rows(a.logits.rows, a.threads, [&](int64_t r) { divergence_row(a, r); });
}

void divergence_backward(const RowDivergenceArgs& a) {
  ask_for_rows<float>(a.out, a.logits, a.vocabulary);
  for_rows(a.logits.rows, a.threads, [&](int64_t r) { divergence_backward_row(a, r); });
}

}  // namespace

extern const tenfold::RowKernels row_kernels;
const tenfold::RowKernels row_kernels = {forward, softmax, sample, ceu, divergence, divergence_backward};

}  // namespace TF_NS
