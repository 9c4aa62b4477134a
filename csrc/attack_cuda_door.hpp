// The CUDA door of the attack kernels, included by cuda_module.cpp; names and arguments as in attack_door.hpp, a stream for the threads.
// nearest_token takes room for its products and weights.
#pragma once

#include "attack/attack_cuda.hpp"
#include "attack_door.hpp"

namespace tenfold {

inline uintptr_t attack_address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// on_device as in lowrank_cuda_door.hpp.
template <class OnDevice>
void bind_attack_cuda(pybind11::module_& m, OnDevice on_device) {
  m.def("simplex_project", [on_device](uintptr_t p, uintptr_t out, const PyTokenRows& shape, double radius, uintptr_t stream) {
    const SimplexProjectArgs a = simplex_args(p, out, shape, radius);
    on_device("simplex_project", p, [&] { return tf_cuda::simplex_project(a, attack_memory<void>(stream)); });
  });
  m.def("ste_adam_simplex", [on_device](const std::vector<uintptr_t>& states, const std::vector<uintptr_t>& inputs,
                                        const PyTokenTable& shape, bool ready, const std::vector<double>& numbers, uintptr_t stream) {
    const SteAdamArgs a = ste_args(states, inputs, shape, ready, numbers);
    if (!ready) throw std::invalid_argument("ready: expected the products with the table");
    on_device("ste_adam_simplex_", attack_address(a.p), [&] { return tf_cuda::ste_adam_simplex(a, attack_memory<void>(stream)); });
  });
  m.def("sample_rows", [on_device](uintptr_t p, uintptr_t u, uintptr_t out, const PyTokenRows& shape, uintptr_t stream) {
    const DrawArgs a = draw_args(p, u, out, shape);
    on_device("sample_rows", p, [&] { return tf_cuda::sample_rows(a, attack_memory<void>(stream)); });
  });
  m.def("nearest_token", [on_device](const std::vector<uintptr_t>& inputs, const PyTokenTable& shape, bool cosine,
                                     const std::vector<uintptr_t>& out, uintptr_t products, uintptr_t weights, uintptr_t stream) {
    const NearestArgs a = nearest_args(inputs, shape, cosine, out);
    on_device("nearest_token", attack_address(a.q), [&] {
      return tf_cuda::nearest_token(a, attack_memory<float>(products), attack_memory<float>(weights), attack_memory<void>(stream));
    });
  });
  m.def("attack_rows",
        [on_device](const PyLatentOp& op, const std::vector<uintptr_t>& in, const std::vector<uintptr_t>& out,
                    const std::vector<std::pair<uintptr_t, int64_t>>& each, const std::tuple<uintptr_t, int64_t, int64_t>& times,
                    const std::vector<double>& numbers, uintptr_t stream) {
          const LatentArgs a = latent_args(op, in, out, each, times, numbers);
          on_device("attack", attack_address(a.out[0]), [&] { return tf_cuda::attack_rows(a, attack_memory<void>(stream)); });
        });
  m.def("guided_mse", [on_device](const std::vector<uintptr_t>& inputs, const PyTokenRows& shape, double eta, bool squares, uintptr_t sums,
                                  uintptr_t stream) {
    GuidedMseArgs a = mse_args(inputs, shape, eta, squares);
    a.sums = attack_memory<double>(sums);
    on_device("mse", sums, [&] { return tf_cuda::guided_mse(a, attack_memory<void>(stream)); });
  });
  m.def("guided_mse_backward", [on_device](const std::vector<uintptr_t>& inputs, const PyTokenRows& shape, double eta, bool squares,
                                           uintptr_t grad, uintptr_t out, uintptr_t stream) {
    GuidedMseArgs a = mse_args(inputs, shape, eta, squares);
    a.grad = attack_memory<double>(grad);
    a.out = attack_memory<void>(out);
    on_device("mse backward", out, [&] { return tf_cuda::guided_mse_backward(a, attack_memory<void>(stream)); });
  });
  m.def("splice_embed",
        [on_device](const PySplice& shape, uintptr_t index, uintptr_t embeds, uintptr_t adv, uintptr_t out, uintptr_t stream) {
          SpliceArgs a = splice_args(shape, index);
          a.embeds = attack_memory<void>(embeds);
          a.adv = attack_memory<void>(adv);
          a.out = attack_memory<void>(out);
          on_device("splice_embed", out, [&] { return tf_cuda::splice_embed(a, attack_memory<void>(stream)); });
        });
  m.def("splice_embed_backward",
        [on_device](const PySplice& shape, uintptr_t index, uintptr_t grad, uintptr_t embeds, uintptr_t adv, uintptr_t stream) {
          SpliceArgs a = splice_args(shape, index);
          a.grad = attack_memory<void>(grad);
          a.grad_embeds = attack_memory<void>(embeds);
          a.grad_adv = attack_memory<void>(adv);
          on_device("splice_embed backward", grad, [&] { return tf_cuda::splice_embed_backward(a, attack_memory<void>(stream)); });
        });
}

}  // namespace tenfold
