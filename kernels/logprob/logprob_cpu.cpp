// Log-probabilities from hidden states on the CPU, with no logits in memory. Compiled once per instruction set.
//
// The matrix product is turned so that lanes hold rows (option positions) and registers hold vocabulary columns: one weight is broadcast
// against a vector of hidden values, so the log-sum-exp over the vocabulary is lane by lane, and every dot product has the same order of
// summation whatever the threads or the number of rows. There are few rows (one per option token), so the weight is the traffic: it is read
// once from memory, in blocks that stay in the second-level cache while all groups of rows pass over them.
#include "logprob.hpp"

#include "../core/dtype.hpp"
#include "../core/parallel.hpp"
#include "../core/simd.hpp"

#include <vector>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kLaneCount = kLanes;
constexpr int kColumns = kLanes == 16 ? 12 : 6;  // vocabulary columns in registers: with two vectors of rows, 24 accumulators or 12
constexpr int64_t kGroup = 2 * kLaneCount;       // rows in one group
constexpr int64_t kRun = 128;                    // products summed in one go
constexpr int64_t kRowTile = 256;                // rows packed at a time: bounds the packed copy to kRowTile * width floats
constexpr int64_t kBlockBytes = 256 * 1024;      // weight block: leaves room in a 512 KiB cache for a group of rows

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(TF_ISA_AVX512) || defined(TF_ISA_AVX2) || defined(TF_ISA_NEON)
using Lanes = F;
Lanes load_lanes(const float* p) { return load(p); }
void store_lanes(float* p, Lanes a) { store(p, a); }
Lanes broadcast(float x) { return splat<F>(x); }
Lanes add_product(Lanes a, Lanes b, Lanes c) { return fma(a, b, c); }
#else
// simd_generic.hpp keeps its lanes in arrays, which the compiler leaves in memory; a vector type it keeps in registers.
typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
Lanes load_lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
void store_lanes(float* p, Lanes a) { *reinterpret_cast<Lanes*>(p) = a; }
Lanes broadcast(float x) { return x - Lanes{}; }
Lanes add_product(Lanes a, Lanes b, Lanes c) { return a * b + c; }
#endif

// out[i][lane] = sum_h w[i][h] x[h][lane]. Runs of kRun products are summed in registers and the runs added up in `out`: the rounding error
// of a float32 sum grows with its length (a two-level sum, Higham 1993), and the difference of two losses is all a zeroth-order step has.
template <int columns, int vectors>
void dot_tile(const float* x, const float* w, int64_t stride, int64_t width, float* out) {
  for (int i = 0; i < columns * vectors * kLaneCount; ++i) out[i] = 0.0f;
  for (int64_t begin = 0; begin < width; begin += kRun) {
    const int64_t end = smaller(begin + kRun, width);
    Lanes acc[columns][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < columns; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) acc[i][j] = broadcast(0.0f);
    }
    for (int64_t h = begin; h < end; ++h) {
      Lanes lanes[vectors];
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) lanes[j] = load_lanes(x + (h * vectors + j) * kLaneCount);
#pragma GCC unroll 16
      for (int i = 0; i < columns; ++i) {
        const Lanes factor = broadcast(w[i * stride + h]);
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) acc[i][j] = add_product(factor, lanes[j], acc[i][j]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < columns; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) {
        float* to = out + (i * vectors + j) * kLaneCount;
        store_lanes(to, load_lanes(to) + acc[i][j]);
      }
    }
  }
}

// What one segment of the vocabulary has seen of one group of rows. The sum is double so that a long segment loses nothing.
struct GroupState {
  alignas(64) float max[kGroup];
  alignas(64) double sum[kGroup];
};

void clear(GroupState& s) {
  for (int64_t l = 0; l < kGroup; ++l) {
    s.max[l] = kNoLogit;
    s.sum[l] = 0.0;
  }
}

template <int columns, int vectors>
void absorb(float* logits, const float* bias, GroupState& s) {
  constexpr int64_t lanes = vectors * kLaneCount;
  alignas(64) float max[lanes], added[lanes], kept[lanes];
  for (int64_t l = 0; l < lanes; ++l) max[l] = s.max[l];
  for (int i = 0; i < columns; ++i) {
    const float b = bias != nullptr ? bias[i] : 0.0f;
    for (int64_t l = 0; l < lanes; ++l) {
      const float logit = logits[i * lanes + l] + b;
      logits[i * lanes + l] = logit;
      max[l] = larger(max[l], logit);
    }
  }
  for (int64_t l = 0; l < lanes; ++l) {
    kept[l] = exp_nonpositive(s.max[l] - max[l]);
    added[l] = 0.0f;
  }
  for (int i = 0; i < columns; ++i) {
    for (int64_t l = 0; l < lanes; ++l) added[l] += exp_nonpositive(logits[i * lanes + l] - max[l]);
  }
  for (int64_t l = 0; l < lanes; ++l) {
    s.max[l] = max[l];
    s.sum[l] = s.sum[l] * static_cast<double>(kept[l]) + static_cast<double>(added[l]);
  }
}

// A group of rows: packed hidden values [width][vectors * lanes], padded with zero rows.
struct Group {
  const float* x;
  int64_t first;
  int64_t rows;
  bool wide;  // two vectors, or one for a last group that fits
};

template <int columns, int vectors>
void pass_columns(const LogprobArgs& a, const Group& g, const float* w, int64_t stride, int64_t column, GroupState& s) {
  constexpr int64_t lanes = vectors * kLaneCount;
  alignas(64) float logits[columns * lanes];
  dot_tile<columns, vectors>(g.x, w, stride, a.width, logits);
  absorb<columns, vectors>(logits, a.bias != nullptr ? a.bias + column : nullptr, s);
  for (int64_t l = 0; l < g.rows; ++l) {
    const int64_t i = a.targets[g.first + l] - column;
    if (i >= 0 && i < columns) a.target_logit[g.first + l] = logits[i * lanes + l];
  }
}

template <int vectors>
void pass_block(const LogprobArgs& a, const Group& g, const float* w, int64_t stride, int64_t first, int64_t count, GroupState& s) {
  int64_t v = 0;
  for (; v + kColumns <= count; v += kColumns) pass_columns<kColumns, vectors>(a, g, w + v * stride, stride, first + v, s);
  for (; v < count; ++v) pass_columns<1, vectors>(a, g, w + v * stride, stride, first + v, s);
}

template <class T>
void widen(const T* from, int64_t n, float* to) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (sizeof(T) == sizeof(float16) && !__is_same(T, bfloat16)) {
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
#endif
  for (; i < n; ++i) to[i] = to_math(from[i]);
}

// The weight rows [first, first + count) as float32: in place when they are, else widened into `room`.
template <class T>
const float* float_block(const LogprobArgs& a, int64_t first, int64_t count, float* room, int64_t& stride) {
  const T* w = static_cast<const T*>(a.weight) + first * a.weight_stride;
  if constexpr (sizeof(T) == sizeof(float)) {
    stride = a.weight_stride;
    return w;
  } else {
    stride = a.width;
    for (int64_t v = 0; v < count; ++v) widen(w + v * a.weight_stride, a.width, room + v * a.width);
    return room;
  }
}

std::vector<Group> pack_rows(const LogprobArgs& a, int64_t first, int64_t count, std::vector<float>& packed) {
  packed.assign(static_cast<size_t>((count + kGroup - 1) / kGroup * kGroup * a.width), 0.0f);
  std::vector<Group> groups;
  float* x = packed.data();
  for (int64_t r = 0; r < count; r += kGroup) {
    const int64_t rows = smaller(kGroup, count - r);
    const bool wide = rows > kLaneCount;
    const int64_t lanes = wide ? kGroup : kLaneCount;
    for (int64_t l = 0; l < rows; ++l) {
      const float* row = a.rows + (first + r + l) * a.width;
      for (int64_t h = 0; h < a.width; ++h) x[h * lanes + l] = row[h];
    }
    groups.push_back({x, first + r, rows, wide});
    x += lanes * a.width;
  }
  return groups;
}

template <class T>
void segment(const LogprobArgs& a, const std::vector<Group>& groups, int64_t s) {
  const int64_t tiles = a.vocabulary / kColumns;
  const int64_t begin = tiles * s / a.segments * kColumns;
  const int64_t end = s + 1 == a.segments ? a.vocabulary : tiles * (s + 1) / a.segments * kColumns;
  const int64_t fitting = kBlockBytes / (4 * (a.width + 1)) / kColumns * kColumns;
  const int64_t block = fitting > kColumns ? fitting : kColumns;
  std::vector<float> room(sizeof(T) == sizeof(float) ? 0 : static_cast<size_t>(block * a.width));
  std::vector<GroupState> states(groups.size());
  for (GroupState& state : states) clear(state);
  for (int64_t v = begin; v < end; v += block) {
    const int64_t count = smaller(block, end - v);
    int64_t stride = 0;
    const float* w = float_block<T>(a, v, count, room.data(), stride);
    for (size_t g = 0; g < groups.size(); ++g) {
      if (groups[g].wide) {
        pass_block<2>(a, groups[g], w, stride, v, count, states[g]);
      } else {
        pass_block<1>(a, groups[g], w, stride, v, count, states[g]);
      }
    }
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    const int64_t at = s * a.n_rows + groups[g].first;
    for (int64_t l = 0; l < groups[g].rows; ++l) {
      a.max[at + l] = states[g].max[l];
      a.sum[at + l] = static_cast<float>(states[g].sum[l]);
    }
  }
}

template <class T>
void all_segments(const LogprobArgs& a) {
  std::vector<float> packed;
  for (int64_t r = 0; r < a.n_rows; r += kRowTile) {
    const std::vector<Group> groups = pack_rows(a, r, smaller(kRowTile, a.n_rows - r), packed);
    parallel_ranges(a.segments, a.threads, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) segment<T>(a, groups, s);
    });
  }
}

void token_logprobs(const LogprobArgs& a) {
  switch (a.weight_dtype) {
    case kBFloat16: return all_segments<bfloat16>(a);
    case kFloat16: return all_segments<float16>(a);
    default: return all_segments<float>(a);
  }
}

}  // namespace

extern const tenfold::LogprobKernels logprob_kernels;
const tenfold::LogprobKernels logprob_kernels = {token_logprobs};

}  // namespace TF_NS
