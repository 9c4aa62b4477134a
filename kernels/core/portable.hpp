// What every kernel header needs: the host/device marker and the per-target namespace.
//
// Kernel math is written once, in headers, and compiled several times: for each CPU instruction set and for CUDA.
// Each of those builds defines TF_NS to a name of its own, so that no two builds ever share a symbol. Sharing one would let the
// linker keep the AVX-512 copy of an inline function and hand it to a CPU that has no AVX-512.
#pragma once

#include <cstdint>

#ifndef TF_NS
#error "define TF_NS (tf_baseline, tf_avx2, tf_avx512, tf_neon, tf_cuda) before including a kernel header"
#endif

#if defined(TF_SANITIZE)
#define TF_HD inline  // instrumented code that is forced inline takes a compiler a quarter of an hour
#elif defined(__CUDACC__)
#define TF_HD __host__ __device__ __forceinline__
#else
#define TF_HD inline __attribute__((always_inline))
#endif
