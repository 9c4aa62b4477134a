// What csrc/cuda_module.cpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no
// allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include "zo_api.hpp"

namespace tf_cuda {

// `device_terms`, if not null, is an array in device memory that the kernel reads when it runs, in place of what the arguments hold:
// element 0 is {rounding seed, decay, rounding query, unused} and element 1 + k is term k; its length is 1 + n_terms. A captured graph can
// then be replayed with other seeds and coefficients. Such a chain takes no mask.
const char* zo_chain(const tenfold::ChainArgs& a, const tenfold::Term* device_terms, void* stream);

const char* zo_adam(const tenfold::AdamArgs& a, void* stream);
const char* zo_momentum(const tenfold::MomentumArgs& a, void* stream);
const char* zo_sign(const tenfold::SignArgs& a, void* stream);
const char* zo_hizoo_perturb(const tenfold::HizooPerturbArgs& a, void* stream);
const char* zo_hizoo_update(const tenfold::HizooUpdateArgs& a, void* stream);
const char* zo_replay(const tenfold::ReplayArgs& a, void* stream);

// Sums of elements firsts[t] .. of a direction and of their squares, 0 where masked, for each run of 2,048 elements of the counter in the
// order of piece_sum (reduce.hpp). out[t].data, in device memory, takes one Moments per run; out[t].numel is firsts[t] % 2048 + elements.
struct PieceSumArgs {
  const tenfold::View* out;
  const tenfold::View* tensors;  // what a magnitude mask looks at
  const uint32_t* streams;
  const uint64_t* firsts;
  int64_t count;
  uint64_t seed;
  uint32_t query, dist;
  tenfold::MaskArgs mask;
  int dtype;  // of `tensors`
};
const char* zo_piece_sums(const PieceSumArgs& a, void* stream);

// The counts of these are in device memory, and added to.
const char* zo_count_digits(const tenfold::DigitArgs& a, void* stream);
const char* zo_count_within(const tenfold::WithinArgs& a, void* stream);
const char* zo_magnitude_bits(const tenfold::WithinArgs& a, void* stream);

const char* zo_sample(const tenfold::SampleArgs& a, void* stream);
const char* zo_words(const tenfold::WordsArgs& a, void* stream);
const char* zo_stochastic_round(const tenfold::RoundArgs& a, void* stream);

// Tensors one launch of the plain chain can take: a call with more, or with some that are not contiguous, makes more launches.
int zo_tensors_per_launch();

}  // namespace tf_cuda
