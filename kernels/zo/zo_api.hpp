// The plain structures that csrc/ fills and the kernels read, shared by every CPU build and by CUDA. No math, no target namespace.
#pragma once

#include <cstdint>

namespace tenfold {

// A tensor as memory. ndim == 0 means contiguous; otherwise `sizes` and `strides` (in elements) give the logical row-major order,
// which is the order random numbers are counted in. `first` is the index of its first element there: not 0 for a shard of a larger tensor
// (CPU only).
struct View {
  void* data;
  int64_t numel;
  int32_t ndim;
  const int64_t* sizes;
  const int64_t* strides;
  int64_t first = 0;
};

// coef * z(seed, query), one summand of a chain. dist is a Purpose: 0 Gaussian, 1 Rademacher, 2 uniform, 7 Gaussian of 16 bits.
struct Term {
  uint64_t seed;
  double coef;
  uint32_t query;
  uint32_t dist;
};

// Which elements a pass leaves alone.
enum MaskKind : int { kNoMask = 0, kRandomMask = 1, kMagnitudeMask = 2, kBitMask = 3 };
struct MaskArgs {
  int kind = kNoMask;
  uint64_t seed = 0;
  uint32_t query = 0;
  const double* values = nullptr;     // one per tensor: the number of words, of 2^32, that mask; or the largest magnitude that moves
  const void* const* bits = nullptr;  // one per tensor: bit i%8 of byte i/8 is 1 where element i moves
};

constexpr int kNoRounding = -1;  // z_round: keep z in float32
constexpr int kMaxTerms = 64;

// theta = round(decay * source + sum_k coef_k z_k)
struct ChainArgs {
  const View* params;
  const View* sources;  // the clean copies, or params itself
  const uint32_t* streams;
  int64_t count;
  const Term* terms;
  int64_t n_terms;
  double decay;
  int dtype;    // DType of dtype.hpp
  int z_round;  // DType that z is rounded to first, or kNoRounding
  bool stochastic;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  int threads;
  MaskArgs mask = {};
};

// What is flipped in the rounding query for the bits that round bfloat16 states.
constexpr uint32_t kFirstState = 0x800000u;
constexpr uint32_t kSecondState = 0x400000u;

// Adam on g = sum_k coef_k z_k; the scalars are those of kernels/zo/zo_reference.py:adam_.
struct AdamArgs {
  ChainArgs chain;  // params, terms, decay, rounding
  const View* exp_avgs;
  const View* exp_avg_sqs;
  double beta1, beta2;
  double one_minus_beta1, one_minus_beta2;
  double inverse_correction;  // 1 / sqrt(1 - beta2^step)
  double eps;
  double rate;               // -lr / (1 - beta1^step)
  bool half_states = false;  // bfloat16
  bool radazo = false;       // the second moment follows the first one's square (arXiv 2502.01014)
};

struct MomentumArgs {
  ChainArgs chain;
  const View* buffers;
  bool half_states;
  double momentum, one_minus_dampening, rate;  // rate: -lr
  bool nesterov, first;
};

struct SignArgs {
  ChainArgs chain;
  double rate;
};

// theta = round(fma(coef, z / sqrt(h), source)), one term
struct HizooPerturbArgs {
  ChainArgs chain;
  const View* hessians;
};

struct HizooUpdateArgs {
  ChainArgs chain;
  const View* hessians;
  const double* curvatures;  // one per term
  double smoothing, one_minus_smoothing, rate, restore;
};

// Chains one after another on every tile, each rounded to the storage type.
struct ReplayPass {
  int64_t n_terms;
  double decay;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  MaskArgs mask;
};
struct ReplayArgs {
  const View* params;
  const uint32_t* streams;
  int64_t count;
  const Term* terms;  // of all passes in turn
  const ReplayPass* passes;
  int64_t n_passes;
  int dtype;
  int z_round;
  bool stochastic;
  int threads;
};

// Per tensor: the sum of z^2, z = 0 where masked. Only a magnitude mask looks at the tensors' memory.
struct SquareSumArgs {
  const View* tensors;
  const uint32_t* streams;
  int64_t count;
  uint64_t seed;
  uint32_t query, dist;
  MaskArgs mask;
  int dtype;
  double* out;
  int threads;
};

// Of the keys |theta| (bits of the float, or of the double if `wide`) whose bits above shift + kDigitBits equal `prefix`: how many have
// each value of the digit at `shift`. Added to counts[2^kDigitBits].
constexpr int kDigitBits = 11;
struct DigitArgs {
  const View* tensors;
  int64_t count;
  int dtype;
  bool wide;
  int shift;
  uint64_t prefix;
  int64_t* counts;
  int threads;
};

// |theta| <= thresholds[t], counted per tensor or written as bits.
struct WithinArgs {
  const View* tensors;
  int64_t count;
  int dtype;
  const double* thresholds;
  int64_t* counts;
  void* const* bits;
  int threads;
};

struct SampleArgs {
  uint64_t seed;
  uint32_t stream, query, dist;
  uint64_t first;
  int64_t n;
  int dtype;
  void* out;
  int threads;
};

struct WordsArgs {
  uint64_t seed;
  uint32_t stream, query, purpose;
  uint64_t first_block;
  int64_t blocks;
  int64_t* out;  // blocks x 4
  int threads;
};

// out = stochastic rounding of float32 x
struct RoundArgs {
  const float* x;
  int64_t n;
  void* out;
  int dtype;
  uint64_t seed;
  uint32_t stream, query;
  uint64_t first;
  int threads;
};

struct Moments {
  double sum, sum_of_squares;
};

// One table per instruction set.
struct ZoKernels {
  void (*chain)(const ChainArgs&);
  void (*adam)(const AdamArgs&);
  void (*sample)(const SampleArgs&);
  void (*words)(const WordsArgs&);
  void (*stochastic_round)(const RoundArgs&);
  Moments (*moments)(const SampleArgs&);  // of the elements sample would give, in float64, nothing written
  void (*momentum)(const MomentumArgs&);
  void (*sign)(const SignArgs&);
  void (*hizoo_perturb)(const HizooPerturbArgs&);
  void (*hizoo_update)(const HizooUpdateArgs&);
  void (*replay)(const ReplayArgs&);
  void (*square_sums)(const SquareSumArgs&);
  void (*count_digits)(const DigitArgs&);
  void (*count_within)(const WithinArgs&);
  void (*magnitude_bits)(const WithinArgs&);
};

}  // namespace tenfold
