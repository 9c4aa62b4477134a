// Which instruction sets this binary holds, which this machine can run, and which one is in use.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace tenfold {

struct Isa {
  const char* name;
  bool available;
};

// Best last. The tests name every feature the flags in CMakeLists.txt switch on.
inline std::vector<Isa> compiled_isas() {
  std::vector<Isa> out = {{"baseline", true}};
#if defined(__x86_64__) && (defined(TF_HAVE_AVX2) || defined(TF_HAVE_AVX512))
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#if defined(TF_HAVE_AVX2)
  out.push_back({"avx2", avx2});
#endif
#if defined(TF_HAVE_AVX512)
  out.push_back({"avx512", avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")});
#endif
#if defined(TF_HAVE_NEON)
  out.push_back({"neon", true});
#endif
  return out;
}

}  // namespace tenfold
