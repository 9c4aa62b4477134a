// A row in lanes: blocks of logits whose label and ragged end are taken out into registers of their own, so that the rest is read where it
// lies, without a copy and without a test per element.
#pragma once

#include "scores.hpp"

#include "../logprob/rows_lanes.hpp"

#define TF_INLINE __attribute__((always_inline))

namespace TF_NS {

constexpr int64_t kW = kLanes;

// Sum and maximum over lanes, as a tree.
inline float tree_sum(V x) {
#if defined(TF_ISA_AVX512)
  return _mm512_reduce_add_ps(x);
#else
  float v[kLanes];
  __builtin_memcpy(v, &x, sizeof(v));
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t j = 0; j < half; ++j) v[j] += v[j + half];
  }
  return v[0];
#endif
}
inline float tree_max(V x) {
#if defined(TF_ISA_AVX512)
  return _mm512_reduce_max_ps(x);
#else
  float v[kLanes];
  __builtin_memcpy(v, &x, sizeof(v));
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t j = 0; j < half; ++j) v[j] = larger(v[j], v[j + half]);
  }
  return v[0];
#endif
}
TF_HD V lower(V a, V b) {
#if defined(TF_ISA_AVX512)
  return _mm512_min_ps(b, a);
#elif defined(TF_ISA_AVX2)
  return _mm256_min_ps(b, a);
#else
  return choose(less(b, a), b, a);
#endif
}

// exp(x) for kLeastExponent <= x <= 0 within 2.2e-7 of its value, exactly 1 at 0. x / ln 2 is rounded to an integer k by adding
// 1.5 * 2^23, r = x / ln 2 - k comes from one fused operation, 2^r from a minimax polynomial 1 + r q(r), and k goes to the exponent.
// Seven instructions less than exp_lanes, whose range this is not.
TF_HD V exp_scores(V x) {
  const V t = multiply_add(x, spread(1.44269504f), spread(12582912.0f));
  const V k = t - 12582912.0f;
  const V r = multiply_add(x, spread(1.44269504f), -k);
  V q = multiply_add(spread(1.3264727e-3f), r, spread(9.671513e-3f));
  q = multiply_add(q, r, spread(5.5507336e-2f));
  q = multiply_add(q, r, spread(2.4022242e-1f));
  q = multiply_add(q, r, spread(6.93147e-1f));
  const V p = multiply_add(q, r, spread(1.0f));
#if defined(TF_ISA_AVX512)
  return _mm512_scalef_ps(p, k);
#else
  return reinterpret_cast<V>(reinterpret_cast<B>(p) + (reinterpret_cast<B>(t) << 23));
#endif
}

// Whether any lane of a comparison is set.
inline bool any_lane(I hit) {
#if defined(TF_ISA_AVX512)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(hit)) != 0;
#elif defined(TF_ISA_AVX2)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(hit)) != 0;
#else
  int32_t any = 0;
  for (uint32_t j = 0; j < kLanes; ++j) any |= hit[j];
  return any != 0;
#endif
}

// Up to kScoreBlock logits. `hole` is the register that holds the label (or -1); its other logits, and those behind the last whole
// register, stand in `special`, filled up with kNoLogit.
template <class T>
struct RowBlock {
  const T* z;
  const T* next;  // what will be read after this block, brought into the cache in the meantime; or null
  int64_t whole;  // registers
  int64_t hole;
  int64_t specials;  // registers of `special` in use
  alignas(64) float special[2 * kLanes];

  RowBlock(const T* row, int64_t n, int64_t label) : z(row), next(nullptr), whole(n / kW), hole(-1), specials(0) {
    if (whole * kW < n) {
      if (n >= kW) {
        put(n - kW, whole * kW, label);
      } else {
        put_few(n, label);
      }
    }
    if (label >= 0 && label < whole * kW) {
      hole = label / kW;
      put(hole * kW, 0, label);
    }
  }

  // visit(register of logits, which accumulator to use: 0 to 3)
  template <class Visit>
  TF_INLINE void each(const Visit& visit) const {
    const int64_t first = hole < 0 ? whole : hole;
    run(0, first, visit);
    if (hole >= 0) run(hole + 1, whole, visit);
    for (int64_t k = 0; k < specials; ++k) visit(load_lanes(special + k * kW), 0);
  }

 private:
  // The logits from `from` on, but those before `begin` and the label.
  void put(int64_t from, int64_t begin, int64_t label) {
    I place;
    for (uint32_t j = 0; j < kLanes; ++j) place[j] = static_cast<int32_t>(from + j);
    const I out = (place < static_cast<int32_t>(begin)) | (place == static_cast<int32_t>(label < 0 ? -1 : label));
    store_lanes(special + specials * kW, choose(out, spread(kNoLogit), load_lanes(z + from)));
    ++specials;
  }
  void put_few(int64_t n, int64_t label) {
    for (int64_t j = 0; j < kW; ++j) special[j] = j < n && j != label ? to_math(z[j]) : kNoLogit;
    ++specials;
  }
  template <class Visit>
  TF_INLINE void run(int64_t i, int64_t end, const Visit& visit) const {
    for (; i + 4 <= end; i += 4) {
      for (int j = 0; j < 4; ++j) visit(load_lanes(z + (i + j) * kW), j);
      if (next != nullptr) {
        for (int64_t byte = 0; byte < 4 * kW * int64_t{sizeof(T)}; byte += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(next + i * kW) + byte);
        }
      }
    }
    for (; i < end; ++i) visit(load_lanes(z + i * kW), 0);
  }
};

// The lowest index below n whose logit is `value`; n where there is none.
template <class T>
int64_t find_logit(const T* z, int64_t n, float value) {
  int64_t i = 0;
  const V wanted = spread(value);
  for (; i + kW <= n; i += kW) {
    if (any_lane(reinterpret_cast<I>(load_lanes(z + i) == wanted))) break;
  }
  for (; i < n; ++i) {
    if (to_math(z[i]) == value) return i;
  }
  return n;
}

}  // namespace TF_NS
