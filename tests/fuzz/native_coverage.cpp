// Greedy covers and walks over points, matrices and lists; their gains are float32 in the order of the lanes, so picks are checked, not
// compared.
#include "coverage/coverage_api.hpp"
#include "native.hpp"
TF_TABLES(Cover, cover)
using namespace tenfold;

struct Lists {
  std::vector<int64_t> indptr = {0}, indices;
  std::vector<float> values;
};

static Lists lists(Bytes& in, int64_t candidates, int64_t rows) {
  Lists out;
  for (int64_t c = 0; c < candidates; ++c) {
    for (int64_t r = 0; r < rows; ++r)
      if (in.byte() % 3 == 0) out.indices.push_back(r), out.values.push_back(std::fabs(in.number()));
    out.indptr.push_back(out.indices.size());
  }
  return out;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  in.tame = true;  // Python refuses what is not finite
  const int form = in.byte() % 3, dtype = in.byte() % 3 == 0 ? 0 : 2 + in.byte() % 2, optimizer = in.byte() % 4;
  const int64_t n = in.size(1, 40), rows = form == kFromPoints ? n : in.size(1, 40), d = in.size(1, 20), k = in.size(1, n);
  const auto x = in.typed(n * d, dtype), matrix = in.typed(n * rows, dtype, true);
  const Lists held = lists(in, form == kFromLists ? n : 0, rows);
  CoverSource s = {};
  s.form = form, s.candidates = n, s.rows = rows, s.x = x.data(), s.d = d, s.dtype = dtype, s.kind = in.byte() % kCoverKinds;
  s.gamma = 0.5f, s.bound = -1, s.matrix = matrix.data(), s.indptr = held.indptr.data(), s.indices = held.indices.data();
  s.values = held.values.data();
  if (form == kFromPoints) s.bound = tf_baseline::cover_kernels.largest(s, 1);
  const int64_t sample = in.size(1, n);
  std::vector<int64_t> words(k * sample);
  for (int64_t& w : words) w = in.byte() | static_cast<int64_t>(in.byte()) << 24;
  const auto weights = in.numbers<double>(rows, true);
  const bool weighted = in.flag();
  on_each("cover", TF_EACH(cover), false, [&](const CoverKernels& kernels) {
    std::vector<int64_t> indices(k, -1), owner(rows, -1);
    std::vector<double> gains(k);
    double objective = 0;
    int64_t made = 0, evaluations = 0;
    GreedyArgs a = {};
    a.source = s, a.k = k, a.optimizer = optimizer, a.words = words.data(), a.sample = sample;
    a.weights = weighted ? weights.data() : nullptr, a.indices = indices.data(), a.gains = gains.data(), a.owner = owner.data();
    a.objective = &objective, a.made = &made, a.evaluations = &evaluations, a.budget = INFINITY, a.threads = 1;
    kernels.greedy(a);
    require(made >= 0 && made <= k, "greedy", "made another number of picks");
    std::vector<bool> taken(n);
    for (int64_t i = 0; i < made; ++i) {
      require(indices[i] >= 0 && indices[i] < n, "greedy", "picked what there is not");
      require(!taken[indices[i]], "greedy", "picked one twice");
      taken[indices[i]] = true;
    }
    std::vector<float> values(made * rows), own(n);
    std::vector<double> sums(n);
    kernels.values(s, indices.data(), made, values.data(), 1);
    if (form == kFromPoints) kernels.sums(s, sums.data(), own.data(), 1);
    return Found();
  });
  return 0;
}
