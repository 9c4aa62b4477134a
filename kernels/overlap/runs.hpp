// Runs of equal labels: where a label differs from the one before it, 64 at a time.
//
// Label volumes are long runs of few labels. Comparing a row with itself, one element behind, gives a bit for each place where a run
// begins; everything else is done once per run.
#pragma once

#include <cstring>

#include "../core/portable.hpp"

#if defined(TF_ISA_AVX512) || defined(TF_ISA_AVX2)
#include <immintrin.h>
#endif

namespace TF_NS {

inline int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }

#if defined(TF_ISA_AVX512)

inline uint64_t differs(const uint8_t* p, const uint8_t* q) {
  return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(p), _mm512_loadu_si512(q));
}
inline uint64_t differs(const uint16_t* p, const uint16_t* q) {
  uint64_t out = 0;
  for (int k = 0; k < 2; ++k) {
    const uint64_t part = _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(p + 32 * k), _mm512_loadu_si512(q + 32 * k));
    out |= part << (32 * k);
  }
  return out;
}
inline uint64_t differs(const uint32_t* p, const uint32_t* q) {
  uint64_t out = 0;
  for (int k = 0; k < 4; ++k) {
    const uint64_t part = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(p + 16 * k), _mm512_loadu_si512(q + 16 * k));
    out |= part << (16 * k);
  }
  return out;
}
inline uint64_t differs(const uint64_t* p, const uint64_t* q) {
  uint64_t out = 0;
  for (int k = 0; k < 8; ++k) {
    const uint64_t part = _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(p + 8 * k), _mm512_loadu_si512(q + 8 * k));
    out |= part << (8 * k);
  }
  return out;
}

#elif defined(TF_ISA_AVX2)

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline uint64_t differs(const uint8_t* p, const uint8_t* q) {
  const uint32_t low = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(load256(p), load256(q))));
  const uint32_t high = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(load256(p + 32), load256(q + 32))));
  return ~(static_cast<uint64_t>(high) << 32 | low);
}
inline uint64_t differs(const uint16_t* p, const uint16_t* q) {
  uint64_t same = 0;
  for (int k = 0; k < 2; ++k) {
    const __m256i low = _mm256_cmpeq_epi16(load256(p + 32 * k), load256(q + 32 * k));
    const __m256i high = _mm256_cmpeq_epi16(load256(p + 32 * k + 16), load256(q + 32 * k + 16));
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
    same |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(bytes))) << (32 * k);
  }
  return ~same;
}
inline uint64_t differs(const uint32_t* p, const uint32_t* q) {
  uint64_t same = 0;
  for (int k = 0; k < 8; ++k) {
    const __m256i lanes = _mm256_cmpeq_epi32(load256(p + 8 * k), load256(q + 8 * k));
    same |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)))) << (8 * k);
  }
  return ~same;
}
inline uint64_t differs(const uint64_t* p, const uint64_t* q) {
  uint64_t same = 0;
  for (int k = 0; k < 16; ++k) {
    const __m256i lanes = _mm256_cmpeq_epi64(load256(p + 4 * k), load256(q + 4 * k));
    same |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(lanes)))) << (4 * k);
  }
  return ~same;
}

#else

// Any processor: words of 8 bytes that are equal are passed over; in others a bit per element is made.
template <class T>
inline uint64_t differs(const T* p, const T* q) {
  constexpr int kEach = 8 / sizeof(T);
  uint64_t out = 0;
  for (int k = 0; k < 64; k += kEach) {
    uint64_t x, y;
    std::memcpy(&x, p + k, 8);
    std::memcpy(&y, q + k, 8);
    if (x == y) continue;
    for (int e = 0; e < kEach; ++e) out |= static_cast<uint64_t>(p[k + e] != q[k + e]) << (k + e);
  }
  return out;
}

#endif

// Bit i: p[i] != p[i - 1], for i in 0 .. 63. p[-1] is read.
template <class T>
inline uint64_t changes(const T* p) {
  return differs(p, p - 1);
}

// run(first, last) for each maximal run of equal pairs (a[i], b[i]) of n >= 1 elements, in order.
template <class A, class B, class Run>
inline void pair_runs(const A* a, const B* b, int64_t n, const Run& run) {
  int64_t begin = 0, i = 1;
  const auto take = [&](uint64_t mask, int64_t base) {
    for (; mask != 0; mask &= mask - 1) {
      const int64_t at = base + lowest_bit(mask);
      run(begin, at);
      begin = at;
    }
  };
  for (; i + 64 <= n; i += 64) take(changes(a + i) | changes(b + i), i);
  if (i < n && n > 64) {  // the last 64 once more, without what has been seen
    const int64_t base = n - 64;
    take((changes(a + base) | changes(b + base)) & (~uint64_t{0} << (i - base)), base);
    i = n;
  }
  for (; i < n; ++i) {
    if (a[i] != a[i - 1] || b[i] != b[i - 1]) {
      run(begin, i);
      begin = i;
    }
  }
  run(begin, n);
}

}  // namespace TF_NS
