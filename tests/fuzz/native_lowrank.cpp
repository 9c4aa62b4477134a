// Matrices moved along U V^T, factors and their sums: every layout, rank and number of terms, equal to the bit.
#include "lowrank/lowrank_api.hpp"
#include "native.hpp"
TF_TABLES(LowRank, lowrank)
using namespace tenfold;

static std::vector<LowRankTerm> terms(Bytes& in, int64_t n) {
  std::vector<LowRankTerm> out;
  for (int64_t i = 0; i < n; ++i) {
    const float x = in.number();
    out.push_back({in.word(), std::isfinite(x) ? x : 0.5, static_cast<uint32_t>(in.size(0, 9))});
  }
  return out;
}

struct Drawn {
  std::vector<unsigned char> data, source;
  std::vector<float> vt, u;
  LowRankMatrix matrix;
};

static Drawn matrix(Bytes& in, int dtype, bool given) {
  const int64_t rows = in.size(1, 37), columns = in.size(1, in.byte() % 8 == 0 ? 600 : 70);
  const int32_t rank = static_cast<int32_t>(in.size(1, in.byte() % 8 == 0 ? kMaxRank : 9));
  const Layout own(in, {rows, columns}), from(in, {rows, columns}, true);
  const bool apart = in.flag();
  Drawn out = {in.typed(own.reach, dtype),
               in.typed(apart ? from.reach : 0, dtype),
               in.numbers<float>(rank * columns),
               in.numbers<float>(given ? rows * rank : 0),
               {}};
  const Layout& read = apart ? from : own;
  out.matrix = {nullptr,        nullptr,        nullptr,         nullptr,         rows, columns,
                own.strides[0], own.strides[1], read.strides[0], read.strides[1], rank, static_cast<uint32_t>(in.word())};
  return out;
}

static void passes(Bytes& in) {
  const int dtype = in.byte() % 4;
  const bool given = in.byte() % 4 == 0, stochastic = in.flag();
  std::vector<Drawn> drawn;
  for (int64_t t = in.size(1, 3); t > 0; --t) drawn.push_back(matrix(in, dtype, given));
  const auto summands = terms(in, given ? 1 : in.byte() % 16 == 0 ? 64 : in.size(1, 4));
  const float x = in.number();
  const double decay = in.flag() || !std::isfinite(x) ? 1.0 : x;
  const uint64_t seed = in.word();
  on_each("lowrank", TF_EACH(lowrank), true, [&](const LowRankKernels& k) {
    auto held = drawn;
    std::vector<LowRankMatrix> matrices;
    for (Drawn& d : held) {
      d.matrix.data = d.data.data(), d.matrix.source = d.source.empty() ? d.data.data() : d.source.data();
      d.matrix.vt = d.vt.data(), d.matrix.u = given ? d.u.data() : nullptr;
      matrices.push_back(d.matrix);
    }
    k.lowrank({matrices.data(), static_cast<int64_t>(held.size()), summands.data(), static_cast<int64_t>(summands.size()), decay, dtype,
               stochastic, seed, 4, 1});
    Found found;
    for (const Drawn& d : held) found.add("matrix", d.data, dtype);
    return found;
  });
}

static void factors(Bytes& in) {
  const int dtype = in.byte() % 4;
  const int64_t n = in.size(1, in.byte() % 8 == 0 ? 5000 : 300);
  const auto summands = terms(in, in.byte() % 16 == 0 ? 64 : in.size(1, 4));
  const uint32_t stream = static_cast<uint32_t>(in.word()), purpose = 5 + in.byte() % 2;
  on_each("factor", TF_EACH(lowrank), true, [&](const LowRankKernels& k) {
    std::vector<unsigned char> one(n * Bytes::width(dtype));
    std::vector<float> sum(n);
    k.factor({summands.data(), 1, stream, purpose, n, dtype, one.data(), 1});
    k.project({summands.data(), static_cast<int64_t>(summands.size()), stream, purpose, n, 0, sum.data(), 1});
    Found found;
    found.add("factor", one, dtype), found.add("sum", sum);
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  const bool all = in.byte() % 4 != 0;
  in.tame = in.flag();
  all ? passes(in) : factors(in);
  return 0;
}
