// Generation of z and of raw words on the CPU, in registers of the instruction set this is compiled for. Included by zo_cpu.cpp alone.
#pragma once

#include "zo_tile.hpp"

namespace TF_NS {
namespace {

// -- generation: 4 * kLanes values at a time, in element order ---------------------------------------------------------------------

TF_HD PhiloxBlock<U> word_lanes(const Sequence& s, uint64_t block) {
  const PhiloxBlock<Word> x = philox_block(blocks_from(static_cast<uint32_t>(block)), static_cast<uint32_t>(block >> 32), s);
  return {to_lanes(x.w0), to_lanes(x.w1), to_lanes(x.w2), to_lanes(x.w3)};
}

struct Gaussian {
  static constexpr int64_t kPerBlock = 4;  // elements, and registers filled at a time
  TF_HD static void fill(const Sequence& s, uint64_t block, F z[4]) {
    const PhiloxBlock<U> x = word_lanes(s, block);
    box_muller(x.w0, x.w1, z[0], z[1]);
    box_muller(x.w2, x.w3, z[2], z[3]);
    transpose4(z);
  }
};

// Two normals of one word.
struct Gaussian16 {
  static constexpr int64_t kPerBlock = 8;
  TF_HD static void fill(const Sequence& s, uint64_t block, F z[8]) {
    const PhiloxBlock<U> x = word_lanes(s, block);
    F low[4], high[4];  // elements 0..3 and 4..7 of the blocks
    normals_of_word(x.w0, low[0], low[1]);
    normals_of_word(x.w1, low[2], low[3]);
    normals_of_word(x.w2, high[0], high[1]);
    normals_of_word(x.w3, high[2], high[3]);
    transpose4(low);
    transpose4(high);
    for (int k = 0; k < 4; ++k) interleave_quads(low[k], high[k], z[2 * k], z[2 * k + 1]);
  }
};

struct Uniform {
  static constexpr int64_t kPerBlock = 4;
  TF_HD static void fill(const Sequence& s, uint64_t block, F z[4]) {
    const PhiloxBlock<U> x = word_lanes(s, block);
    z[0] = uniform_from_word<F>(x.w0);
    z[1] = uniform_from_word<F>(x.w1);
    z[2] = uniform_from_word<F>(x.w2);
    z[3] = uniform_from_word<F>(x.w3);
    transpose4(z);
  }
};

// What becomes of four registers of z, or of one z in a tail.
struct Put {
  TF_HD void operator()(float* at, const F z[4]) const {
    for (int64_t k = 0; k < 4; ++k) store(at + k * kLanes, z[k]);
  }
  TF_HD void operator()(float* at, float z) const { *at = z; }
};
struct MultiplyAdd {
  float coef;
  template <class T>
  TF_HD void operator()(T* at, const F z[4]) const {
    multiply_add4(at, splat<F>(coef), z);
  }
  template <class T>
  TF_HD void operator()(T* at, float z) const {
    *at = Round<T>::nearest(fma(coef, z, to_math(*at)));
  }
};

// Hands z of [first, first + n) to `into`, a few registers at a time; z itself touches no memory. `first` is the start of a tile.
template <class Distribution, class T, class Into>
void generate(Sequence s, uint64_t first, int64_t n, T* out, const Into& into) {
  constexpr int64_t kPerBlock = Distribution::kPerBlock;
  constexpr int64_t kStep = kPerBlock * kLanes;
  F z[kPerBlock];
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    Distribution::fill(s, (first + static_cast<uint64_t>(i)) / kPerBlock, z);
    for (int64_t k = 0; k < kPerBlock; k += 4) into(out + i + k * kLanes, z + k);
  }
  if (i < n) {
    float tail[kStep];
    Distribution::fill(s, (first + static_cast<uint64_t>(i)) / kPerBlock, z);
    for (int64_t k = 0; k < kPerBlock; ++k) store(tail + k * kLanes, z[k]);
    for (int64_t j = 0; i < n; ++i, ++j) into(out + i, tail[j]);
  }
}

inline void accumulate_signs(const Sequence& s, uint64_t first, int64_t n, float coef, float* acc) {
  alignas(64) uint32_t words[4 * kTile / 128];
  fill_words(s, first / 128, (n + 127) / 128, words);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) add_signed(acc + i, words[i / 32], coef);
  for (; i < n; ++i) acc[i] += (words[i / 32] >> (i % 32) & 1u) ? coef : -coef;
}

}  // namespace

void zo_fill_words(const Sequence& s, uint64_t first_block, int64_t blocks, uint32_t* out) {
  for (int64_t b = 0; b < blocks; b += kLanes) {
    const PhiloxBlock<U> x = word_lanes(s, first_block + static_cast<uint64_t>(b));
    F w[4] = {float_of(x.w0), float_of(x.w1), float_of(x.w2), float_of(x.w3)};
    transpose4(w);
    for (int64_t k = 0; k < 4; ++k) store(out + 4 * b + k * kLanes, bits_of(w[k]));
  }
}

void zo_accumulate(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float coef, float* acc) {
  if (dist == kRademacher) return accumulate_signs(s, first, n, coef, acc);
  if (dist == kUniform) return generate<Uniform>(s, first, n, acc, MultiplyAdd{coef});
  if (dist == kGauss16) return generate<Gaussian16>(s, first, n, acc, MultiplyAdd{coef});
  generate<Gaussian>(s, first, n, acc, MultiplyAdd{coef});
}

void zo_draw(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float* z) {
  if (dist == kRademacher) {
    for (int64_t i = 0; i < n; ++i) z[i] = 0.0f;
    return accumulate_signs(s, first, n, 1.0f, z);
  }
  if (dist == kUniform) return generate<Uniform>(s, first, n, z, Put{});
  if (dist == kGauss16) return generate<Gaussian16>(s, first, n, z, Put{});
  generate<Gaussian>(s, first, n, z, Put{});
}

}  // namespace TF_NS
