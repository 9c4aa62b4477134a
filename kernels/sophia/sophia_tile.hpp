// Tiles of the Sophia passes on the CPU: rows opened for the math and closed into their storage. Included by sophia_cpu.cpp alone.
//
// A row whose type is that of the math is worked on in place; the others pass through a buffer in the first-level cache. A tile is 2,048
// elements: whole blocks of 8-bit states and of rounding bits.
#pragma once

#include "sophia.hpp"

#include "../core/parallel.hpp"
#include "../core/reduce.hpp"
#include "../core/tiles.hpp"

#include <type_traits>

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kTile = 512;
constexpr int64_t kPiece = 8192;  // whole tiles, of which a thread has all: statistics take memory per piece
constexpr int64_t kGrain = 4;     // pieces a thread should have: 32,768 elements, as in PyTorch
static_assert(kTile % kByteBlock == 0 && kTile % (8 * kLanes) == 0 && kPiece % kTile == 0, "whole blocks in a tile, tiles in a piece");

template <class T>
constexpr bool kInPlace = std::is_same_v<T, math_t<T>>;

template <class T>
const math_t<T>* open_row(const void* data, int64_t first, int64_t n, math_t<T>* room) {
  const T* from = static_cast<const T*>(data) + first;
  if constexpr (kInPlace<T>) return from;
  widen_row<T>(from, 1, n, room);
  return room;
}

template <class T>
math_t<T>* open_row(void* data, int64_t first, int64_t n, math_t<T>* room) {
  return const_cast<math_t<T>*>(open_row<T>(const_cast<const void*>(data), first, n, room));
}

// The rounding bits of one tile.
struct Bits {
  alignas(64) uint32_t words[rounding_room(kTile)];
  const half_of_a_word* draw(uint64_t seed, uint32_t step, uint32_t purpose, uint32_t stream, int64_t first, int64_t n) {
    return draw_rounding(make_sequence(seed, stream, purpose, step), static_cast<uint64_t>(first), n, words);
  }
};

// -- states ------------------------------------------------------------------------------------------------------------------------

// A state and the bits that round it; S is the type of the math, bfloat16, or uint8_t with scales.
struct StateRow {
  void* data;
  float* scales;
  bool hessian;
};

template <bool kHessian>
void decode_row(const uint8_t* codes, const float* scales, int64_t n, float* to) {
  for (int64_t b = 0; b < n; b += kByteBlock) {
    const float scale = scales[b / kByteBlock];
    const int64_t end = smaller(b + kByteBlock, n);
    for (int64_t i = b; i < end; ++i) to[i] = kHessian ? decode_hessian(codes[i], scale) : decode_exp_avg(codes[i], scale);
  }
}

template <bool kHessian>
void encode_row(const float* from, int64_t n, const half_of_a_word* r16, uint8_t* codes, float* scales) {
  for (int64_t b = 0; b < n; b += kByteBlock) {
    const int64_t end = smaller(b + kByteBlock, n);
    uint32_t largest = 0;
    for (int64_t i = b; i < end; ++i) {
      const uint32_t size = kHessian ? hessian_scale_bits(from[i]) : scale_bits(from[i]);
      largest = size > largest ? size : largest;
    }
    const float scale = kHessian ? sqrt(float_of(largest)) : float_of(largest);
    scales[b / kByteBlock] = scale;
    if (r16 != nullptr) {
      for (int64_t i = b; i < end; ++i) {
        const uint32_t shift = Code<kHessian>::shift_of(r16[i]);
        codes[i] = static_cast<uint8_t>(kHessian ? encode_hessian(from[i], scale, shift) : encode_exp_avg(from[i], scale, shift));
      }
    } else {
      constexpr uint32_t shift = Code<kHessian>::kNearest;
      for (int64_t i = b; i < end; ++i) {
        codes[i] = static_cast<uint8_t>(kHessian ? encode_hessian(from[i], scale, shift) : encode_exp_avg(from[i], scale, shift));
      }
    }
  }
}

template <class S, class M>
M* open_state(const StateRow& state, int64_t first, int64_t n, M* room) {
  if constexpr (std::is_same_v<S, uint8_t>) {
    const uint8_t* codes = static_cast<const uint8_t*>(state.data) + first;
    const float* scales = state.scales + first / kByteBlock;
    state.hessian ? decode_row<true>(codes, scales, n, room) : decode_row<false>(codes, scales, n, room);
    return room;
  } else {
    return open_row<S>(state.data, first, n, room);
  }
}

// States in few bits are rounded stochastically.
template <class S, class M>
void close_state(const StateRow& state, int64_t first, int64_t n, const M* value, uint64_t seed, uint32_t step, uint32_t stream) {
  if constexpr (!std::is_same_v<S, M>) {
    Bits bits;
    const half_of_a_word* r16 = bits.draw(seed, step, state.hessian ? kSophiaHessian : kSophiaExpAvg, stream, first, n);
    if constexpr (std::is_same_v<S, uint8_t>) {
      uint8_t* codes = static_cast<uint8_t*>(state.data) + first;
      float* scales = state.scales + first / kByteBlock;
      state.hessian ? encode_row<true>(value, n, r16, codes, scales) : encode_row<false>(value, n, r16, codes, scales);
    } else {
      S* to = static_cast<S*>(state.data) + first;
      for (int64_t i = 0; i < n; ++i) to[i] = Round<S>::stochastic(value[i], r16[i]);
    }
  }
}

// Calls f with a value of the type of a state.
template <class M, class Call>
void with_state(int state, const Call& f) {
  if constexpr (std::is_same_v<M, float>) {
    if (state == kStateHalf) return f(bfloat16{});
    if (state == kStateByte) return f(uint8_t{});
  }
  f(M{});
}

// Calls f with values of the types of weights and gradients.
template <class Call>
void with_types(int dtype, int grad_dtype, const Call& f) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if (grad_dtype == dtype || kInPlace<T>) return f(type, type);
    if constexpr (!kInPlace<T>) f(type, float{});
  });
}

// -- the walk ----------------------------------------------------------------------------------------------------------------------

template <class Tensor>
int64_t pieces_of_all(const Tensor* tensors, int64_t count) {
  int64_t total = 0;
  for (int64_t t = 0; t < count; ++t) total += pieces_of(tensors[t].numel, kPiece);
  return total;
}

// work(tensor, first element, count, number of the piece) for all tiles of all tensors, in one parallel region.
template <class Tensor, class Work>
void each_tile(const Tensor* tensors, int64_t count, int threads, const Work& work) {
  const auto range = [&](int64_t begin, int64_t end) {
    int64_t before = 0;
    for (int64_t t = 0; t < count && before < end; ++t) {
      const int64_t numel = tensors[t].numel, here = pieces_of(numel, kPiece);
      for (int64_t piece = larger(begin - before, 0); piece < smaller(end - before, here); ++piece) {
        const int64_t stop = smaller((piece + 1) * kPiece, numel);
        for (int64_t at = piece * kPiece; at < stop; at += kTile) work(tensors[t], at, smaller(kTile, stop - at), before + piece);
      }
      before += here;
    }
  };
  parallel_ranges(pieces_of_all(tensors, count), threads, range, kGrain);
}

}  // namespace
}  // namespace TF_NS
