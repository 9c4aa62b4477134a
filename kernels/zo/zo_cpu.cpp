// Zeroth-order passes on the CPU: traversal only. Compiled once per instruction set (CMakeLists.txt), into a namespace of its own.
// The passes with state stand in zo_state_cpu.cpp, what both share in zo_tile.hpp.
#include "zo_generate.hpp"
#include "zo_tile.hpp"

namespace TF_NS {
namespace {

bool is_one_normal(const ChainArgs& a, const View& param, const View& source) {
  return a.n_terms == 1 && (a.terms[0].dist == kGaussian || a.terms[0].dist == kGauss16) && a.decay == 1.0 && a.z_round == kNoRounding &&
         !a.stochastic && param.ndim == 0 && source.data == param.data;
}

// A chain on a tile of weights that were read, in the type of the math.
template <class M>
void chain_in_buffer(const Term* terms, int64_t n_terms, M decay, int z_round, const MaskArgs& mask, int64_t t, uint32_t stream,
                     int64_t start, int64_t first, int64_t n, M* acc) {
  TileMask masked;
  if (mask.kind != kNoMask) masked.draw(mask, t, stream, start, first, n, acc);
  if (decay != M(1)) {
    for (int64_t i = 0; i < n; ++i) acc[i] *= decay;
  }
  alignas(64) M decayed[kTile];
  if (mask.kind != kNoMask) {
    for (int64_t i = 0; i < n; ++i) decayed[i] = acc[i];
  }
  for (int64_t k = 0; k < n_terms; ++k) add_term<M>(terms[k], stream, static_cast<uint64_t>(first), n, z_round, acc);
  if (mask.kind != kNoMask) masked.put_back(decayed, n, acc);
}

template <class T>
void masked_chain_tile(const ChainArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M acc[kTile];
  load_tile<T>(a.sources[t], first, n, acc);
  chain_in_buffer<M>(a.terms, a.n_terms, static_cast<M>(a.decay), a.z_round, a.mask, t, a.streams[t], a.params[t].first, first, n, acc);
  RoundingBits bits;
  store_tile<T>(a.params[t], first, n, acc, kIsMath<T> ? nullptr : bits.draw(a, a.streams[t], first, n));
}

template <class T>
void chain_tile(const ChainArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  const View& param = a.params[t];
  const View& source = a.sources[t];
  const uint32_t stream = a.streams[t];
  if constexpr (!kIsMath<T>) {
    if (is_one_normal(a, param, source) && absent(param, first) == 0) {  // the common pass in half precision: registers all the way
      const Term& term = a.terms[0];
      const Sequence s = make_sequence(term.seed, stream, term.dist, term.query);
      T* out = static_cast<T*>(param.data) + (first - param.first);
      const MultiplyAdd add = {static_cast<float>(term.coef)};
      if (term.dist == kGauss16) return generate<Gaussian16>(s, static_cast<uint64_t>(first), n, out, add);
      return generate<Gaussian>(s, static_cast<uint64_t>(first), n, out, add);
    }
  }
  alignas(64) M buffer[kTile];
  M* acc = buffer;
  bool in_place = false;
  if constexpr (kIsMath<T>) {
    in_place = param.ndim == 0 && absent(param, first) == 0;
    if (in_place) acc = static_cast<M*>(param.data) + (first - param.first);
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

void chain(const ChainArgs& a) {
  with_dtype(a.dtype, [&](auto type) {
    using T = decltype(type);
    if (a.mask.kind == kNoMask) {
      each_tile(a.params, a.count, a.threads, [&](int64_t t, int64_t first, int64_t n) { chain_tile<T>(a, t, first, n); });
    } else {
      each_tile(a.params, a.count, a.threads, [&](int64_t t, int64_t first, int64_t n) { masked_chain_tile<T>(a, t, first, n); });
    }
  });
}

// All passes on one tile while it is in the cache, each ending in the storage type.
template <class T>
void replay_tile(const ReplayArgs& a, int64_t t, int64_t first, int64_t n) {
  using M = math_t<T>;
  alignas(64) M acc[kTile];
  alignas(64) T stored[kTile];
  const uint32_t stream = a.streams[t];
  const View whole = {stored, n, 0, nullptr, nullptr};
  load_tile<T>(a.params[t], first, n, acc);
  const Term* terms = a.terms;
  for (int64_t p = 0; p < a.n_passes; ++p) {
    const ReplayPass& pass = a.passes[p];
    chain_in_buffer<M>(terms, pass.n_terms, static_cast<M>(pass.decay), a.z_round, pass.mask, t, stream, a.params[t].first, first, n, acc);
    terms += pass.n_terms;
    if constexpr (!kIsMath<T>) {
      RoundingBits bits;
      const half_word* r16 = a.stochastic ? bits.draw(pass.rounding_seed, pass.rounding_query, stream, first, n) : nullptr;
      store_tile<T>(whole, 0, n, acc, r16);
      widen(stored, n, acc);
    }
  }
  store_tile<T>(a.params[t], first, n, acc, nullptr);
}

void replay(const ReplayArgs& a) {
  with_dtype(a.dtype, [&](auto type) {
    each_tile(a.params, a.count, a.threads, [&](int64_t t, int64_t first, int64_t n) { replay_tile<decltype(type)>(a, t, first, n); });
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

// pairwise_sum of a stream: the same bits as if all values stood in one array.
struct PairwiseSum {
  double partial[64];
  int depth = 0;
  int64_t seen = 0;
  void add(double value) {
    for (int64_t carry = seen++; carry & 1; carry >>= 1) value = partial[--depth] + value;
    partial[depth++] = value;
  }
  double total() const {
    double sum = 0.0;
    for (int i = depth; i > 0; --i) sum = partial[i - 1] + sum;
    return sum;
  }
};

template <class T>
double square_sum_of_tile(const SquareSumArgs& a, int64_t t, int64_t first, int64_t n) {
  alignas(64) float z[kTile];
  draw(make_sequence(a.seed, a.streams[t], a.dist, a.query), a.dist, static_cast<uint64_t>(first), n, z);
  if (a.mask.kind != kNoMask) {
    alignas(64) math_t<T> x[kTile];
    if (a.mask.kind == kMagnitudeMask) load_tile<T>(a.tensors[t], first, n, x);
    TileMask masked;
    masked.draw(a.mask, t, a.streams[t], a.tensors[t].first, first, n, x);
    masked.clear(n, z);
  }
  return piece_sum(z, n, [](double value) { return value * value; });
}

// Tiles are joined in chunks of 512, a power of two, so that the order of the sums is that of one pairwise_sum.
void square_sums(const SquareSumArgs& a) {
  constexpr int64_t kChunk = 512;
  with_dtype(a.dtype, [&](auto type) {
    for (int64_t t = 0; t < a.count; ++t) {
      const int64_t numel = a.tensors[t].numel;
      PairwiseSum sum;
      for (int64_t from = 0; from < tiles_of(numel); from += kChunk) {
        double sums[kChunk];
        const int64_t tiles = smaller(kChunk, tiles_of(numel) - from);
        parallel_ranges(
            tiles, a.threads,
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                const int64_t first = (from + i) * kTile;
                sums[i] = square_sum_of_tile<decltype(type)>(a, t, first, smaller(kTile, numel - first));
              }
            },
            kGrain);
        sum.add(pairwise_sum(sums, tiles));
      }
      a.out[t] = sum.total();
    }
  });
}

TF_HD uint64_t magnitude_key(float x, bool wide) {
  if (!wide) return bits_of(x) & 0x7FFFFFFFu;
  return bit_cast<uint64_t>(static_cast<double>(x)) & 0x7FFFFFFFFFFFFFFFu;
}
TF_HD uint64_t magnitude_key(double x, bool) { return bit_cast<uint64_t>(x) & 0x7FFFFFFFFFFFFFFFu; }

void count_digits(const DigitArgs& a) {
  constexpr int64_t kBins = int64_t{1} << kDigitBits;
  with_dtype(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(
        tiles_of_all(a.tensors, a.count), a.threads,
        [&](int64_t begin, int64_t end) {
          int64_t bins[2][kBins] = {};  // two, because equal neighbours would wait for each other's sum
          walk_tiles(a.tensors, a.count, begin, end, [&](int64_t t, int64_t first, int64_t n) {
            alignas(64) math_t<T> x[kTile];
            load_tile<T>(a.tensors[t], first, n, x);
            for (int64_t i = 0; i < n; ++i) {
              const uint64_t key = magnitude_key(x[i], a.wide);
              if (key >> a.shift >> kDigitBits == a.prefix) ++bins[i & 1][(key >> a.shift) & (kBins - 1)];
            }
          });
          for (int64_t b = 0; b < kBins; ++b) {
            const int64_t seen = bins[0][b] + bins[1][b];
            if (seen != 0) __atomic_fetch_add(a.counts + b, seen, __ATOMIC_RELAXED);
          }
        },
        kGrain);
  });
}

// Calls visit(tensor, first, count, TileMask) with what lies above the threshold masked.
template <class Visit>
void each_tile_above(const WithinArgs& a, const Visit& visit) {
  with_dtype(a.dtype, [&](auto type) {
    using T = decltype(type);
    each_tile(a.tensors, a.count, a.threads, [&](int64_t t, int64_t first, int64_t n) {
      alignas(64) math_t<T> x[kTile];
      load_tile<T>(a.tensors[t], first, n, x);
      TileMask above;
      above.magnitude(static_cast<math_t<T>>(a.thresholds[t]) + math_t<T>(0), x, n);
      visit(t, first, n, above);
    });
  });
}

void count_within(const WithinArgs& a) {
  each_tile_above(a, [&](int64_t t, int64_t, int64_t n, TileMask& above) {
    uint32_t within = 0;
    for (int64_t i = 0; i < n; ++i) within += above.words[i] < above.limit ? 0u : 1u;
    __atomic_fetch_add(a.counts + t, static_cast<int64_t>(within), __ATOMIC_RELAXED);
  });
}

void magnitude_bits(const WithinArgs& a) {
  each_tile_above(a, [&](int64_t t, int64_t first, int64_t n, TileMask& above) {
    uint8_t* out = static_cast<uint8_t*>(a.bits[t]) + first / 8;
    for (int64_t i = n; i < (n + 7) / 8 * 8; ++i) above.words[i] = 0;  // spare bits are 0
    for (int64_t b = 0; b < (n + 7) / 8; ++b) {
      uint32_t byte = 0;
      for (uint32_t j = 0; j < 8; ++j) byte |= (above.words[8 * b + j] < above.limit ? 0u : 1u) << j;
      out[b] = static_cast<uint8_t>(byte);
    }
  });
}

}  // namespace

extern const tenfold::ZoKernels zo_kernels;
const tenfold::ZoKernels zo_kernels = {chain,        zo_adam,      sample,           words,           stochastic_round, moments,
                                       zo_momentum,  zo_sign,      zo_hizoo_perturb, zo_hizoo_update, replay,           square_sums,
                                       count_digits, count_within, magnitude_bits};

}  // namespace TF_NS
