// The door to the CPU kernels: pybind11 functions that take raw pointers, choose the instruction set's table and release the GIL.
#include <map>

#include "args.hpp"
#include "dual_door.hpp"
#include "isa.hpp"
#include "logprob/logprob_api.hpp"
#include "lowrank_door.hpp"

#define TF_DECLARE_ISA(NS)                              \
  namespace NS {                                        \
  extern const tenfold::ZoKernels zo_kernels;           \
  extern const tenfold::LogprobKernels logprob_kernels; \
  extern const tenfold::LowRankKernels lowrank_kernels; \
  extern const tenfold::DualKernels dual_kernels;       \
  }
TF_DECLARE_ISA(tf_baseline)
#ifdef TF_HAVE_AVX2
TF_DECLARE_ISA(tf_avx2)
#endif
#ifdef TF_HAVE_AVX512
TF_DECLARE_ISA(tf_avx512)
#endif
#ifdef TF_HAVE_NEON
TF_DECLARE_ISA(tf_neon)
#endif

namespace py = pybind11;
using namespace tenfold;

namespace {

struct Kernels {
  const ZoKernels* zo;
  const LogprobKernels* logprob;
  const LowRankKernels* lowrank;
  const DualKernels* dual;
};

const std::map<std::string, Kernels>& tables() {
  static const std::map<std::string, Kernels> all = {
      {"baseline", {&tf_baseline::zo_kernels, &tf_baseline::logprob_kernels, &tf_baseline::lowrank_kernels, &tf_baseline::dual_kernels}},
#ifdef TF_HAVE_AVX2
      {"avx2", {&tf_avx2::zo_kernels, &tf_avx2::logprob_kernels, &tf_avx2::lowrank_kernels, &tf_avx2::dual_kernels}},
#endif
#ifdef TF_HAVE_AVX512
      {"avx512", {&tf_avx512::zo_kernels, &tf_avx512::logprob_kernels, &tf_avx512::lowrank_kernels, &tf_avx512::dual_kernels}},
#endif
#ifdef TF_HAVE_NEON
      {"neon", {&tf_neon::zo_kernels, &tf_neon::logprob_kernels, &tf_neon::lowrank_kernels, &tf_neon::dual_kernels}},
#endif
  };
  return all;
}

std::string current_isa;
Kernels kernels;

void use_isa(const std::string& name) {
  for (const Isa& isa : compiled_isas()) {
    if (name != isa.name) continue;
    if (!isa.available) throw std::runtime_error("TENFOLD_ISA: this CPU cannot run " + name);
    kernels = tables().at(name);
    current_isa = name;
    return;
  }
  std::string known;
  for (const Isa& isa : compiled_isas()) known += (known.empty() ? "" : ", ") + std::string(isa.name);
  throw std::invalid_argument("TENFOLD_ISA: expected one of " + known + ", got '" + name + "'");
}

void use_best_isa() {
  std::string best;
  for (const Isa& isa : compiled_isas()) {
    if (isa.available) best = isa.name;
  }
  use_isa(best);
}

std::vector<std::string> isa_names(bool only_available) {
  std::vector<std::string> out;
  for (const Isa& isa : compiled_isas()) {
    if (isa.available || !only_available) out.push_back(isa.name);
  }
  return out;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// ---- zo -----------------------------------------------------------------------------------------------------------------------

// The options of a pass that come last in every call.
struct PassOptions {
  double decay;
  int dtype;
  int z_round;
  bool stochastic;
  uint64_t rounding_seed;
  uint32_t rounding_query;
  int threads;
};

ChainArgs chain_args(const std::vector<View>& params, const std::vector<View>& sources, const std::vector<uint32_t>& streams,
                     const std::vector<Term>& summands, const PassOptions& o) {
  require_length("sources", sources.size(), params.size());
  require_length("streams", streams.size(), params.size());
  return {params.data(),   sources.data(),
          streams.data(),  static_cast<int64_t>(params.size()),
          summands.data(), static_cast<int64_t>(summands.size()),
          o.decay,         o.dtype,
          o.z_round,       o.stochastic,
          o.rounding_seed, o.rounding_query,
          o.threads};
}

void zo_chain(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<uint32_t>& streams,
              const std::vector<PyTerm>& py_terms, double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
              uint32_t rounding_query, int threads) {
  const auto targets = views(params);
  const auto clean = sources.empty() ? targets : views(sources);
  const auto summands = terms(py_terms);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  const ChainArgs args = chain_args(targets, clean, streams, summands, options);
  py::gil_scoped_release unlocked;
  kernels.zo->chain(args);
}

void zo_adam(const std::vector<PyView>& params, const std::vector<PyView>& exp_avgs, const std::vector<PyView>& exp_avg_sqs,
             const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay,
             int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads) {
  const auto targets = views(params);
  const auto means = views(exp_avgs);
  const auto squares = views(exp_avg_sqs);
  const auto summands = terms(py_terms);
  require_length("exp_avgs", means.size(), targets.size());
  require_length("exp_avg_sqs", squares.size(), targets.size());
  require_length("scalars", scalars.size(), 7);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  const AdamArgs args = {chain_args(targets, targets, streams, summands, options),
                         means.data(),
                         squares.data(),
                         scalars[0],
                         scalars[1],
                         scalars[2],
                         scalars[3],
                         scalars[4],
                         scalars[5],
                         scalars[6]};
  py::gil_scoped_release unlocked;
  kernels.zo->adam(args);
}

void zo_sample(uint64_t seed, uint32_t stream, uint32_t query, uint32_t dist, uint64_t first, int64_t n, int dtype, uintptr_t out,
               int threads) {
  py::gil_scoped_release unlocked;
  kernels.zo->sample({seed, stream, query, dist, first, n, dtype, pointer<void>(out), threads});
}

void zo_words(uint64_t seed, uint32_t stream, uint32_t query, uint32_t purpose, uint64_t first_block, int64_t blocks, uintptr_t out,
              int threads) {
  py::gil_scoped_release unlocked;
  kernels.zo->words({seed, stream, query, purpose, first_block, blocks, pointer<int64_t>(out), threads});
}

void zo_stochastic_round(uintptr_t x, int64_t n, uintptr_t out, int dtype, uint64_t seed, uint32_t stream, uint32_t query, uint64_t first,
                         int threads) {
  py::gil_scoped_release unlocked;
  kernels.zo->stochastic_round({pointer<const float>(x), n, pointer<void>(out), dtype, seed, stream, query, first, threads});
}

std::pair<double, double> zo_moments(uint64_t seed, uint32_t stream, uint32_t query, uint32_t dist, uint64_t first, int64_t n,
                                     int threads) {
  py::gil_scoped_release unlocked;
  const Moments m = kernels.zo->moments({seed, stream, query, dist, first, n, 0, nullptr, threads});
  return {m.sum, m.sum_of_squares};
}

// ---- logprob ------------------------------------------------------------------------------------------------------------------

void token_logprobs(uintptr_t rows, uintptr_t targets, uintptr_t weight, uintptr_t bias, int64_t n_rows, int64_t width, int64_t vocabulary,
                    int64_t weight_stride, int weight_dtype, int64_t segments, uintptr_t max, uintptr_t sum, uintptr_t target_logit,
                    int threads) {
  py::gil_scoped_release unlocked;
  kernels.logprob->token_logprobs({pointer<const float>(rows), pointer<const int64_t>(targets), pointer<const void>(weight),
                                   pointer<const float>(bias), n_rows, width, vocabulary, weight_stride, weight_dtype, segments,
                                   pointer<float>(max), pointer<float>(sum), pointer<float>(target_logit), threads});
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Tenfold CPU kernels. Private: call tenfold.ops, which checks its arguments.";
  use_best_isa();

  m.def("isa_compiled", [] { return isa_names(false); });
  m.def("isa_available", [] { return isa_names(true); });
  m.def("isa_used", [] { return current_isa; });
  m.def("use_isa", &use_isa);
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"compiler", TF_BUILD_COMPILER}, {"build_type", TF_BUILD_TYPE}, {"cuda", TF_BUILD_CUDA}};
  });

  m.def("zo_chain", &zo_chain);
  m.def("zo_adam", &zo_adam);
  m.def("zo_sample", &zo_sample);
  m.def("zo_words", &zo_words);
  m.def("zo_stochastic_round", &zo_stochastic_round);
  m.def("zo_moments", &zo_moments);
  m.def("token_logprobs", &token_logprobs);
  bind_lowrank(m, kernels.lowrank);
  bind_dual(m, kernels.dual);
}
