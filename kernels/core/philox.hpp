// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//
// key     = (seed low, seed high)
// counter = (block low, block high, stream, tag),  tag = purpose << 24 | query
//
// Every random number in Tenfold is a pure function of (seed, stream, purpose, query, element index): nothing is drawn in sequence, so
// the result cannot depend on threads, chunks, strides or the machine.
#pragma once

#include "scalar.hpp"

namespace TF_NS {

enum Purpose : uint32_t {
  kGaussian = 0,
  kRademacher = 1,
  kUniform = 2,
  kMask = 3,
  kRounding = 4,
  kLowRankU = 5,
  kLowRankV = 6,
  kGauss16 = 7,
  kSophia = 8,
  kSophiaExpAvg = 9,
  kSophiaHessian = 10,
  kLabel = 9,
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

// One of the infinitely many sequences: everything of the counter but the block number.
struct Sequence {
  uint32_t key0, key1;
  uint32_t stream, tag;
};

TF_HD Sequence make_sequence(uint64_t seed, uint32_t stream, uint32_t purpose, uint32_t query) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), stream, purpose << 24 | query};
}

template <class Word>
struct PhiloxBlock {
  Word w0, w1, w2, w3;
};

template <class Word>
TF_HD PhiloxBlock<Word> philox_round(PhiloxBlock<Word> c, uint32_t key0, uint32_t key1) {
  const auto p0 = multiply_wide(c.w0, kPhiloxM0);
  const auto p1 = multiply_wide(c.w2, kPhiloxM1);
  return {xor3(high_half(p1), c.w1, splat<Word>(key0)), low_half(p1), xor3(high_half(p0), c.w3, splat<Word>(key1)), low_half(p0)};
}

// All ten rounds for any counter: the textbook form.
TF_HD PhiloxBlock<uint32_t> philox4x32_10(PhiloxBlock<uint32_t> counter, uint32_t key0, uint32_t key1) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (uint32_t round = 0; round < 10; ++round) {
    counter = philox_round(counter, key0 + round * kPhiloxW0, key1 + round * kPhiloxW1);
  }
  return counter;
}

// The block `block_high:block_low` of a sequence, where only block_low differs between lanes. In the first two rounds half of the state
// is then the same in every lane, and its multiplications are done once, in scalar registers: 18 vector products instead of 20.
template <class Word>
TF_HD PhiloxBlock<Word> philox_block(Word block_low, uint32_t block_high, const Sequence& s) {
  // Round 1: words 1, 2, 3 are lane-constant.
  const auto p0 = multiply_wide(block_low, kPhiloxM0);
  const uint64_t q1 = multiply_wide(s.stream, kPhiloxM1);
  const uint32_t a0 = high_half(q1) ^ block_high ^ s.key0;
  const uint32_t a1 = low_half(q1);
  const Word a2 = xor3(high_half(p0), splat<Word>(s.tag), splat<Word>(s.key1));
  const Word a3 = low_half(p0);
  // Round 2: words 0 and 1 still are.
  const uint32_t k0 = s.key0 + kPhiloxW0;
  const uint32_t k1 = s.key1 + kPhiloxW1;
  const uint64_t q0 = multiply_wide(a0, kPhiloxM0);
  const auto p1 = multiply_wide(a2, kPhiloxM1);
  PhiloxBlock<Word> c = {xor3(high_half(p1), splat<Word>(a1), splat<Word>(k0)), low_half(p1),
                         xor3(a3, splat<Word>(high_half(q0)), splat<Word>(k1)), splat<Word>(low_half(q0))};
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 8
#endif
  for (uint32_t round = 2; round < 10; ++round) {
    c = philox_round(c, s.key0 + round * kPhiloxW0, s.key1 + round * kPhiloxW1);
  }
  return c;
}

TF_HD PhiloxBlock<uint32_t> philox_block(uint64_t block, const Sequence& s) {
  return philox_block(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), s);
}

}  // namespace TF_NS
