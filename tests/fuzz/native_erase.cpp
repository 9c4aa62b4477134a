// Keys of weights, the selection between two of them, masks as bits, sums and masked Adam.
#include "erase/erase_api.hpp"
#include "native.hpp"
TF_TABLES(Erase, erase)
using namespace tenfold;

static void keys(Bytes& in) {
  const int dtype = in.byte() % 4;
  const bool wide = dtype == 1, flip = in.flag();
  const int64_t count = in.size(1, 3), asked = in.size(1, 40);
  std::vector<std::vector<unsigned char>> held;
  std::vector<EraseTensor> tensors;
  int64_t total = 0;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t n = in.size(t == 0 ? 1 : 0, 200);
    held.push_back(in.typed(n, dtype));
    total += n;
  }
  for (const auto& x : held) tensors.push_back({x.data(), static_cast<int64_t>(x.size()) / Bytes::width(dtype)});
  const EraseKeys all = {tensors.data(), count, dtype, wide, 1};
  const int64_t a = static_cast<int64_t>(in.word() >> (wide ? 1 : 33)), b = static_cast<int64_t>(in.word() >> (wide ? 1 : 33));
  const int64_t lo = a < b ? a : b, hi = a < b ? b : a, capacity = in.size(0, 64);
  on_each("erase", TF_EACH(erase), true, [&](const EraseKernels& k) {
    std::vector<int64_t> counts(kEraseCounts), stored(1);
    std::vector<unsigned char> sample(asked * (wide ? 8 : 4)), room(capacity * (wide ? 8 : 4));
    std::vector<std::vector<uint8_t>> bits;
    std::vector<uint8_t*> to;
    for (const auto& t : tensors) bits.emplace_back((t.numel + 7) / 8);
    for (auto& x : bits) to.push_back(x.data());
    k.sample({all, asked, sample.data()});
    k.bracket({all, lo, hi, counts.data(), room.data(), capacity, stored.data()});
    k.bits({all, lo, flip, to.data()});
    require(stored[0] >= 0 && stored[0] + counts[kBelow] + counts[kAtLow] <= total, "bracket", "counted more keys than there are");
    Found found;
    found.add("counts", counts), found.add("stored", stored), found.add("sample", sample);
    for (const auto& x : bits) found.add("bits", x);
    return found;
  });
}

static void sums(Bytes& in) {
  const int acc = in.byte() % 2, grad = in.byte() % 4, weight = in.byte() % 4, mode = in.byte() % 3;
  const int64_t n = in.size(0, 300);
  const auto start = in.typed(n, acc), g = in.typed(n, grad), w = in.typed(n, weight);
  on_each("sum", TF_EACH(erase), true, [&](const EraseKernels& k) {
    auto out = start;
    const EraseSumTensor t = {out.data(), g.data(), mode == kProduct ? w.data() : nullptr, n};
    k.sum({&t, 1, acc, grad, weight, mode, 1});
    Found found;
    found.add("sum", out, acc);
    return found;
  });
}

static void adam(Bytes& in) {
  const int dtype = in.byte() % 4, state = dtype == 1 ? 1 : in.flag() ? 0 : dtype;
  const int64_t n = in.size(0, 300);
  const auto p = in.typed(n, dtype), g = in.typed(n, dtype), m = in.typed(n, state), v = in.typed(n, state, true);
  const auto bits = in.integers<uint8_t>((n + 7) / 8, 0, 255);
  on_each("adam", TF_EACH(erase), true, [&](const EraseKernels& k) {
    auto p1 = p, m1 = m, v1 = v;
    const EraseAdamTensor t = {p1.data(), g.data(), m1.data(), v1.data(), bits.data(), n};
    k.adam({&t, 1, dtype, state, 0.9, 0.1, 0.99, 0.01, 1.5, 1e-8, -1e-3, 1});
    for (int64_t i = 0; i < n; ++i)
      if ((bits[i / 8] >> i % 8 & 1) == 0)
        require(std::memcmp(&p1[i * Bytes::width(dtype)], &p[i * Bytes::width(dtype)], Bytes::width(dtype)) == 0, "adam",
                "moved a masked weight");
    Found found;
    found.add("param", p1, dtype), found.add("exp_avg", m1, state), found.add("exp_avg_sq", v1, state);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  void (*const targets[])(Bytes&) = {keys, sums, adam};
  const int chosen = in.byte() % 3;
  in.tame = in.flag();
  targets[chosen](in);
  return 0;
}
