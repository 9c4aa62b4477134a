// Prints a digest of what the CPU kernels compute, to compare instruction sets across machines.
#include <cstdio>
#include <cstring>
#include <vector>
#include "zo/zo_api.hpp"
namespace TF_NS {
extern const tenfold::ZoKernels zo_kernels;
}
using namespace tenfold;
static uint64_t digest(const void* p, size_t n) {
  uint64_t h = 1469598103934665603ull;
  for (size_t i = 0; i < n; ++i) h = (h ^ static_cast<const unsigned char*>(p)[i]) * 1099511628211ull;
  return h;
}
int main() {
  const ZoKernels& k = TF_NS::zo_kernels;
  const int64_t n = 300007;
  const size_t size[4] = {4, 8, 2, 2};
  for (uint32_t dist = 0; dist < 3; ++dist)
    for (int dtype = 0; dtype < 4; ++dtype) {
      std::vector<unsigned char> out(n * 8);
      k.sample({42, 5, 1, dist, (1ull << 34) - 77, n, dtype, out.data(), 1});
      std::printf("sample %u %d %016lx\n", dist, dtype, (unsigned long)digest(out.data(), n * size[dtype]));
      for (int stochastic = 0; stochastic < 2; ++stochastic)
        for (int z_round = -1; z_round < 4; z_round += 3) {
          View v{out.data(), n, 0, nullptr, nullptr};
          uint32_t stream = 9;
          Term t[2] = {{7, 1e-3, 0, dist}, {8, -2e-3, 3, 0}};
          for (int terms = 1; terms <= 2; ++terms) {
            k.chain({&v, &v, &stream, 1, t, terms, terms == 1 ? 1.0 : 0.99, dtype, z_round, stochastic == 1, 77, 2, 1});
            std::printf("chain %u %d %d %d %d %016lx\n", dist, dtype, stochastic, z_round, terms,
                        (unsigned long)digest(out.data(), n * size[dtype]));
          }
        }
    }
  std::vector<float> x(n);
  std::vector<uint16_t> y(n);
  k.sample({1, 0, 0, 0, 0, n, 0, x.data(), 1});
  for (auto& v : x) v *= v * v * 1e-3f;
  for (int dtype = 2; dtype < 4; ++dtype) {
    k.stochastic_round({x.data(), n, y.data(), dtype, 3, 1, 2, 5, 1});
    std::printf("sr %d %016lx\n", dtype, (unsigned long)digest(y.data(), n * 2));
  }
  Moments m = k.moments({42, 0, 0, 0, 0, 100000, 0, nullptr, 1});
  std::printf("moments %a %a\n", m.sum, m.sum_of_squares);
}
