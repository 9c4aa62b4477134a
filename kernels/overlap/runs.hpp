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

// How far ahead memory is asked for: about what arrives while a block is worked on, and across the ends of pages, where processors stop by
// themselves.
constexpr int64_t kAheadBytes = 2048;
constexpr int64_t kRunBlock = 2048;  // elements whose runs are listed before they are handed on

// Appends base + i for each bit i of mask. Up to 4 are written whether there are as many or not: which branch comes next is then seldom a
// surprise, and surprises are what runs cost.
inline int32_t* list_bits(uint64_t mask, int32_t base, int32_t* out) {
  const int n = __builtin_popcountll(mask);
  const auto four = [&](int32_t* to) {
    for (int k = 0; k < 4; ++k) {
      to[k] = base + lowest_bit(mask | uint64_t{1} << 63);
      mask &= mask - 1;
    }
  };
  four(out);
  for (int k = 4; k < n; k += 4) four(out + k);
  return out + n;
}

// run(first, last) for each maximal run of equal pairs (a[i], b[i]) of n >= 1 elements, in order.
template <class A, class B, class Run>
inline void pair_runs(const A* a, const B* b, int64_t n, const Run& run) {
  int32_t begins[kRunBlock + 8];
  int64_t begin = 0;
  for (int64_t base = 0; base < n; base += kRunBlock) {
    const int64_t count = n - base < kRunBlock ? n - base : kRunBlock;
    int32_t* end = begins;
    int64_t i = base == 0 ? 1 : 0;
    const A* const x = a + base;
    const B* const y = b + base;
    for (; i + 64 <= count; i += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(x + i) + kAheadBytes);
      __builtin_prefetch(reinterpret_cast<const char*>(y + i) + kAheadBytes);
      if (sizeof(A) > 1) __builtin_prefetch(reinterpret_cast<const char*>(x + i) + kAheadBytes + 64);
      if (sizeof(B) > 1) __builtin_prefetch(reinterpret_cast<const char*>(y + i) + kAheadBytes + 64);
      const uint64_t mask = changes(x + i) | changes(y + i);
      if (mask != 0) end = list_bits(mask, static_cast<int32_t>(i), end);
    }
    if (i < count && base + count >= 65) {  // the last 64 once more, without what has been seen
      const int64_t last = count - 64;
      const uint64_t mask = (changes(x + last) | changes(y + last)) & (~uint64_t{0} << (i - last));
      end = list_bits(mask, static_cast<int32_t>(last), end);
      i = count;
    }
    for (; i < count; ++i) {
      if (x[i] != x[i - 1] || y[i] != y[i - 1]) *end++ = static_cast<int32_t>(i);
    }
    for (const int32_t* at = begins; at != end; ++at) {
      run(begin, base + *at);
      begin = base + *at;
    }
  }
  run(begin, n);
}

}  // namespace TF_NS
