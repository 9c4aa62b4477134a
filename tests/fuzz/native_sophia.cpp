// Sophia's step, its Hessian and the 8-bit codes: every dtype, state, denominator and rounding, states of any values.
#include "native.hpp"
#include "sophia/sophia_api.hpp"
TF_TABLES(Sophia, sophia)
using namespace tenfold;

static void steps(Bytes& in) {
  const int dtype = in.byte() % 4, state = dtype == 1 ? 0 : in.byte() % 3, way = in.byte() % 8, denom = in.byte() % 3;
  const int64_t n = in.size(0, 700), blocks = (n + 255) / 256;
  const int held = state == kStateHalf ? 2 : dtype == 1 ? 1 : 0;
  const auto p = in.typed(n, dtype), g = in.typed(n, dtype), c = in.typed(n, dtype), master = in.typed(n, 0), probe = in.typed(n, dtype);
  const auto codes = in.integers<unsigned char>(n, 0, 255), m = in.typed(n, held), h = in.typed(n, held, true);
  const auto scale = in.numbers<float>(blocks, true);
  on_each("sophia", TF_EACH(sophia), true, [&](const SophiaKernels& k) {
    auto p1 = p, c1 = c, master1 = master, m1 = state == kStateByte ? codes : m, h1 = state == kStateByte ? codes : h;
    auto ms = scale, hs = scale;
    std::vector<double> stats(kSophiaStats);
    SophiaTensor t = {};
    t.param = p1.data(), t.grad = g.data(), t.exp_avg = m1.data(), t.hessian = denom == kDenomSign ? nullptr : h1.data();
    t.exp_avg_scale = ms.data(), t.hessian_scale = hs.data(), t.numel = n, t.stream = 9;
    if (way == 1) t.compensation = c1.data();
    if (way == 2 && dtype != 1) t.master = reinterpret_cast<float*>(master1.data());
    SophiaStepArgs a = {};
    a.tensors = &t, a.count = 1, a.dtype = a.grad_dtype = dtype, a.state = state, a.denom = denom;
    a.beta1 = 0.9, a.one_minus_beta1 = 0.1, a.beta2 = 0.95, a.one_minus_beta2 = 0.05, a.denom_scale = 0.7, a.eps = 1e-12;
    a.rate = -1e-3, a.decay = 0.9999, a.shrink = -1e-4, a.update_hessian = way % 2 == 1 && denom != kDenomSign;
    a.skip = way == 2, a.stochastic = way != 1, a.seed = 77, a.step = 3, a.threads = 1, a.stats = way > 3 ? stats.data() : nullptr;
    k.step(a);
    if (t.hessian != nullptr) {
      SophiaHessianTensor r = {h1.data(), hs.data(), g.data(), way == 1 ? probe.data() : nullptr, n, 9};
      k.hessian({&r, 1, dtype == 1 ? 1 : 0, dtype, state, 0.99, 0.3, 77, 4, nullptr, nullptr, 1});
    }
    Found found;
    found.add("param", p1, dtype), found.add("scales", ms), found.add("hessian's scales", hs);
    if (state != kStateByte) found.add("state", m1, held), found.add("hessian", h1, held);
    return found;
  });
}

static void codes(Bytes& in) {
  const int64_t n = in.size(0, 700), blocks = (n + 255) / 256;
  const bool hessian = in.flag(), stochastic = in.flag();
  const auto values = in.numbers<float>(n, hessian);
  on_each("codes", TF_EACH(sophia), true, [&](const SophiaKernels& k) {
    auto given = values, back = values;
    std::vector<uint8_t> coded(n);
    std::vector<float> scales(blocks);
    k.encode({given.data(), coded.data(), scales.data(), n, hessian, stochastic, 5, 6, 7, 1});
    k.decode({back.data(), coded.data(), scales.data(), n, hessian, stochastic, 5, 6, 7, 1});
    Found found;
    found.add("codes", coded), found.add("scales", scales), found.add("decoded", back);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const bool coding = in.flag();
  in.tame = in.flag();
  coding ? codes(in) : steps(in);
  return 0;
}
