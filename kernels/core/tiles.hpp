// What CPU kernels share that walk tensors tile by tile: random numbers by registers, and rows widened to the type of the math and back.
//
// A register of Philox blocks counts up in the low word of the counter alone, so generation starts at an element that is a multiple of
// kAligned: whole registers of blocks of every distribution.
#pragma once

#include "normal.hpp"
#include "philox.hpp"
#include "simd.hpp"

namespace TF_NS {

constexpr int64_t kAligned = 128;
static_assert(kAligned % (4 * kLanes) == 0, "a register of Gaussian blocks");

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t pieces_of(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

// -- generation --------------------------------------------------------------------------------------------------------------------

TF_HD PhiloxBlock<U> register_of_blocks(const Sequence& s, uint64_t block) {
  const PhiloxBlock<Word> x = philox_block(blocks_from(static_cast<uint32_t>(block)), static_cast<uint32_t>(block >> 32), s);
  return {to_lanes(x.w0), to_lanes(x.w1), to_lanes(x.w2), to_lanes(x.w3)};
}

// 4 * kLanes normals in element order; `first` is a multiple of 4 * kLanes.
TF_HD void normals(const Sequence& s, uint64_t first, F z[4]) {
  const PhiloxBlock<U> x = register_of_blocks(s, first / 4);
  box_muller(x.w0, x.w1, z[0], z[1]);
  box_muller(x.w2, x.w3, z[2], z[3]);
  transpose4(z);
}

// Raw words of whole registers of blocks: `out` has room for `blocks` rounded up to kLanes, and the first is a multiple of kLanes.
inline void draw_words(const Sequence& s, uint64_t first_block, int64_t blocks, uint32_t* out) {
  for (int64_t b = 0; b < blocks; b += kLanes) {
    const PhiloxBlock<U> x = register_of_blocks(s, first_block + static_cast<uint64_t>(b));
    F w[4] = {float_of(x.w0), float_of(x.w1), float_of(x.w2), float_of(x.w3)};
    transpose4(w);
    for (int64_t k = 0; k < 4; ++k) store(out + 4 * b + k * kLanes, bits_of(w[k]));
  }
}

inline void draw_normals(const Sequence& s, uint64_t first, int64_t n, float* out) {
  constexpr int64_t kStep = 4 * kLanes;
  for (int64_t i = 0; i < n; i += kStep) {
    F z[4];
    normals(s, first + static_cast<uint64_t>(i), z);
    for (int64_t k = 0; k < 4; ++k) store(out + i + k * kLanes, z[k]);
  }
}

// Two normals from one word: element i in block i/8, word (i%8)/2, sine and cosine of its two halves ("tfz-normal16 v1").
inline void draw_normals16(const Sequence& s, uint64_t first, int64_t n, float* out) {
  constexpr int64_t kStep = 8 * kLanes;
  for (int64_t i = 0; i < n; i += kStep) {
    const PhiloxBlock<U> x = register_of_blocks(s, (first + static_cast<uint64_t>(i)) / 8);
    const U words[4] = {x.w0, x.w1, x.w2, x.w3};
    for (int half = 0; half < 2; ++half) {
      F z[4];
      for (int w = 0; w < 2; ++w) {
        const U word = words[2 * half + w];
        box_muller((word << 16) + splat<U>(0x8000u), word & splat<U>(0xFFFF0000u), z[2 * w], z[2 * w + 1]);
      }
      transpose4(z);
      alignas(64) float quads[4 * kLanes];
      for (int64_t k = 0; k < 4; ++k) store(quads + k * kLanes, z[k]);
      for (int64_t q = 0; q < static_cast<int64_t>(kLanes); ++q) {
        for (int64_t k = 0; k < 4; ++k) out[i + 8 * q + 4 * half + k] = quads[4 * q + k];
      }
    }
  }
}

inline void draw_uniforms(const Sequence& s, uint64_t first, int64_t n, float* out) {
  draw_words(s, first / 4, pieces_of(n, 4), reinterpret_cast<uint32_t*>(out));
  for (int64_t i = 0; i < n; ++i) out[i] = uniform_from_word<float>(bits_of(out[i]));
}

inline void draw_signs(const Sequence& s, uint64_t first, int64_t n, float* out) {
  alignas(64) uint32_t words[4 * kLanes];
  for (int64_t i = 0; i < n;) {
    const uint64_t block = (first + static_cast<uint64_t>(i)) / 128;
    draw_words(s, block - block % kLanes, kLanes, words);
    for (uint64_t w = 4 * (block % kLanes); w < 4 * kLanes && i < n; ++w, i += 32) {
      for (int64_t j = 0; j < 32; ++j) out[i + j] = 0.0f;
      add_signed(out + i, words[w], 1.0f);
    }
  }
}

// Room that draw() may write for n elements: it works in whole registers.
constexpr int64_t drawn_room(int64_t n) { return n + 2 * kAligned; }

// z of [first, first + n) of a distribution (a Purpose of philox.hpp). Returns where element `first` is in `out`, which has room for
// drawn_room(n).
constexpr uint32_t kGaussian16 = 7;
inline const float* draw(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float* out) {
  const uint64_t skip = first % kAligned;
  const int64_t whole = n + static_cast<int64_t>(skip);
  if (dist == kRademacher) {
    draw_signs(s, first - skip, whole, out);
  } else if (dist == kUniform) {
    draw_uniforms(s, first - skip, whole, out);
  } else if (dist == kGaussian16) {
    draw_normals16(s, first - skip, whole, out);
  } else {
    draw_normals(s, first - skip, whole, out);
  }
  return out + skip;
}

// The 16 rounding bits of elements [first, first + n), as halves of words in memory (little-endian CPUs).
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rounding bits are read from words by halves");
typedef uint16_t __attribute__((may_alias)) half_of_a_word;
constexpr int64_t rounding_room(int64_t n) { return (n + 4 * kAligned) / 2; }
inline const half_of_a_word* draw_rounding(const Sequence& s, uint64_t first, int64_t n, uint32_t* words) {
  const uint64_t skip = first % kAligned;
  draw_words(s, (first - skip) / 8, pieces_of(n + static_cast<int64_t>(skip), 8), words);
  return reinterpret_cast<const half_of_a_word*>(words) + skip;
}

// -- rows --------------------------------------------------------------------------------------------------------------------------

template <class T>
constexpr bool kStoresMath = sizeof(T) == sizeof(math_t<T>);

template <class T>
void widen_row(const T* from, int64_t stride, int64_t n, math_t<T>* to) {
  int64_t i = 0;
  if constexpr (sizeof(math_t<T>) == sizeof(float)) {
    for (; stride == 1 && i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  }
  for (; i < n; ++i) to[i] = to_math(from[i * stride]);
}

template <class T>
void narrow_row(const math_t<T>* from, int64_t n, T* to, int64_t stride) {
  int64_t i = 0;
  if constexpr (sizeof(math_t<T>) == sizeof(float)) {
    for (; stride == 1 && i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  }
  for (; i < n; ++i) to[i * stride] = Round<T>::nearest(from[i]);
}

// Calls f with a value of the C++ type that a DType code stands for.
template <class Call>
void with_type(int dtype, const Call& f) {
  switch (dtype) {
    case kFloat64: return f(double{});
    case kBFloat16: return f(bfloat16{});
    case kFloat16: return f(float16{});
    default: return f(float{});
  }
}

}  // namespace TF_NS
