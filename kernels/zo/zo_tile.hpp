// What the CPU passes share: tensors read and written by tiles, terms added to them, masks, the walk over all tiles.
// Included by zo_cpu.cpp and zo_state_cpu.cpp, each compiled once per instruction set into a namespace of its own.
//
// Work is cut into tiles of 2,048 elements: 512 Gaussian blocks, 16 Rademacher blocks, 256 blocks of rounding bits, so that a tile
// always starts on a block, and its float32 accumulator (8 KiB) stays in the first-level cache while terms are added to it.
#pragma once

#include "zo.hpp"

#include "../core/parallel.hpp"
#include "../core/reduce.hpp"
#include "../core/simd.hpp"

namespace TF_NS {

// zo_state_cpu.cpp, for the table in zo_cpu.cpp.
void zo_adam(const tenfold::AdamArgs& a);
void zo_momentum(const tenfold::MomentumArgs& a);
void zo_sign(const tenfold::SignArgs& a);
void zo_hizoo_perturb(const tenfold::HizooPerturbArgs& a);
void zo_hizoo_update(const tenfold::HizooUpdateArgs& a);

// zo_generate.hpp, compiled with zo_cpu.cpp: see the names without "zo_" below.
void zo_draw(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float* z);
void zo_accumulate(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float coef, float* acc);
void zo_fill_words(const Sequence& s, uint64_t first_block, int64_t blocks, uint32_t* out);

namespace {

using namespace tenfold;

constexpr int64_t kTile = 2048;
constexpr int64_t kGrain = 16;  // tiles a thread should have: 32,768 elements, as in PyTorch

// Rounding bits are generated as 32-bit words and read as 16-bit halves, low half first as they are counted (little-endian CPUs).
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rounding bits are read from words by halves");
typedef uint16_t __attribute__((may_alias)) half_word;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }
// A tensor's tiles start where the counter's do: the first one of a shard may begin before the shard.
inline int64_t tiles_of(const View& t) { return t.numel > 0 ? tiles_of(t.first % kTile + t.numel) : 0; }
// How many elements of the tile that starts at `first` come before the tensor.
inline int64_t absent(const View& t, int64_t first) { return first < t.first ? t.first - first : 0; }

// z of [first, first + n), where `first` is the start of a tile and n at most a tile.
inline void draw(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float* z) { zo_draw(s, dist, first, n, z); }

// acc[i] = fma(coef, z[i], acc[i]), of the same elements.
inline void accumulate(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float coef, float* acc) {
  zo_accumulate(s, dist, first, n, coef, acc);
}

// Raw words in memory order. `blocks` is rounded up to whole registers: `out` must have room (a tile's worth always has).
inline void fill_words(const Sequence& s, uint64_t first_block, int64_t blocks, uint32_t* out) {
  zo_fill_words(s, first_block, blocks, out);
}

// One term onto a tile: straight into a float32 accumulator, through a buffer when z is rounded or the math is double.
template <class M>
void add_term(const Term& term, uint32_t stream, uint64_t first, int64_t n, int z_round, M* acc) {
  const Sequence s = make_sequence(term.seed, stream, term.dist, term.query);
  const M coef = static_cast<M>(term.coef);
  if constexpr (sizeof(M) == sizeof(float)) {
    if (z_round == kNoRounding) return accumulate(s, term.dist, first, n, coef, acc);
  }
  alignas(64) float z[kTile];
  draw(s, term.dist, first, n, z);
  for (int64_t i = 0; i < n; ++i) acc[i] = fma(coef, static_cast<M>(round_z(z[i], z_round)), acc[i]);
}

// -- tiles of tensors ------------------------------------------------------------------------------------------------------------

// Calls visit(offset in elements, index in the tile) in logical order.
template <class Visit>
void each_offset(const View& t, int64_t first, int64_t n, const Visit& visit) {
  int64_t index[64];
  int64_t offset = 0;
  int64_t rest = first;
  for (int d = t.ndim - 1; d >= 0; --d) {
    index[d] = rest % t.sizes[d];
    rest /= t.sizes[d];
    offset += index[d] * t.strides[d];
  }
  for (int64_t i = 0; i < n; ++i) {
    visit(offset, i);
    for (int d = t.ndim - 1; d >= 0; --d) {
      offset += t.strides[d];
      if (++index[d] < t.sizes[d]) break;
      offset -= t.sizes[d] * t.strides[d];
      index[d] = 0;
    }
  }
}

template <class T>
void widen(const T* from, int64_t n, math_t<T>* to) {
  int64_t i = 0;
  if constexpr (sizeof(math_t<T>) == sizeof(float)) {
    for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  }
  for (; i < n; ++i) to[i] = to_math(from[i]);
}

template <class T>
void narrow(const math_t<T>* from, int64_t n, T* to) {
  int64_t i = 0;
  if constexpr (sizeof(math_t<T>) == sizeof(float)) {
    for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  }
  for (; i < n; ++i) to[i] = Round<T>::nearest(from[i]);
}

// What comes before the tensor reads as 0.
template <class T>
void load_tile(const View& t, int64_t first, int64_t n, math_t<T>* out) {
  const T* data = static_cast<const T*>(t.data);
  const int64_t skip = absent(t, first);
  for (int64_t i = 0; i < skip; ++i) out[i] = math_t<T>(0);
  out += skip;
  const int64_t at = first + skip - t.first;
  if (t.ndim == 0) {
    widen(data + at, n - skip, out);
  } else {
    each_offset(t, at, n - skip, [&](int64_t offset, int64_t i) { out[i] = to_math(data[offset]); });
  }
}

// Rounds the accumulator into the tensor. `r16` (one per element, or null) makes the rounding stochastic.
template <class T>
void store_tile(const View& t, int64_t first, int64_t n, const math_t<T>* acc, const half_word* r16) {
  T* data = static_cast<T*>(t.data);
  const int64_t skip = absent(t, first);
  acc += skip;
  if (r16 != nullptr) r16 += skip;
  n -= skip;
  first += skip - t.first;
  if (t.ndim != 0) {
    each_offset(t, first, n, [&](int64_t offset, int64_t i) { data[offset] = round_result<T>(acc[i], r16 != nullptr, r16 ? r16[i] : 0); });
  } else if (r16 != nullptr) {
    for (int64_t i = 0; i < n; ++i) data[first + i] = Round<T>::stochastic(acc[i], r16[i]);
  } else {
    narrow(acc, n, data + first);
  }
}

template <class T>
constexpr bool kIsMath = sizeof(T) == sizeof(math_t<T>);

// Room for the rounding bits of one tile; draw() returns null when the rounding is to nearest.
struct RoundingBits {
  alignas(64) uint32_t words[kTile / 2];
  const half_word* draw(const ChainArgs& a, uint32_t stream, int64_t first, int64_t n) {
    return a.stochastic ? draw(a.rounding_seed, a.rounding_query, stream, first, n) : nullptr;
  }
  const half_word* draw(uint64_t seed, uint32_t query, uint32_t stream, int64_t first, int64_t n) {
    fill_words(make_sequence(seed, stream, kRounding, query), static_cast<uint64_t>(first) / 8, (n + 7) / 8, words);
    return reinterpret_cast<const half_word*>(words);
  }
};

// -- masks -----------------------------------------------------------------------------------------------------------------------

// Which elements of a tile are masked: those whose word is below the limit.
struct TileMask {
  alignas(64) uint32_t words[kTile];
  uint32_t limit;

  void all(int64_t n, bool masked) {
    limit = 1;
    for (int64_t i = 0; i < n; ++i) words[i] = masked ? 0u : 1u;
  }

  void random(const MaskArgs& a, int64_t t, uint32_t stream, int64_t first, int64_t n) {
    const double bound = a.values[t];  // of words, a whole number in [0, 2^32]
    if (bound >= 0x1p32 || bound < 1.0) return all(n, bound >= 1.0);
    limit = static_cast<uint32_t>(bound);
    fill_words(make_sequence(a.seed, stream, kMask, a.query), static_cast<uint64_t>(first) / 4, (n + 3) / 4, words);
  }

  // |x| and the threshold compare as their bits do, and NaN lies above every number.
  void magnitude(float threshold, const float* x, int64_t n) {
    limit = ~bits_of(threshold);
    for (int64_t i = 0; i < n; ++i) words[i] = ~(bits_of(x[i]) & 0x7FFFFFFFu);
  }
  void magnitude(double threshold, const double* x, int64_t n) {
    limit = 1;
    for (int64_t i = 0; i < n; ++i) words[i] = __builtin_fabs(x[i]) <= threshold ? 1u : 0u;
  }

  void bits(const uint8_t* from, int64_t n) {
    limit = 1;
    for (int64_t i = 0; i < (n + 7) / 8; ++i) {
      for (uint32_t j = 0; j < 8; ++j) words[8 * i + j] = from[i] >> j & 1u;
    }
  }
  // Of a shard, whose bits need not start a byte where a tile starts; `at` is the element of the shard that the tile starts with, or < 0.
  void shard_bits(const uint8_t* from, int64_t at, int64_t n) {
    limit = 1;
    for (int64_t i = 0; i < n; ++i) words[i] = at + i < 0 ? 0u : from[(at + i) / 8] >> ((at + i) % 8) & 1u;
  }

  // The elements [first, first + n) of tensor t, whose weights as read are x; `start` is the first element of the tensor.
  template <class M>
  void draw(const MaskArgs& a, int64_t t, uint32_t stream, int64_t start, int64_t first, int64_t n, const M* x) {
    if (a.kind == kRandomMask) return random(a, t, stream, first, n);
    if (a.kind == kBitMask) {
      const uint8_t* from = static_cast<const uint8_t*>(a.bits[t]);
      return start == 0 ? bits(from + first / 8, n) : shard_bits(from, first - start, n);
    }
    magnitude(static_cast<M>(a.values[t]) + M(0), x, n);  // + 0: the threshold -0 is 0
  }

  // to[i] = from[i] where masked.
  template <class M>
  void put_back(const M* from, int64_t n, M* to) const {
    for (int64_t i = 0; i < n; ++i) to[i] = words[i] < limit ? from[i] : to[i];
  }
  template <class M>
  void clear(int64_t n, M* to) const {
    for (int64_t i = 0; i < n; ++i) to[i] = words[i] < limit ? M(0) : to[i];
  }
};

// -- the walk ----------------------------------------------------------------------------------------------------------------------

inline int64_t tiles_of_all(const View* tensors, int64_t count) {
  int64_t total = 0;
  for (int64_t t = 0; t < count; ++t) total += tiles_of(tensors[t]);
  return total;
}

// work(tensor, first element, count) for tiles [begin, end) of all tensors together.
template <class Work>
void walk_tiles(const View* tensors, int64_t count, int64_t begin, int64_t end, const Work& work) {
  int64_t before = 0;
  for (int64_t t = 0; t < count && before < end; ++t) {
    const int64_t here = tiles_of(tensors[t]);
    const int64_t lead = tensors[t].first % kTile;
    const int64_t from = begin > before ? begin - before : 0;
    const int64_t to = smaller(end - before, here);
    for (int64_t tile = from; tile < to; ++tile) {
      work(t, tensors[t].first - lead + tile * kTile, smaller(kTile, lead + tensors[t].numel - tile * kTile));
    }
    before += here;
  }
}

// One parallel region over the tiles of all tensors.
template <class Work>
void each_tile(const View* tensors, int64_t count, int threads, const Work& work) {
  parallel_ranges(
      tiles_of_all(tensors, count), threads, [&](int64_t begin, int64_t end) { walk_tiles(tensors, count, begin, end, work); }, kGrain);
}

// Calls f with a value of the C++ type that a DType code stands for.
template <class Call>
void with_dtype(int dtype, const Call& f) {
  switch (dtype) {
    case kFloat64: return f(double{});
    case kBFloat16: return f(bfloat16{});
    case kFloat16: return f(float16{});
    default: return f(float{});
  }
}

}  // namespace
}  // namespace TF_NS
