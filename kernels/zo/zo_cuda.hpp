// What csrc/cuda_module.cpp calls. Everything is launched on `stream` (a cudaStream_t) of the current device: no synchronisation and no
// allocation, so a call may be captured into a CUDA graph. Each returns null, or what CUDA says about the launch.
#pragma once

#include "zo_api.hpp"

namespace tf_cuda {

// `device_terms`, if not null, is an array in device memory that the kernel reads when it runs, in place of what the arguments hold:
// element 0 is {rounding seed, decay, rounding query, unused} and element 1 + k is term k; its length is 1 + n_terms. A captured graph can
// then be replayed with other seeds and coefficients.
const char* zo_chain(const tenfold::ChainArgs& a, const tenfold::Term* device_terms, void* stream);
const char* zo_adam(const tenfold::AdamArgs& a, const tenfold::Term* device_terms, void* stream);

const char* zo_sample(const tenfold::SampleArgs& a, void* stream);
const char* zo_words(const tenfold::WordsArgs& a, void* stream);
const char* zo_stochastic_round(const tenfold::RoundArgs& a, void* stream);

// Tensors one launch can take: a call with more, or with some that are not contiguous, makes more launches.
int zo_tensors_per_launch();

}  // namespace tf_cuda
