// Prints a digest of what the CPU kernels compute, to compare instruction sets across machines.
#include "digest.hpp"
#include <cstdio>
#include <cstring>
#include <vector>
#include "zo/zo_api.hpp"
namespace TF_NS {
extern const tenfold::ZoKernels zo_kernels;
}
using namespace tenfold;
// The passes that take a mask, and those with state, for each kind of mask.
static void stateful(const ZoKernels& k) {
  const int64_t n = 70011;
  const size_t size[4] = {4, 8, 2, 2};
  uint32_t stream = 9;
  const Term terms[2] = {{7, 1e-3, 0, 7}, {8, -2e-3, 3, 0}};
  const double curvatures[2] = {0.5, 0.25};
  std::vector<unsigned char> moves(n);
  k.sample({2, 0, 0, 0, 0, n / 8, 0, moves.data(), 1});
  const void* bits = moves.data();
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int kind = kNoMask; kind <= kBitMask; ++kind)
      for (int half = 0; half < (dtype == 1 ? 1 : 2); ++half) {
        const size_t wide = dtype == 1 ? 8 : half ? 2 : 4;
        const int state = dtype == 1 ? 1 : half ? 2 : 0;
        std::vector<unsigned char> p(n * 8), m(n * 8), v(n * 8), h(n * 8);
        k.sample({42, 5, 1, 0, 3, n, dtype, p.data(), 1});
        k.sample({42, 6, 1, 2, 3, n, state, m.data(), 1});
        k.sample({42, 7, 1, 2, 3, n, state, v.data(), 1});
        k.sample({42, 8, 1, 2, 3, n, dtype == 1 ? 1 : 0, h.data(), 1});
        View view{p.data(), n, 0, nullptr, nullptr}, vm{m.data(), n, 0, nullptr, nullptr}, vv{v.data(), n, 0, nullptr, nullptr},
            vh{h.data(), n, 0, nullptr, nullptr};
        const double value = kind == kRandomMask ? 1e9 : 0.7;
        MaskArgs mask;
        mask.kind = kind;
        mask.seed = 5;
        mask.values = &value;
        mask.bits = &bits;
        ChainArgs chain{&view, &view, &stream, 1, terms, 2, 0.99, dtype, -1, half == 1, 77, 2, 1, mask};
        k.chain(chain);
        k.momentum({chain, &vm, half == 1, 0.9, 1.0, -0.1, true, false});
        k.adam({chain, &vm, &vv, 0.9, 0.99, 0.1, 0.01, 1.5, 1e-8, -0.1, half == 1, kind == kRandomMask});
        k.sign({chain, -0.01});
        ChainArgs one = chain;
        one.n_terms = 1;
        k.hizoo_perturb({one, &vh});
        k.hizoo_update({one, &vh, curvatures, 0.1, 0.9, -0.1, 0.3});
        k.hizoo_update({chain, &vh, curvatures, 0.1, 0.9, -0.1, 0.0});
        const ReplayPass passes[2] = {{1, 0.9, 5, 6, {}}, {1, 1.0, 7, 8, kind == kRandomMask ? mask : MaskArgs{}}};
        k.replay({&view, &stream, 1, terms, passes, 2, dtype, -1, half == 1, 1});
        double norm = 0, threshold = 0.5;
        k.square_sums({&view, &stream, 1, 3, 4, 7, mask, dtype, &norm, 1});
        int64_t within = 0, digits[1 << kDigitBits] = {};
        std::vector<unsigned char> packed((n + 7) / 8);
        void* out = packed.data();
        k.count_within({&view, 1, dtype, &threshold, &within, nullptr, 1});
        k.magnitude_bits({&view, 1, dtype, &threshold, nullptr, &out, 1});
        k.count_digits({&view, 1, dtype, true, 52, 0, digits, 1});
        std::printf("stateful %d %d %d %016lx %016lx %016lx %016lx %a %ld %016lx %016lx\n", dtype, kind, half,
                    (unsigned long)digest(p.data(), n * size[dtype]), (unsigned long)digest(m.data(), n * wide),
                    (unsigned long)digest(v.data(), n * wide), (unsigned long)digest(h.data(), n * (dtype == 1 ? 8 : 4)), norm,
                    (long)within, (unsigned long)digest(packed.data(), packed.size()), (unsigned long)digest(digits, sizeof(digits)));
      }
}
int main() {
  const ZoKernels& k = TF_NS::zo_kernels;
  const int64_t n = 300007;
  const size_t size[4] = {4, 8, 2, 2};
  stateful(k);
  for (uint32_t dist : {0u, 1u, 2u, 7u})
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
