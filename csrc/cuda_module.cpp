// The door to the CUDA kernels: pybind11 functions with the names and arguments of csrc/cpu_module.cpp, where a stream handle
// (torch.cuda.Stream.cuda_stream) stands in place of the thread count. Calls return when the work is queued.
//
// The CUDA runtime is linked statically and touched only when a function is called, so the module imports on machines without a GPU.
#include <cuda_runtime.h>

#include <map>

#include "args.hpp"
#include "dual_cuda_door.hpp"
#include "logprob/logprob_cuda.hpp"
#include "lowrank_cuda_door.hpp"
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
          0};
}

void zo_chain(const std::vector<PyView>& params, const std::vector<PyView>& sources, const std::vector<uint32_t>& streams,
              const std::vector<PyTerm>& py_terms, double decay, int dtype, int z_round, bool stochastic, uint64_t rounding_seed,
              uint32_t rounding_query, uintptr_t stream) {
  const auto targets = views(params);
  const auto clean = sources.empty() ? targets : views(sources);
  const auto summands = terms(py_terms);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query};
  const ChainArgs args = chain_args(targets, clean, streams, summands.data(), static_cast<int64_t>(summands.size()), options);
  const uintptr_t address = first_address(params);
  if (address == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(address);
  require("zo_chain", tf_cuda::zo_chain(args, nullptr, handle(stream)));
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

void zo_adam(const std::vector<PyView>& params, const std::vector<PyView>& exp_avgs, const std::vector<PyView>& exp_avg_sqs,
             const std::vector<uint32_t>& streams, const std::vector<PyTerm>& py_terms, const std::vector<double>& scalars, double decay,
             int dtype, int z_round, bool stochastic, uint64_t rounding_seed, uint32_t rounding_query, uintptr_t stream) {
  const auto targets = views(params);
  const auto means = views(exp_avgs);
  const auto squares = views(exp_avg_sqs);
  const auto summands = terms(py_terms);
  require_length("exp_avgs", means.size(), targets.size());
  require_length("exp_avg_sqs", squares.size(), targets.size());
  require_length("scalars", scalars.size(), 7);
  const PassOptions options = {decay, dtype, z_round, stochastic, rounding_seed, rounding_query};
  const AdamArgs args = {chain_args(targets, targets, streams, summands.data(), static_cast<int64_t>(summands.size()), options),
                         means.data(),
                         squares.data(),
                         scalars[0],
                         scalars[1],
                         scalars[2],
                         scalars[3],
                         scalars[4],
                         scalars[5],
                         scalars[6]};
  const uintptr_t address = first_address(params);
  if (address == 0) return;
  py::gil_scoped_release unlocked;
  const DeviceOf device(address);
  require("zo_adam", tf_cuda::zo_adam(args, nullptr, handle(stream)));
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
  m.def("zo_chain_from_memory", &zo_chain_from_memory);
  m.def("zo_adam", &zo_adam);
  m.def("zo_sample", &zo_sample);
  m.def("zo_words", &zo_words);
  m.def("zo_stochastic_round", &zo_stochastic_round);
  m.def("lse_partials", &lse_partials);
  bind_lowrank_cuda(m, on_device);
  bind_dual_cuda(m, on_device);
}
