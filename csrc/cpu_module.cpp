// The door to the CPU kernels: pybind11 functions that take raw pointers, choose the instruction set's table and release the GIL.
#include <map>

#include "args.hpp"
#include "attack_door.hpp"
#include "channel_door.hpp"
#include "coverage_door.hpp"
#include "distance_door.hpp"
#include "dual_door.hpp"
#include "erase_door.hpp"
#include "isa.hpp"
#include "logprob/logprob_api.hpp"
#include "lowrank_door.hpp"
#include "mmd_door.hpp"
#include "overlap_door.hpp"
#include "power_door.hpp"
#include "quality_door.hpp"
#include "rows_door.hpp"
#include "scores_door.hpp"
#include "softdice_door.hpp"
#include "sophia_door.hpp"
#include "surface_door.hpp"
#include "volume_door.hpp"

#define TF_DECLARE_ISA(NS)                                  \
  namespace NS {                                            \
  extern const tenfold::ZoKernels zo_kernels;               \
  extern const tenfold::LogprobKernels logprob_kernels;     \
  extern const tenfold::RowKernels row_kernels;             \
  extern const tenfold::LowRankKernels lowrank_kernels;     \
  extern const tenfold::DualKernels dual_kernels;           \
  extern const tenfold::SophiaKernels sophia_kernels;       \
  extern const tenfold::SoftdiceKernels softdice_kernels;   \
  extern const tenfold::VolumeKernels volume_kernels;       \
  extern const tenfold::ComponentKernels component_kernels; \
  extern const tenfold::OverlapKernels overlap_kernels;     \
  extern const tenfold::SurfaceKernels surface_kernels;     \
  extern const tenfold::EdtKernels edt_kernels;             \
  extern const tenfold::MmdKernels mmd_kernels;             \
  extern const tenfold::DistanceKernels distance_kernels;   \
  extern const tenfold::KCenterKernels kcenter_kernels;     \
  extern const tenfold::CoverKernels cover_kernels;         \
  extern const tenfold::ScoreKernels score_kernels;         \
  extern const tenfold::MedianKernels median_kernels;       \
  extern const tenfold::FgradKernels fgrad_kernels;         \
  extern const tenfold::PowerKernels power_kernels;         \
  extern const tenfold::ChannelKernels channel_kernels;     \
  extern const tenfold::QualityKernels quality_kernels;     \
  extern const tenfold::EraseKernels erase_kernels;         \
  extern const tenfold::AttackKernels attack_kernels;       \
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
  const SophiaKernels* sophia;
  const RowKernels* rows;
  const SoftdiceKernels* softdice;
  const VolumeKernels* volume;
  const ComponentKernels* components;
  const OverlapKernels* overlap;
  const SurfaceKernels* surface;
  const EdtKernels* edt;
  const MmdKernels* mmd;
  const DistanceKernels* distance;
  const KCenterKernels* kcenter;
  const CoverKernels* coverage;
  const ScoreKernels* scores;
  const MedianKernels* medians;
  const FgradKernels* fgrad;
  const PowerKernels* power;
  const ChannelKernels* channel;
  const QualityKernels* quality;
  const EraseKernels* erase;
  const AttackKernels* attack;
};

const std::map<std::string, Kernels>& tables() {
  static const std::map<std::string, Kernels> all = {
      {"baseline",
       {&tf_baseline::zo_kernels,        &tf_baseline::logprob_kernels,  &tf_baseline::lowrank_kernels,  &tf_baseline::dual_kernels,
        &tf_baseline::sophia_kernels,    &tf_baseline::row_kernels,      &tf_baseline::softdice_kernels, &tf_baseline::volume_kernels,
        &tf_baseline::component_kernels, &tf_baseline::overlap_kernels,  &tf_baseline::surface_kernels,  &tf_baseline::edt_kernels,
        &tf_baseline::mmd_kernels,       &tf_baseline::distance_kernels, &tf_baseline::kcenter_kernels,  &tf_baseline::cover_kernels,
        &tf_baseline::score_kernels,     &tf_baseline::median_kernels,   &tf_baseline::fgrad_kernels,    &tf_baseline::power_kernels,
        &tf_baseline::channel_kernels,   &tf_baseline::quality_kernels,  &tf_baseline::erase_kernels,    &tf_baseline::attack_kernels}},
#ifdef TF_HAVE_AVX2
      {"avx2", {&tf_avx2::zo_kernels,        &tf_avx2::logprob_kernels,  &tf_avx2::lowrank_kernels,  &tf_avx2::dual_kernels,
                &tf_avx2::sophia_kernels,    &tf_avx2::row_kernels,      &tf_avx2::softdice_kernels, &tf_avx2::volume_kernels,
                &tf_avx2::component_kernels, &tf_avx2::overlap_kernels,  &tf_avx2::surface_kernels,  &tf_avx2::edt_kernels,
                &tf_avx2::mmd_kernels,       &tf_avx2::distance_kernels, &tf_avx2::kcenter_kernels,  &tf_avx2::cover_kernels,
                &tf_avx2::score_kernels,     &tf_avx2::median_kernels,   &tf_avx2::fgrad_kernels,    &tf_avx2::power_kernels,
                &tf_avx2::channel_kernels,   &tf_avx2::quality_kernels,  &tf_avx2::erase_kernels,    &tf_avx2::attack_kernels}},
#endif
#ifdef TF_HAVE_AVX512
      {"avx512", {&tf_avx512::zo_kernels,        &tf_avx512::logprob_kernels,  &tf_avx512::lowrank_kernels,  &tf_avx512::dual_kernels,
                  &tf_avx512::sophia_kernels,    &tf_avx512::row_kernels,      &tf_avx512::softdice_kernels, &tf_avx512::volume_kernels,
                  &tf_avx512::component_kernels, &tf_avx512::overlap_kernels,  &tf_avx512::surface_kernels,  &tf_avx512::edt_kernels,
                  &tf_avx512::mmd_kernels,       &tf_avx512::distance_kernels, &tf_avx512::kcenter_kernels,  &tf_avx512::cover_kernels,
                  &tf_avx512::score_kernels,     &tf_avx512::median_kernels,   &tf_avx512::fgrad_kernels,    &tf_avx512::power_kernels,
                  &tf_avx512::channel_kernels,   &tf_avx512::quality_kernels,  &tf_avx512::erase_kernels,    &tf_avx512::attack_kernels}},
#endif
#ifdef TF_HAVE_NEON
      {"neon", {&tf_neon::zo_kernels,        &tf_neon::logprob_kernels,  &tf_neon::lowrank_kernels,  &tf_neon::dual_kernels,
                &tf_neon::sophia_kernels,    &tf_neon::row_kernels,      &tf_neon::softdice_kernels, &tf_neon::volume_kernels,
                &tf_neon::component_kernels, &tf_neon::overlap_kernels,  &tf_neon::surface_kernels,  &tf_neon::edt_kernels,
                &tf_neon::mmd_kernels,       &tf_neon::distance_kernels, &tf_neon::kcenter_kernels,  &tf_neon::cover_kernels,
                &tf_neon::score_kernels,     &tf_neon::median_kernels,   &tf_neon::fgrad_kernels,    &tf_neon::power_kernels,
                &tf_neon::channel_kernels,   &tf_neon::quality_kernels,  &tf_neon::erase_kernels,    &tf_neon::attack_kernels}},
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
          o.threads,       {}};
}

void zo_chain_masked(const std::vector<PyView>& params, const std::vector<PyView>& sources, const PyStreams& streams,
                     const std::vector<PyTerm>& py_terms, double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
                     uint32_t rounding_query, int threads, const PyMask& mask) {
  const auto targets = views(params, streams);
  const auto clean = sources.empty() ? targets : views(sources, streams);
  const auto summands = terms(py_terms);
  const auto numbers = stream_numbers(streams);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  ChainArgs args = chain_args(targets, clean, numbers, summands, options);
  std::vector<const void*> bits;
  args.mask = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->chain(args);
}

void zo_chain(const std::vector<PyView>& params, const std::vector<PyView>& sources, const PyStreams& streams,
              const std::vector<PyTerm>& py_terms, double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
              uint32_t rounding_query, int threads) {
  zo_chain_masked(params, sources, streams, py_terms, decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads, {});
}

void zo_adam_masked(const std::vector<PyView>& params, const std::vector<PyView>& exp_avgs, const std::vector<PyView>& exp_avg_sqs,
                    const PyStreams& streams, const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay,
                    int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads, bool half_states,
                    bool radazo, const PyMask& mask) {
  const auto targets = views(params, streams);
  const auto means = views(exp_avgs, streams);
  const auto squares = views(exp_avg_sqs, streams);
  const auto summands = terms(py_terms);
  require_length("exp_avgs", means.size(), targets.size());
  require_length("exp_avg_sqs", squares.size(), targets.size());
  require_length("scalars", scalars.size(), 7);
  const auto numbers = stream_numbers(streams);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  AdamArgs args = {chain_args(targets, targets, numbers, summands, options),
                   means.data(),
                   squares.data(),
                   scalars[0],
                   scalars[1],
                   scalars[2],
                   scalars[3],
                   scalars[4],
                   scalars[5],
                   scalars[6],
                   half_states,
                   radazo};
  std::vector<const void*> bits;
  args.chain.mask = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->adam(args);
}

void zo_adam(const std::vector<PyView>& params, const std::vector<PyView>& exp_avgs, const std::vector<PyView>& exp_avg_sqs,
             const PyStreams& streams, const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay, int dtype,
             int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads) {
  zo_adam_masked(params, exp_avgs, exp_avg_sqs, streams, py_terms, scalars, decay, dtype, z_round, stochastic, rounding_seed,
                 rounding_query, threads, false, false, {});
}

void zo_momentum(const std::vector<PyView>& params, const std::vector<PyView>& buffers, const PyStreams& streams,
                 const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay, int dtype, int z_round,
                 bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads, bool half_states, bool nesterov, bool first,
                 const PyMask& mask) {
  const auto targets = views(params, streams);
  const auto states = views(buffers, streams);
  const auto summands = terms(py_terms);
  require_length("momentum_buffers", states.size(), targets.size());
  require_length("scalars", scalars.size(), 3);
  const auto numbers = stream_numbers(streams);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  MomentumArgs args = {chain_args(targets, targets, numbers, summands, options),
                       states.data(),
                       half_states,
                       scalars[0],
                       scalars[1],
                       scalars[2],
                       nesterov,
                       first};
  std::vector<const void*> bits;
  args.chain.mask = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->momentum(args);
}

void zo_sign(const std::vector<PyView>& params, const PyStreams& streams, const std::vector<PyTerm>& py_terms, double rate, double decay,
             int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads, const PyMask& mask) {
  const auto targets = views(params, streams);
  const auto summands = terms(py_terms);
  const auto numbers = stream_numbers(streams);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  SignArgs args = {chain_args(targets, targets, numbers, summands, options), rate};
  std::vector<const void*> bits;
  args.chain.mask = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->sign(args);
}

void zo_hizoo_perturb(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<PyView>& hessians,
                      const PyStreams& streams, const PyTerm& py_term, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
                      uint32_t rounding_query, int threads, const PyMask& mask) {
  const auto targets = views(params, streams);
  const auto clean = sources.empty() ? targets : views(sources, streams);
  const auto curvature = views(hessians, streams);
  const auto summands = terms({py_term});
  require_length("hessians", curvature.size(), targets.size());
  const auto numbers = stream_numbers(streams);
  const PassOptions options = {1.0, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  HizooPerturbArgs args = {chain_args(targets, clean, numbers, summands, options), curvature.data()};
  std::vector<const void*> bits;
  args.chain.mask = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->hizoo_perturb(args);
}

void zo_hizoo_update(const std::vector<PyView>& params, const std::vector<PyView>& hessians, const PyStreams& streams,
                     const std::vector<PyTerm>& py_terms, const std::vector<double>& curvatures, const std::vector<double>& scalars,
                     double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, int threads,
                     const PyMask& mask) {
  const auto targets = views(params, streams);
  const auto diagonal = views(hessians, streams);
  const auto summands = terms(py_terms);
  require_length("hessians", diagonal.size(), targets.size());
  require_length("curvatures", curvatures.size(), summands.size());
  require_length("scalars", scalars.size(), 4);
  const auto numbers = stream_numbers(streams);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query, threads};
  HizooUpdateArgs args = {chain_args(targets, targets, numbers, summands, options),
                          diagonal.data(),
                          curvatures.data(),
                          scalars[0],
                          scalars[1],
                          scalars[2],
                          scalars[3]};
  std::vector<const void*> bits;
  args.chain.mask = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->hizoo_update(args);
}

// Passes as columns; mask_limits holds one number per pass and tensor, or nothing; negative ones of a pass mean no mask.
void zo_replay(const std::vector<PyView>& params, const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms,
               const std::vector<int64_t>& sizes, const std::vector<double>& decays, const std::vector<uint64_t>& rounding_seeds,
               const std::vector<uint32_t>& rounding_queries, const std::vector<uint64_t>& mask_seeds,
               const std::vector<uint32_t>& mask_queries, const std::vector<double>& mask_limits, int dtype, int z_round, bool stochastic,
               int threads) {
  const auto targets = views(params);
  const auto summands = terms(py_terms);
  require_length("streams", streams.size(), targets.size());
  require_length("decays", decays.size(), sizes.size());
  require_length("rounding_seeds", rounding_seeds.size(), sizes.size());
  require_length("rounding_queries", rounding_queries.size(), sizes.size());
  require_length("mask_seeds", mask_seeds.size(), sizes.size());
  require_length("mask_queries", mask_queries.size(), sizes.size());
  if (!mask_limits.empty()) require_length("mask_limits", mask_limits.size(), sizes.size() * targets.size());
  std::vector<ReplayPass> passes;
  size_t used = 0;
  for (size_t p = 0; p < sizes.size(); ++p) {
    if (sizes[p] < 0) throw std::invalid_argument("sizes: expected numbers >= 0");
    used += static_cast<size_t>(sizes[p]);
    ReplayPass pass = {sizes[p], decays[p], rounding_seeds[p], rounding_queries[p], {}};
    if (!mask_limits.empty() && !targets.empty() && mask_limits[p * targets.size()] >= 0.0) {
      pass.mask.kind = kRandomMask;
      pass.mask.seed = mask_seeds[p];
      pass.mask.query = mask_queries[p];
      pass.mask.values = mask_limits.data() + p * targets.size();
    }
    passes.push_back(pass);
  }
  require_length("terms", summands.size(), used);
  const ReplayArgs args = {targets.data(),  streams.data(), static_cast<int64_t>(targets.size()),
                           summands.data(), passes.data(),  static_cast<int64_t>(passes.size()),
                           dtype,           z_round,        stochastic,
                           threads};
  py::gil_scoped_release unlocked;
  kernels.zo->replay(args);
}

std::vector<double> zo_square_sums(const std::vector<PyView>& tensors, const std::vector<uint32_t>& streams, uint64_t seed, uint32_t query,
                                   uint32_t dist, int dtype, int threads, const PyMask& mask) {
  const auto targets = views(tensors);
  require_length("streams", streams.size(), targets.size());
  std::vector<double> out(targets.size());
  std::vector<const void*> bits;
  const MaskArgs masked = mask_args(mask, targets.size(), bits);
  py::gil_scoped_release unlocked;
  kernels.zo->square_sums(
      {targets.data(), streams.data(), static_cast<int64_t>(targets.size()), seed, query, dist, masked, dtype, out.data(), threads});
  return out;
}

// How many keys with the prefix have each value of the digit at `shift`.
std::vector<int64_t> zo_count_digits(const std::vector<PyView>& tensors, int dtype, bool wide, int shift, uint64_t prefix, int threads) {
  const auto targets = views(tensors);
  std::vector<int64_t> counts(size_t{1} << kDigitBits);
  py::gil_scoped_release unlocked;
  kernels.zo->count_digits({targets.data(), static_cast<int64_t>(targets.size()), dtype, wide, shift, prefix, counts.data(), threads});
  return counts;
}

std::vector<int64_t> zo_count_within(const std::vector<PyView>& tensors, const std::vector<double>& thresholds, int dtype, int threads) {
  const auto targets = views(tensors);
  require_length("thresholds", thresholds.size(), targets.size());
  std::vector<int64_t> counts(targets.size());
  py::gil_scoped_release unlocked;
  kernels.zo->count_within(
      {targets.data(), static_cast<int64_t>(targets.size()), dtype, thresholds.data(), counts.data(), nullptr, threads});
  return counts;
}

void zo_magnitude_bits(const std::vector<PyView>& tensors, const std::vector<double>& thresholds, const std::vector<uintptr_t>& bits,
                       int dtype, int threads) {
  const auto targets = views(tensors);
  const auto out = pointers<void>(bits);
  require_length("thresholds", thresholds.size(), targets.size());
  require_length("bits", out.size(), targets.size());
  py::gil_scoped_release unlocked;
  kernels.zo->magnitude_bits(
      {targets.data(), static_cast<int64_t>(targets.size()), dtype, thresholds.data(), nullptr, out.data(), threads});
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
  m.def("zo_chain", &zo_chain_masked);
  m.def("zo_adam", &zo_adam);
  m.def("zo_adam", &zo_adam_masked);
  m.def("zo_momentum", &zo_momentum);
  m.def("zo_sign", &zo_sign);
  m.def("zo_hizoo_perturb", &zo_hizoo_perturb);
  m.def("zo_hizoo_update", &zo_hizoo_update);
  m.def("zo_replay", &zo_replay);
  m.def("zo_square_sums", &zo_square_sums);
  m.def("zo_count_digits", &zo_count_digits);
  m.def("zo_count_within", &zo_count_within);
  m.def("zo_magnitude_bits", &zo_magnitude_bits);
  m.def("zo_sample", &zo_sample);
  m.def("zo_words", &zo_words);
  m.def("zo_stochastic_round", &zo_stochastic_round);
  m.def("zo_moments", &zo_moments);
  m.def("token_logprobs", &token_logprobs);
  bind_lowrank(m, kernels.lowrank);
  bind_dual(m, kernels.dual);
  bind_sophia(m, kernels.sophia);
  bind_rows(m, kernels.rows);
  bind_softdice(m, kernels.softdice);
  bind_volume(m, kernels.volume, kernels.components);
  bind_overlap(m, kernels.overlap);
  bind_surface(m, kernels.surface);
  bind_edt(m, kernels.edt);
  bind_mmd(m, kernels.mmd);
  bind_distance(m, kernels.distance, kernels.kcenter);
  bind_coverage(m, kernels.coverage);
  bind_scores(m, kernels.scores, kernels.medians, kernels.fgrad);
  bind_power(m, kernels.power);
  bind_channel(m, kernels.channel);
  bind_quality(m, kernels.quality);
  bind_erase(m, kernels.erase);
  bind_attack(m, kernels.attack);
}
