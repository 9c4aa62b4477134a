// The door to the CUDA kernels: pybind11 functions with the names and arguments of csrc/cpu_module.cpp, where a stream handle
// (torch.cuda.Stream.cuda_stream) stands in place of the thread count. Calls return when the work is queued.
//
// The CUDA runtime is linked statically and touched only when a function is called, so the module imports on machines without a GPU.
#include <cuda_runtime.h>

#include <map>

#include "args.hpp"
#include "attack_cuda_door.hpp"
#include "channel_cuda_door.hpp"
#include "coverage_cuda_door.hpp"
#include "distance_cuda_door.hpp"
#include "dual_cuda_door.hpp"
#include "erase_cuda_door.hpp"
#include "logprob/logprob_cuda.hpp"
#include "lowrank_cuda_door.hpp"
#include "mmd_cuda_door.hpp"
#include "overlap_cuda_door.hpp"
#include "power_cuda_door.hpp"
#include "quality_cuda_door.hpp"
#include "rows_cuda_door.hpp"
#include "scores_cuda_door.hpp"
#include "softdice_cuda_door.hpp"
#include "sophia_cuda_door.hpp"
#include "zo/zo_cuda.hpp"

namespace py = pybind11;
using namespace tenfold;

namespace {

void* handle(uintptr_t stream) { return reinterpret_cast<void*>(stream); }

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void require(const char* what, const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string(what) + ": " + error);
}

void require(const char* what, cudaError_t status) { require(what, status == cudaSuccess ? nullptr : cudaGetErrorString(status)); }

// Makes the device that owns `address` current for as long as this lives: a launch goes to the current device, whatever the stream.
class DeviceOf {
 public:
  explicit DeviceOf(uintptr_t address) {
    cudaPointerAttributes attributes = {};
    require("CUDA", cudaPointerGetAttributes(&attributes, pointer<const void>(address)));
    if (attributes.type == cudaMemoryTypeUnregistered || attributes.type == cudaMemoryTypeHost) {
      throw std::invalid_argument("expected memory of a CUDA device, got host memory");
    }
    require("CUDA", cudaGetDevice(&before_));
    changed_ = before_ != attributes.device;
    if (changed_) require("CUDA", cudaSetDevice(attributes.device));
  }
  ~DeviceOf() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceOf(const DeviceOf&) = delete;
  DeviceOf& operator=(const DeviceOf&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// ---- zo -----------------------------------------------------------------------------------------------------------------------

// Address of the first tensor that has elements, or 0.
uintptr_t first_address(const std::vector<PyView>& views) {
  for (const auto& view : views) {
    if (std::get<1>(view) > 0) return std::get<0>(view);
  }
  return 0;
}

struct PassOptions {
  double decay;
  int dtype;
  int z_round;
  bool stochastic;
  uint64_t rounding_seed;
  uint32_t rounding_query;
};

ChainArgs chain_args(const std::vector<View>& params, const std::vector<View>& sources, const std::vector<uint32_t>& streams,
                     const Term* terms, int64_t n_terms, const PassOptions& o) {
  require_length("sources", sources.size(), params.size());
  require_length("streams", streams.size(), params.size());
  return {params.data(),
          sources.data(),
          streams.data(),
          static_cast<int64_t>(params.size()),
          terms,
          n_terms,
          o.decay,
          o.dtype,
          o.z_round,
          o.stochastic,
          o.rounding_seed,
          o.rounding_query,
          0,
          {}};
}

// What the arguments of a pass point to.
struct Pass {
  std::vector<View> params, sources;
  std::vector<Term> terms;
  std::vector<const void*> bits;
  ChainArgs args;
  uintptr_t address;

  Pass(const std::vector<PyView>& py_params, const std::vector<PyView>& py_sources, const std::vector<uint32_t>& streams,
       const std::vector<PyTerm>& py_terms, const PassOptions& options, const PyMask& mask)
      : params(views(py_params)),
        sources(py_sources.empty() ? params : views(py_sources)),
        terms(tenfold::terms(py_terms)),
        args(chain_args(params, sources, streams, terms.data(), static_cast<int64_t>(terms.size()), options)),
        address(first_address(py_params)) {
    args.mask = mask_args(mask, params.size(), bits);
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
};

// The tensors that go with those of a pass.
std::vector<View> beside(const char* name, const Pass& pass, const std::vector<PyView>& from) {
  require_length(name, from.size(), pass.params.size());
  return views(from);
}

// Calls launch() on the device that owns `address`; nothing if there is none.
template <class Launch>
void on_device_of(uintptr_t address, const char* what, const Launch& launch) {
  if (address == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(address);
  require(what, launch());
}

void zo_chain_masked(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<uint32_t>& streams,
                     const std::vector<PyTerm>& py_terms, double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
                     uint32_t rounding_query, uintptr_t stream, const PyMask& mask) {
  const Pass pass(params, sources, streams, py_terms, {decay, dtype, z_round, stochastic, rounding_seed, rounding_query}, mask);
  on_device_of(pass.address, "zo_chain", [&] { return tf_cuda::zo_chain(pass.args, nullptr, handle(stream)); });
}

void zo_chain(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<uint32_t>& streams,
              const std::vector<PyTerm>& py_terms, double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
              uint32_t rounding_query, uintptr_t stream) {
  zo_chain_masked(params, sources, streams, py_terms, decay, dtype, z_round, stochastic, rounding_seed, rounding_query, stream, {});
}

// The same pass with its terms in device memory: `device_terms` is int64 [1 + n_terms, 3] (kernels/zo/zo_cuda.hpp), read when the kernel
// runs.
void zo_chain_from_memory(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<uint32_t>& streams,
                          uintptr_t device_terms, int64_t n_terms, int dtype, int z_round, bool stochastic, uintptr_t stream) {
  const auto targets = views(params);
  const auto clean = sources.empty() ? targets : views(sources);
  const ChainArgs args = chain_args(targets, clean, streams, nullptr, n_terms, {1.0, dtype, z_round, stochastic, 0, 0});
  const uintptr_t address = first_address(params);
  if (address == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(address);
  require("zo_chain_from_memory", tf_cuda::zo_chain(args, pointer<const Term>(device_terms), handle(stream)));
}

void zo_adam_masked(const std::vector<PyView>& params, const std::vector<PyView>& exp_avgs, const std::vector<PyView>& exp_avg_sqs,
                    const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars,
                    double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query,
                    uintptr_t stream, bool half_states, bool radazo, const PyMask& mask) {
  const Pass pass(params, {}, streams, py_terms, {decay, dtype, z_round, stochastic, rounding_seed, rounding_query}, mask);
  const auto means = beside("exp_avgs", pass, exp_avgs);
  const auto squares = beside("exp_avg_sqs", pass, exp_avg_sqs);
  require_length("scalars", scalars.size(), 7);
  const AdamArgs args = {pass.args,  means.data(), squares.data(), scalars[0], scalars[1],  scalars[2],
                         scalars[3], scalars[4],   scalars[5],     scalars[6], half_states, radazo};
  on_device_of(pass.address, "zo_adam", [&] { return tf_cuda::zo_adam(args, handle(stream)); });
}

void zo_adam(const std::vector<PyView>& params, const std::vector<PyView>& exp_avgs, const std::vector<PyView>& exp_avg_sqs,
             const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay,
             int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, uintptr_t stream) {
  zo_adam_masked(params, exp_avgs, exp_avg_sqs, streams, py_terms, scalars, decay, dtype, z_round, stochastic, rounding_seed,
                 rounding_query, stream, false, false, {});
}

void zo_momentum(const std::vector<PyView>& params, const std::vector<PyView>& buffers, const std::vector<uint32_t>& streams,
                 const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay, int dtype, int z_round,
                 bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, uintptr_t stream, bool half_states, bool nesterov,
                 bool first, const PyMask& mask) {
  const Pass pass(params, {}, streams, py_terms, {decay, dtype, z_round, stochastic, rounding_seed, rounding_query}, mask);
  const auto states = beside("momentum_buffers", pass, buffers);
  require_length("scalars", scalars.size(), 3);
  const MomentumArgs args = {pass.args, states.data(), half_states, scalars[0], scalars[1], scalars[2], nesterov, first};
  on_device_of(pass.address, "zo_momentum", [&] { return tf_cuda::zo_momentum(args, handle(stream)); });
}

void zo_sign(const std::vector<PyView>& params, const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms, double rate,
             double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, uintptr_t stream,
             const PyMask& mask) {
  const Pass pass(params, {}, streams, py_terms, {decay, dtype, z_round, stochastic, rounding_seed, rounding_query}, mask);
  on_device_of(pass.address, "zo_sign", [&] { return tf_cuda::zo_sign({pass.args, rate}, handle(stream)); });
}

void zo_hizoo_perturb(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<PyView>& hessians,
                      const std::vector<uint32_t>& streams, const PyTerm& py_term, int dtype, int z_round, bool stochastic,
                      uint64_t rounding_seed, uint32_t rounding_query, uintptr_t stream, const PyMask& mask) {
  const Pass pass(params, sources, streams, {py_term}, {1.0, dtype, z_round, stochastic, rounding_seed, rounding_query}, mask);
  const auto diagonal = beside("hessians", pass, hessians);
  on_device_of(pass.address, "zo_hizoo_perturb", [&] { return tf_cuda::zo_hizoo_perturb({pass.args, diagonal.data()}, handle(stream)); });
}

void zo_hizoo_update(const std::vector<PyView>& params, const std::vector<PyView>& hessians, const std::vector<uint32_t>& streams,
                     const std::vector<PyTerm>& py_terms, const std::vector<double>& curvatures, const std::vector<double>& scalars,
                     double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query,
                     uintptr_t stream, const PyMask& mask) {
  const Pass pass(params, {}, streams, py_terms, {decay, dtype, z_round, stochastic, rounding_seed, rounding_query}, mask);
  const auto diagonal = beside("hessians", pass, hessians);
  require_length("curvatures", curvatures.size(), py_terms.size());
  require_length("scalars", scalars.size(), 4);
  const HizooUpdateArgs args = {pass.args, diagonal.data(), curvatures.data(), scalars[0], scalars[1], scalars[2], scalars[3]};
  on_device_of(pass.address, "zo_hizoo_update", [&] { return tf_cuda::zo_hizoo_update(args, handle(stream)); });
}

// Passes as columns; mask_limits holds one number per pass and tensor, or nothing; negative ones of a pass mean no mask.
void zo_replay(const std::vector<PyView>& params, const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms,
               const std::vector<int64_t>& sizes, const std::vector<double>& decays, const std::vector<uint64_t>& rounding_seeds,
               const std::vector<uint32_t>& rounding_queries, const std::vector<uint64_t>& mask_seeds,
               const std::vector<uint32_t>& mask_queries, const std::vector<double>& mask_limits, int dtype, int z_round, bool stochastic,
               uintptr_t stream) {
  const auto targets = views(params);
  const auto summands = terms(py_terms);
  const size_t count = targets.size();
  require_length("streams", streams.size(), count);
  require_length("decays", decays.size(), sizes.size());
  require_length("rounding_seeds", rounding_seeds.size(), sizes.size());
  require_length("rounding_queries", rounding_queries.size(), sizes.size());
  require_length("mask_seeds", mask_seeds.size(), sizes.size());
  require_length("mask_queries", mask_queries.size(), sizes.size());
  if (!mask_limits.empty()) require_length("mask_limits", mask_limits.size(), sizes.size() * count);
  std::vector<ReplayPass> passes;
  size_t used = 0;
  for (size_t p = 0; p < sizes.size(); ++p) {
    if (sizes[p] < 0) throw std::invalid_argument("sizes: expected numbers >= 0");
    used += static_cast<size_t>(sizes[p]);
    ReplayPass pass = {sizes[p], decays[p], rounding_seeds[p], rounding_queries[p], {}};
    if (!mask_limits.empty() && count > 0 && mask_limits[p * count] >= 0.0) {
      pass.mask.kind = kRandomMask;
      pass.mask.seed = mask_seeds[p];
      pass.mask.query = mask_queries[p];
      pass.mask.values = mask_limits.data() + p * count;
    }
    passes.push_back(pass);
  }
  require_length("terms", summands.size(), used);
  const ReplayArgs args = {targets.data(),
                           streams.data(),
                           static_cast<int64_t>(count),
                           summands.data(),
                           passes.data(),
                           static_cast<int64_t>(passes.size()),
                           dtype,
                           z_round,
                           stochastic,
                           0};
  on_device_of(first_address(params), "zo_replay", [&] { return tf_cuda::zo_replay(args, handle(stream)); });
}

// out: one address per tensor, in device memory, with room for two float64 (sum, sum of squares) for each run of 2,048 elements of the
// counter. `tensors` gives sizes, and what a magnitude mask looks at.
void zo_piece_sums(const std::vector<uintptr_t>& out, const std::vector<PyView>& tensors, const std::vector<uint32_t>& streams,
                   const std::vector<uint64_t>& firsts, uint64_t seed, uint32_t query, uint32_t dist, int dtype, uintptr_t stream,
                   const PyMask& mask) {
  constexpr uint64_t kPiece = 2048;
  const auto looked_at = views(tensors);
  require_length("out", out.size(), looked_at.size());
  require_length("streams", streams.size(), looked_at.size());
  require_length("firsts", firsts.size(), looked_at.size());
  std::vector<View> sums;
  uintptr_t address = 0;
  for (size_t t = 0; t < out.size(); ++t) {
    const int64_t numel = looked_at[t].numel;
    sums.push_back({pointer<void>(out[t]), numel == 0 ? 0 : numel + static_cast<int64_t>(firsts[t] % kPiece), 0, nullptr, nullptr});
    if (numel > 0 && address == 0) address = out[t];
  }
  std::vector<const void*> bits;
  const MaskArgs masked = mask_args(mask, looked_at.size(), bits);
  const tf_cuda::PieceSumArgs args = {
      sums.data(), looked_at.data(), streams.data(), firsts.data(), static_cast<int64_t>(sums.size()), seed, query, dist, masked, dtype};
  on_device_of(address, "zo_piece_sums", [&] { return tf_cuda::zo_piece_sums(args, handle(stream)); });
}

// Adds to counts, int64 [2^kDigitBits] in device memory: how many keys with the prefix have each value of the digit at `shift`.
void zo_count_digits(const std::vector<PyView>& tensors, int dtype, bool wide, int shift, uint64_t prefix, uintptr_t counts,
                     uintptr_t stream) {
  const auto targets = views(tensors);
  const DigitArgs args = {targets.data(), static_cast<int64_t>(targets.size()), dtype, wide, shift, prefix, pointer<int64_t>(counts), 0};
  on_device_of(first_address(tensors), "zo_count_digits", [&] { return tf_cuda::zo_count_digits(args, handle(stream)); });
}

// Adds to counts, int64, one per tensor, in device memory.
void zo_count_within(const std::vector<PyView>& tensors, const std::vector<double>& thresholds, int dtype, uintptr_t counts,
                     uintptr_t stream) {
  const auto targets = views(tensors);
  require_length("thresholds", thresholds.size(), targets.size());
  const WithinArgs args = {
      targets.data(), static_cast<int64_t>(targets.size()), dtype, thresholds.data(), pointer<int64_t>(counts), nullptr, 0};
  on_device_of(first_address(tensors), "zo_count_within", [&] { return tf_cuda::zo_count_within(args, handle(stream)); });
}

void zo_magnitude_bits(const std::vector<PyView>& tensors, const std::vector<double>& thresholds, const std::vector<uintptr_t>& bits,
                       int dtype, uintptr_t stream) {
  const auto targets = views(tensors);
  const auto out = pointers<void>(bits);
  require_length("thresholds", thresholds.size(), targets.size());
  require_length("bits", out.size(), targets.size());
  const WithinArgs args = {targets.data(), static_cast<int64_t>(targets.size()), dtype, thresholds.data(), nullptr, out.data(), 0};
  on_device_of(first_address(tensors), "zo_magnitude_bits", [&] { return tf_cuda::zo_magnitude_bits(args, handle(stream)); });
}

void zo_sample(uint64_t seed, uint32_t stream_id, uint32_t query, uint32_t dist, uint64_t first, int64_t n, int dtype, uintptr_t out,
               uintptr_t stream) {
  if (n == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(out);
  require("zo_sample", tf_cuda::zo_sample({seed, stream_id, query, dist, first, n, dtype, pointer<void>(out), 0}, handle(stream)));
}

void zo_words(uint64_t seed, uint32_t stream_id, uint32_t query, uint32_t purpose, uint64_t first_block, int64_t blocks, uintptr_t out,
              uintptr_t stream) {
  if (blocks == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(out);
  require("zo_words", tf_cuda::zo_words({seed, stream_id, query, purpose, first_block, blocks, pointer<int64_t>(out), 0}, handle(stream)));
}

void zo_stochastic_round(uintptr_t x, int64_t n, uintptr_t out, int dtype, uint64_t seed, uint32_t stream_id, uint32_t query,
                         uint64_t first, uintptr_t stream) {
  if (n == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(out);
  require("zo_stochastic_round",
          tf_cuda::zo_stochastic_round({pointer<const float>(x), n, pointer<void>(out), dtype, seed, stream_id, query, first, 0},
                                       handle(stream)));
}

// ---- logprob ------------------------------------------------------------------------------------------------------------------

void lse_partials(uintptr_t products, uintptr_t targets, uintptr_t bias, int64_t n_rows, int64_t columns, int64_t stride, int64_t first,
                  int64_t splits, int64_t part_stride, uintptr_t max, uintptr_t sum, uintptr_t target_logit, uintptr_t stream) {
  if (n_rows == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(products);
  require("lse_partials", tf_cuda::lse_partials(
                              {pointer<const float>(products), pointer<const int64_t>(targets), pointer<const float>(bias), n_rows, columns,
                               stride, first, splits, part_stride, pointer<float>(max), pointer<float>(sum), pointer<float>(target_logit)},
                              handle(stream)));
}

// Runs `call` on the device that owns `address`, without the GIL, and raises what it returns.
constexpr auto on_device = [](const char* what, uintptr_t address, const auto& call) {
  py::gil_scoped_release unlocked;
  const DeviceOf device(address);
  require(what, call());
};

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Tenfold CUDA kernels. Private: call tenfold.ops, which checks its arguments.";
  m.attr("zo_tensors_per_launch") = tf_cuda::zo_tensors_per_launch();
  m.def("build_info", [] { return std::map<std::string, std::string>{{"cuda_runtime", version_text(CUDART_VERSION)}}; });

  m.def("zo_chain", &zo_chain);
  m.def("zo_chain", &zo_chain_masked);
  m.def("zo_chain_from_memory", &zo_chain_from_memory);
  m.def("zo_adam", &zo_adam);
  m.def("zo_adam", &zo_adam_masked);
  m.def("zo_momentum", &zo_momentum);
  m.def("zo_sign", &zo_sign);
  m.def("zo_hizoo_perturb", &zo_hizoo_perturb);
  m.def("zo_hizoo_update", &zo_hizoo_update);
  m.def("zo_replay", &zo_replay);
  m.def("zo_piece_sums", &zo_piece_sums);
  m.def("zo_count_digits", &zo_count_digits);
  m.def("zo_count_within", &zo_count_within);
  m.def("zo_magnitude_bits", &zo_magnitude_bits);
  m.def("zo_sample", &zo_sample);
  m.def("zo_words", &zo_words);
  m.def("zo_stochastic_round", &zo_stochastic_round);
  m.def("lse_partials", &lse_partials);
  bind_lowrank_cuda(m, on_device);
  bind_dual_cuda(m, on_device);
  bind_sophia_cuda(m, on_device);
  bind_rows_cuda(m, on_device);
  bind_softdice_cuda(m, on_device);
  bind_overlap_cuda(m, on_device);
  bind_mmd_cuda(m, on_device);
  bind_coverage_cuda(m, on_device);
  bind_scores_cuda(m, on_device);
  bind_distance_cuda(m, on_device);
  bind_quality_cuda(m, on_device);
  bind_channel_cuda(m, on_device);
  bind_power_cuda(m, on_device);
  bind_erase_cuda(m, on_device);
  bind_attack_cuda(m, on_device);
}
