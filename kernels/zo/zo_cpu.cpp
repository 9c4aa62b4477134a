// Zeroth-order passes on the CPU: traversal only. Compiled once per instruction set (CMakeLists.txt), into a namespace of its own.
//
// Work is cut into tiles of 2,048 elements: 512 Gaussian blocks, 16 Rademacher blocks, 256 blocks of rounding bits, so that a tile
// always starts on a block, and its float32 accumulator (8 KiB) stays in the first-level cache while terms are added to it.
#include "zo.hpp"

#include "../core/parallel.hpp"
#include "../core/reduce.hpp"
#include "../core/simd.hpp"

namespace TF_NS {
namespace {

using namespace tenfold;

constexpr int64_t kTile = 2048;
constexpr int64_t kGrain = 16;  // tiles a thread should have: 32,768 elements, as in PyTorch

// Rounding bits are generated as 32-bit words and read as 16-bit halves, low half first as they are counted (little-endian CPUs).
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rounding bits are read from words by halves");
typedef uint16_t __attribute__((may_alias)) half_word;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// -- generation: 4 * kLanes values at a time, in element order ---------------------------------------------------------------------

TF_HD PhiloxBlock<U> word_lanes(const Sequence& s, uint64_t block) {
  const PhiloxBlock<Word> x = philox_block(blocks_from(static_cast<uint32_t>(block)), static_cast<uint32_t>(block >> 32), s);
  return {to_lanes(x.w0), to_lanes(x.w1), to_lanes(x.w2), to_lanes(x.w3)};
}

struct Gaussian {
  TF_HD static void fill(const Sequence& s, uint64_t block, F z[4]) {
    const PhiloxBlock<U> x = word_lanes(s, block);
    box_muller(x.w0, x.w1, z[0], z[1]);
    box_muller(x.w2, x.w3, z[2], z[3]);
    transpose4(z);
  }
};

struct Uniform {
  TF_HD static void fill(const Sequence& s, uint64_t block, F z[4]) {
    const PhiloxBlock<U> x = word_lanes(s, block);
    z[0] = uniform_from_word<F>(x.w0);
    z[1] = uniform_from_word<F>(x.w1);
    z[2] = uniform_from_word<F>(x.w2);
    z[3] = uniform_from_word<F>(x.w3);
    transpose4(z);
  }
};

// Raw words in memory order. `blocks` is rounded up to whole registers: `out` must have room (a tile's worth always has).
void fill_words(const Sequence& s, uint64_t first_block, int64_t blocks, uint32_t* out) {
  for (int64_t b = 0; b < blocks; b += kLanes) {
    const PhiloxBlock<U> x = word_lanes(s, first_block + static_cast<uint64_t>(b));
    F w[4] = {float_of(x.w0), float_of(x.w1), float_of(x.w2), float_of(x.w3)};
    transpose4(w);
    for (int64_t k = 0; k < 4; ++k) store(out + 4 * b + k * kLanes, bits_of(w[k]));
  }
}

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
  constexpr int64_t kStep = 4 * kLanes;
  F z[4];
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    Distribution::fill(s, (first + static_cast<uint64_t>(i)) / 4, z);
    into(out + i, z);
  }
  if (i < n) {
    float tail[kStep];
    Distribution::fill(s, (first + static_cast<uint64_t>(i)) / 4, z);
    for (int64_t k = 0; k < 4; ++k) store(tail + k * kLanes, z[k]);
    for (int64_t j = 0; i < n; ++i, ++j) into(out + i, tail[j]);
  }
}

void accumulate_signs(const Sequence& s, uint64_t first, int64_t n, float coef, float* acc) {
  alignas(64) uint32_t words[4 * kTile / 128];
  fill_words(s, first / 128, (n + 127) / 128, words);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) add_signed(acc + i, words[i / 32], coef);
  for (; i < n; ++i) acc[i] += (words[i / 32] >> (i % 32) & 1u) ? coef : -coef;
}

// acc[i] = fma(coef, z[i], acc[i])
void accumulate(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float coef, float* acc) {
  if (dist == kRademacher) return accumulate_signs(s, first, n, coef, acc);
  if (dist == kUniform) return generate<Uniform>(s, first, n, acc, MultiplyAdd{coef});
  generate<Gaussian>(s, first, n, acc, MultiplyAdd{coef});
}

// z itself.
void draw(const Sequence& s, uint32_t dist, uint64_t first, int64_t n, float* z) {
  if (dist == kRademacher) {
    for (int64_t i = 0; i < n; ++i) z[i] = 0.0f;
    return accumulate_signs(s, first, n, 1.0f, z);
  }
  if (dist == kUniform) return generate<Uniform>(s, first, n, z, Put{});
  generate<Gaussian>(s, first, n, z, Put{});
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

template <class T>
void load_tile(const View& t, int64_t first, int64_t n, math_t<T>* out) {
  const T* data = static_cast<const T*>(t.data);
  if (t.ndim == 0) {
    widen(data + first, n, out);
  } else {
    each_offset(t, first, n, [&](int64_t offset, int64_t i) { out[i] = to_math(data[offset]); });
  }
}

// Rounds the accumulator into the tensor. `r16` (one per element, or null) makes the rounding stochastic.
template <class T>
void store_tile(const View& t, int64_t first, int64_t n, const math_t<T>* acc, const half_word* r16) {
  T* data = static_cast<T*>(t.data);
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
    if (!a.stochastic) return nullptr;
    const Sequence s = make_sequence(a.rounding_seed, stream, kRounding, a.rounding_query);
    fill_words(s, static_cast<uint64_t>(first) / 8, (n + 7) / 8, words);
    return reinterpret_cast<const half_word*>(words);
  }
};

bool is_plain_gaussian(const ChainArgs& a, const View& param, const View& source) {
  return a.n_terms == 1 && a.terms[0].dist == kGaussian && a.decay == 1.0 && a.z_round == kNoRounding && !a.stochastic && param.ndim == 0 &&
         source.data == param.data;
}

template <class T>
void chain_tile(const ChainArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  const View& param = a.params[t];
  const View& source = a.sources[t];
  const uint32_t stream = a.streams[t];
  if constexpr (!kIsMath<T>) {
    if (is_plain_gaussian(a, param, source)) {  // the common pass in half precision: registers all the way
      const Term& term = a.terms[0];
      const Sequence s = make_sequence(term.seed, stream, term.dist, term.query);
      return generate<Gaussian>(s, static_cast<uint64_t>(first), n, static_cast<T*>(param.data) + first,
                                MultiplyAdd{static_cast<float>(term.coef)});
    }
  }
  alignas(64) M buffer[kTile];
  M* acc = buffer;
  bool in_place = false;
  if constexpr (kIsMath<T>) {
    in_place = param.ndim == 0;
    if (in_place) acc = static_cast<M*>(param.data) + first;
  }
  if (!in_place || source.data != param.data) load_tile<T>(source, first, n, acc);
  const M decay = static_cast<M>(a.decay);
  if (decay != M(1)) {
    for (int64_t i = 0; i < n; ++i) acc[i] *= decay;
  }
  for (int64_t k = 0; k < a.n_terms; ++k) add_term<M>(a.terms[k], stream, static_cast<uint64_t>(first), n, a.z_round, acc);
  if (in_place) return;
  RoundingBits bits;
  store_tile<T>(param, first, n, acc, kIsMath<T> ? nullptr : bits.draw(a, stream, first, n));
}

template <class T>
void adam_tile(const AdamArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  const uint32_t stream = a.chain.streams[t];
  alignas(64) M theta[kTile], g[kTile], m[kTile], v[kTile];
  load_tile<T>(a.chain.params[t], first, n, theta);
  load_tile<M>(a.exp_avgs[t], first, n, m);
  load_tile<M>(a.exp_avg_sqs[t], first, n, v);
  for (int64_t i = 0; i < n; ++i) g[i] = M(0);
  for (int64_t k = 0; k < a.chain.n_terms; ++k) {
    add_term<M>(a.chain.terms[k], stream, static_cast<uint64_t>(first), n, a.chain.z_round, g);
  }
  const AdamScalars<M> s = adam_scalars<M>(a);
  for (int64_t i = 0; i < n; ++i) theta[i] = adam_element(theta[i], g[i], m[i], v[i], s);
  store_tile<M>(a.exp_avgs[t], first, n, m, nullptr);
  store_tile<M>(a.exp_avg_sqs[t], first, n, v, nullptr);
  RoundingBits bits;
  store_tile<T>(a.chain.params[t], first, n, theta, kIsMath<T> ? nullptr : bits.draw(a.chain, stream, first, n));
}

// One parallel region over the tiles of all tensors. work(tensor, first element, count).
template <class Work>
void each_tile(const View* tensors, int64_t count, int threads, const Work& work) {
  int64_t total = 0;
  for (int64_t t = 0; t < count; ++t) total += tiles_of(tensors[t].numel);
  parallel_ranges(
      total, threads,
      [&](int64_t begin, int64_t end) {
        int64_t before = 0;
        for (int64_t t = 0; t < count && before < end; ++t) {
          const int64_t here = tiles_of(tensors[t].numel);
          const int64_t from = begin > before ? begin - before : 0;
          const int64_t to = smaller(end - before, here);
          for (int64_t tile = from; tile < to; ++tile) {
            work(t, tile * kTile, smaller(kTile, tensors[t].numel - tile * kTile));
          }
          before += here;
        }
      },
      kGrain);
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

void chain(const ChainArgs& a) {
  with_dtype(a.dtype, [&](auto type) {
    each_tile(a.params, a.count, a.threads, [&](int64_t t, int64_t first, int64_t n) { chain_tile<decltype(type)>(a, t, first, n); });
  });
}

void adam(const AdamArgs& a) {
  with_dtype(a.chain.dtype, [&](auto type) {
    each_tile(a.chain.params, a.chain.count, a.chain.threads,
              [&](int64_t t, int64_t first, int64_t n) { adam_tile<decltype(type)>(a, t, first, n); });
  });
}

// Calls visit(z, index of z[0] in the output, count) for tiles aligned to the counter, cut to [first, first + n).
template <class Visit>
void each_sample_tile(const SampleArgs& a, const Visit& visit) {
  const Sequence s = make_sequence(a.seed, a.stream, a.dist, a.query);
  const uint64_t lead = a.first % kTile;
  const uint64_t start = a.first - lead;
  const int64_t covered = a.n + static_cast<int64_t>(lead);
  parallel_ranges(
      a.n > 0 ? tiles_of(covered) : 0, a.threads,
      [&](int64_t begin, int64_t end) {
        alignas(64) float z[kTile];
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t n = smaller(kTile, covered - tile * kTile);
          draw(s, a.dist, start + static_cast<uint64_t>(tile * kTile), n, z);
          const int64_t skip = tile == 0 ? static_cast<int64_t>(lead) : 0;
          visit(z + skip, tile * kTile + skip - static_cast<int64_t>(lead), n - skip, tile);
        }
      },
      kGrain);
}

void sample(const SampleArgs& a) {
  with_dtype(a.dtype, [&](auto type) {
    using T = decltype(type);
    T* out = static_cast<T*>(a.out);
    each_sample_tile(a, [&](const float* z, int64_t at, int64_t n, int64_t) {
      if constexpr (kIsMath<T>) {
        for (int64_t i = 0; i < n; ++i) out[at + i] = static_cast<T>(z[i]);
      } else {
        narrow(z, n, out + at);
      }
    });
  });
}

void words(const WordsArgs& a) {
  constexpr int64_t kPiece = kTile / 4;
  const Sequence s = make_sequence(a.seed, a.stream, a.purpose, a.query);
  parallel_ranges((a.blocks + kPiece - 1) / kPiece, a.threads,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t b = begin * kPiece; b < smaller(end * kPiece, a.blocks); ++b) {
                      const PhiloxBlock<uint32_t> x = philox_block(a.first_block + static_cast<uint64_t>(b), s);
                      for (uint32_t j = 0; j < 4; ++j) a.out[4 * b + j] = word_of(x, j);
                    }
                  },
                  kGrain);
}

void stochastic_round(const RoundArgs& a) {
  const Sequence s = make_sequence(a.seed, a.stream, kRounding, a.query);
  const int64_t lead = static_cast<int64_t>(a.first % kTile);
  const int64_t covered = a.n + lead;
  with_dtype(a.dtype, [&](auto type) {
    using T = decltype(type);
    T* out = static_cast<T*>(a.out);
    parallel_ranges(
        a.n > 0 ? tiles_of(covered) : 0, a.threads,
        [&](int64_t begin, int64_t end) {
          alignas(64) uint32_t bits[kTile / 2];
          const half_word* r16 = reinterpret_cast<const half_word*>(bits);
          for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t n = smaller(kTile, covered - tile * kTile);
            fill_words(s, (a.first - static_cast<uint64_t>(lead) + static_cast<uint64_t>(tile * kTile)) / 8, (n + 7) / 8, bits);
            for (int64_t i = tile == 0 ? lead : 0; i < n; ++i) {
              const int64_t at = tile * kTile + i - lead;
              out[at] = Round<T>::stochastic(static_cast<math_t<T>>(a.x[at]), r16[i]);
            }
          }
        },
        kGrain);
  });
}

// Sums per tile, tiles joined pairwise in chunks of 512 that do not depend on the number of threads.
Moments moments(const SampleArgs& a) {
  constexpr int64_t kChunk = 512 * kTile;
  double sums[64], squares[64];
  int64_t held = 0;
  Moments total = {0.0, 0.0};
  for (int64_t at = 0; at < a.n; at += kChunk) {
    double tile_sum[513], tile_square[513];
    SampleArgs part = a;
    part.first = a.first + static_cast<uint64_t>(at);
    part.n = smaller(kChunk, a.n - at);
    each_sample_tile(part, [&](const float* z, int64_t, int64_t n, int64_t tile) {
      tile_sum[tile] = piece_sum(z, n, [](double x) { return x; });
      tile_square[tile] = piece_sum(z, n, [](double x) { return x * x; });
    });
    const int64_t tiles = tiles_of(part.n + static_cast<int64_t>(part.first % kTile));
    sums[held] = pairwise_sum(tile_sum, tiles);
    squares[held] = pairwise_sum(tile_square, tiles);
    if (++held == 64 || at + kChunk >= a.n) {
      total.sum += pairwise_sum(sums, held);
      total.sum_of_squares += pairwise_sum(squares, held);
      held = 0;
    }
  }
  return total;
}

}  // namespace

extern const tenfold::ZoKernels zo_kernels;
const tenfold::ZoKernels zo_kernels = {chain, adam, sample, words, stochastic_round, moments};

}  // namespace TF_NS
