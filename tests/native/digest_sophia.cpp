// Prints a digest of what the Sophia kernels compute, and what the row kernels do, to compare instruction sets across machines. Sophia and
// the labels that are drawn are the same to the bit; other sums over a row are float32 in the order of the lanes, and shown to 4 places.
#include <cstdio>
#include <cstring>
#include <vector>
#include "digest.hpp"
#include "logprob/rows_api.hpp"
#include "sophia/sophia_api.hpp"
namespace TF_NS {
extern const tenfold::SophiaKernels sophia_kernels;
extern const tenfold::RowKernels row_kernels;
}  // namespace TF_NS
using namespace tenfold;

// Every combination of dtype, state, denominator and rounding; with and without statistics.
static void sophia() {
  const SophiaKernels& k = TF_NS::sophia_kernels;
  const int64_t n = 20011;
  const size_t size[4] = {4, 8, 2, 2};
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int state = 0; state < (dtype == 1 ? 1 : 3); ++state)
      for (int way = 0; way < 4; ++way) {
        auto p = drawn(n, dtype, 0.05f), g = drawn(n, dtype, 1e-2f), c = drawn(n, dtype, 0.0f), master = drawn(n, 0, 0.05f);
        auto m = drawn(n, dtype == 1 ? 1 : 0, 1e-2f), h = drawn(n, dtype == 1 ? 1 : 0, 1e-2f, true);
        std::vector<float> m_scale((n + 255) / 256, 0.01f), h_scale((n + 255) / 256, 0.1f);
        std::vector<uint8_t> m8(n), h8(n);
        if (state == kStateHalf) m = drawn(n, 2, 1e-2f), h = drawn(n, 2, 1e-2f, true);
        if (state == kStateByte) {
          k.encode({reinterpret_cast<float*>(m.data()), m8.data(), m_scale.data(), n, false, way % 2 == 1, 5, 6, 7, 1});
          k.encode({reinterpret_cast<float*>(h.data()), h8.data(), h_scale.data(), n, true, way % 2 == 1, 5, 6, 7, 1});
          m.assign(m8.begin(), m8.end()), h.assign(h8.begin(), h8.end());
        }
        SophiaTensor t = {};
        t.param = p.data(), t.grad = g.data(), t.exp_avg = m.data(), t.hessian = way == 3 ? nullptr : h.data();
        t.exp_avg_scale = m_scale.data(), t.hessian_scale = h_scale.data(), t.numel = n, t.stream = 9;
        if (way == 1) t.compensation = c.data();
        if (way == 2 && dtype != 1) t.master = reinterpret_cast<float*>(master.data());
        double stats[kSophiaStats] = {};
        SophiaStepArgs a = {};
        a.tensors = &t, a.count = 1, a.dtype = a.grad_dtype = dtype, a.state = state;
        a.denom = way == 3 ? kDenomSign : way % 2 ? kDenomAdd : kDenomMax;
        a.beta1 = 0.9, a.one_minus_beta1 = 0.1, a.beta2 = 0.95, a.one_minus_beta2 = 0.05, a.denom_scale = 0.7, a.eps = 1e-12;
        a.rate = -1e-3, a.decay = 0.9999, a.shrink = -1e-4, a.update_hessian = way == 1 || way == 2;
        a.skip = way == 2, a.stochastic = way != 1, a.seed = 77, a.step = 3, a.threads = 1;
        for (int step = 0; step < 2; ++step) {
          a.stats = step == 1 ? stats : nullptr;
          k.step(a);
          if (t.hessian != nullptr) {
            SophiaHessianTensor r = {h.data(), h_scale.data(), g.data(), way == 1 ? p.data() : nullptr, n, 9};
            k.hessian({&r, 1, dtype == 1 ? 1 : 0, dtype, state, 0.99, 0.3, 77, 4, nullptr, nullptr, 1});
          }
        }
        std::printf("sophia %d %d %d %016lx %016lx %016lx %016lx %a %a %a %a %a\n", dtype, state, way,
                    (unsigned long)digest(p.data(), n * size[dtype]), (unsigned long)digest(m.data(), m.size()),
                    (unsigned long)digest(h.data(), h.size()), (unsigned long)digest(master.data(), master.size()), stats[0], stats[1],
                    stats[2], stats[3], stats[4]);
      }
}

static void rows() {
  const RowKernels& k = TF_NS::row_kernels;
  const int64_t count = 7, vocabulary = 5003;
  std::vector<int64_t> targets = {0, 5002, -1, 77, 2048, 4096, 1};
  for (int dtype : {0, 2, 3})
    for (int capped = 0; capped < 2; ++capped) {
      auto logits = drawn(count * vocabulary, dtype, 9.0f), out = logits;
      const Rows in = {logits.data(), count, count, 0, vocabulary}, to = {out.data(), count, count, 0, vocabulary};
      const RowShape shape = {vocabulary, dtype, capped ? 5.0f : 0.0f, capped ? 0.7f : 1.0f}, plain = {vocabulary, dtype, 0.0f, 1.0f};
      std::vector<double> v[8];
      for (auto& column : v) column.assign(count, 0.5);
      std::vector<int64_t> found(count, -1);
      k.forward({in, shape, targets.data(), v[0].data(), v[1].data(), found.data(), v[2].data(), v[3].data(), v[4].data(), 1});
      for (int64_t r = 0; r < count; ++r)
        std::printf("forward %d %d %.4f %.4f %ld %.4f %.4f %.4f\n", dtype, capped, v[0][r], v[1][r], (long)found[r], v[2][r], v[3][r],
                    v[4][r]);
      std::vector<double> uniforms = {0.1, 0.5, -1.0, 0.999, 1e-9, 0.25, 0.75};
      k.sample({in, plain, uniforms.data(), found.data(), v[0].data(), v[2].data(), 1});
      for (int64_t r = 0; r < count; ++r) std::printf("sample %d %ld %.4f\n", dtype, (long)found[r], v[0][r]);
      k.ceu({in, plain, targets.data(), v[3].data(), v[4].data(), v[0].data(), 1});
      for (int64_t r = 0; r < count; ++r) std::printf("ceu %d %.4f %.4f\n", dtype, v[3][r], v[0][r]);
      k.softmax({to, in, shape, targets.data(), v[1].data(), v[5].data(), v[6].data(), 1});
      if (dtype == 0) {
        const float* x = reinterpret_cast<const float*>(out.data());
        for (int64_t r = 0; r < count; ++r) std::printf("softmax %d %.4f %.4f\n", capped, x[r * vocabulary + 3], x[r * vocabulary + 5000]);
        auto ref = drawn(count * vocabulary, 0, 9.0f);
        const Rows other = {ref.data(), count, count, 0, vocabulary};
        for (int kind = 0; kind < 3; ++kind) {
          RowDivergenceArgs d = {to,   in,          other,       vocabulary,  targets.data(), 2.0f,
                                 kind, v[0].data(), v[1].data(), v[2].data(), v[5].data(),    1};
          k.divergence(d);
          k.divergence_backward(d);
          for (int64_t r = 0; r < count; ++r)
            std::printf("divergence %d %.4f %.4f %.4f %.4f\n", kind, v[0][r], v[1][r], v[2][r], x[r * vocabulary + 17]);
        }
      }
    }
}

int main() {
  sophia();
  rows();
}
