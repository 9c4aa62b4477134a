// The CPU door of the attack kernels, included by cpu_module.cpp; attack_cuda_door.hpp has the same names for CUDA.
#pragma once

#include "args.hpp"
#include "attack/attack_api.hpp"

namespace tenfold {

template <class T>
T* attack_memory(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (rows, columns, dtype)
using PyTokenRows = std::tuple<int64_t, int64_t, int>;
// (rows, columns, width, dtype of the table)
using PyTokenTable = std::tuple<int64_t, int64_t, int64_t, int>;
// (op, batch, size, dtype, kind, flag)
using PyLatentOp = std::tuple<int, int64_t, int64_t, int, int, bool>;

inline void require_token_rows(int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 1) throw std::invalid_argument("shape: expected a matrix with columns");
}

inline SimplexProjectArgs simplex_args(uintptr_t p, uintptr_t out, const PyTokenRows& shape, double radius) {
  const auto& [rows, columns, dtype] = shape;
  require_token_rows(rows, columns);
  return {attack_memory<void>(p), attack_memory<void>(out), rows, columns, dtype, radius, 0};
}

// states: p, m, v; inputs: gradient or products, table, banned; numbers: lr, beta1, beta2, eps, decay, 1 - beta1^t, sqrt(1 - beta2^t)
inline SteAdamArgs ste_args(const std::vector<uintptr_t>& states, const std::vector<uintptr_t>& inputs, const PyTokenTable& shape,
                            bool ready, const std::vector<double>& numbers) {
  require_length("states", states.size(), 3);
  require_length("inputs", inputs.size(), 3);
  require_length("numbers", numbers.size(), 7);
  const auto& [rows, columns, width, dtype] = shape;
  require_token_rows(rows, columns);
  SteAdamArgs a = {};
  a.p = attack_memory<float>(states[0]);
  a.m = attack_memory<float>(states[1]);
  a.v = attack_memory<float>(states[2]);
  a.gradient = attack_memory<float>(inputs[0]);
  a.table = attack_memory<void>(inputs[1]);
  a.banned = attack_memory<uint8_t>(inputs[2]);
  a.rows = rows;
  a.columns = columns;
  a.width = width;
  a.dtype = dtype;
  a.ready = ready;
  a.lr = numbers[0];
  a.beta1 = numbers[1];
  a.beta2 = numbers[2];
  a.eps = numbers[3];
  a.weight_decay = numbers[4];
  a.correction1 = numbers[5];
  a.correction2 = numbers[6];
  return a;
}

inline DrawArgs draw_args(uintptr_t p, uintptr_t u, uintptr_t out, const PyTokenRows& shape) {
  const auto& [rows, columns, dtype] = shape;
  require_token_rows(rows, columns);
  return {attack_memory<void>(p), attack_memory<double>(u), attack_memory<int64_t>(out), rows, columns, dtype, 0};
}

// inputs: q, table, inv_norm, mask; out: ids, scores
inline NearestArgs nearest_args(const std::vector<uintptr_t>& inputs, const PyTokenTable& shape, bool cosine,
                                const std::vector<uintptr_t>& out) {
  require_length("inputs", inputs.size(), 4);
  require_length("out", out.size(), 2);
  const auto& [rows, columns, width, dtype] = shape;
  require_token_rows(rows, columns);
  NearestArgs a = {};
  a.q = attack_memory<float>(inputs[0]);
  a.table = attack_memory<void>(inputs[1]);
  a.inv_norm = attack_memory<float>(inputs[2]);
  a.mask = attack_memory<uint8_t>(inputs[3]);
  a.rows = rows;
  a.columns = columns;
  a.width = width;
  a.dtype = dtype;
  a.cosine = cosine;
  a.ids = attack_memory<int64_t>(out[0]);
  a.scores = attack_memory<float>(out[1]);
  return a;
}

// each: (address, step); times: (address, step, levels)
inline LatentArgs latent_args(const PyLatentOp& op, const std::vector<uintptr_t>& in, const std::vector<uintptr_t>& out,
                              const std::vector<std::pair<uintptr_t, int64_t>>& each, const std::tuple<uintptr_t, int64_t, int64_t>& times,
                              const std::vector<double>& numbers) {
  LatentArgs a = {};
  std::tie(a.op, a.batch, a.size, a.dtype, a.kind, a.flag) = op;
  if (in.size() > 4 || out.size() > 2 || each.size() > 3 || numbers.size() > 4 || a.batch < 0 || a.size < 0) {
    throw std::invalid_argument("rows: expected at most 4 inputs, 2 outputs, 3 numbers a row and 4 numbers");
  }
  for (size_t i = 0; i < in.size(); ++i) a.in[i] = attack_memory<void>(in[i]);
  for (size_t i = 0; i < out.size(); ++i) a.out[i] = attack_memory<void>(out[i]);
  for (size_t i = 0; i < each.size(); ++i) {
    a.each[i] = attack_memory<double>(each[i].first);
    a.step[i] = each[i].second;
  }
  a.times = attack_memory<int64_t>(std::get<0>(times));
  a.times_step = std::get<1>(times);
  a.levels = std::get<2>(times);
  for (size_t i = 0; i < numbers.size(); ++i) a.number[i] = numbers[i];
  return a;
}

// inputs: pred, target, other
inline GuidedMseArgs mse_args(const std::vector<uintptr_t>& inputs, const PyTokenRows& shape, double eta, bool squares) {
  require_length("inputs", inputs.size(), 3);
  const auto& [batch, size, dtype] = shape;
  require_token_rows(batch, size);
  GuidedMseArgs a = {};
  a.pred = attack_memory<void>(inputs[0]);
  a.target = attack_memory<void>(inputs[1]);
  a.other = attack_memory<void>(inputs[2]);
  a.batch = batch;
  a.size = size;
  a.dtype = dtype;
  a.eta = eta;
  a.squares = squares;
  return a;
}

// memory: forward embeds, adv, out; backward gradients of out, embeds, adv. shape: batch, columns, extra, width, dtype
using PySplice = std::tuple<int64_t, int64_t, int64_t, int64_t, int>;
inline SpliceArgs splice_args(const PySplice& shape, uintptr_t index) {
  SpliceArgs a = {};
  std::tie(a.batch, a.columns, a.extra, a.width, a.dtype) = shape;
  if (a.batch < 0 || a.columns < 0 || a.extra < 0 || a.width < 0) throw std::invalid_argument("shape: expected sizes >= 0");
  a.index = attack_memory<int64_t>(index);
  return a;
}

// `table` is the module's pointer to the kernels of the instruction set in use.
inline void bind_attack(pybind11::module_& m, const AttackKernels* const& table) {
  namespace py = pybind11;
  m.def("simplex_project", [&table](uintptr_t p, uintptr_t out, const PyTokenRows& shape, double radius, int threads) {
    SimplexProjectArgs a = simplex_args(p, out, shape, radius);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->simplex(a);
  });
  m.def("ste_adam_simplex", [&table](const std::vector<uintptr_t>& states, const std::vector<uintptr_t>& inputs, const PyTokenTable& shape,
                                     bool ready, const std::vector<double>& numbers, int threads) {
    SteAdamArgs a = ste_args(states, inputs, shape, ready, numbers);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->ste_adam(a);
  });
  m.def("sample_rows", [&table](uintptr_t p, uintptr_t u, uintptr_t out, const PyTokenRows& shape, int threads) {
    DrawArgs a = draw_args(p, u, out, shape);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->sample(a);
  });
  m.def("nearest_token", [&table](const std::vector<uintptr_t>& inputs, const PyTokenTable& shape, bool cosine,
                                  const std::vector<uintptr_t>& out, int threads) {
    NearestArgs a = nearest_args(inputs, shape, cosine, out);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->nearest(a);
  });
  // Products of the queries with a part of the table that begins at `first`; without them, the end: `found` is decided.
  m.def("nearest_token_part",
        [&table](const std::vector<uintptr_t>& inputs, const PyTokenTable& shape, bool cosine, const std::vector<uintptr_t>& out,
                 uintptr_t products, uintptr_t weights, int64_t first, uintptr_t found, int threads) {
          NearestArgs a = nearest_args(inputs, shape, cosine, out);
          a.products = attack_memory<float>(products);
          a.weights = attack_memory<float>(weights);
          a.first = first;
          a.found = attack_memory<TokenFound>(found);
          a.threads = threads;
          py::gil_scoped_release unlocked;
          table->nearest(a);
        });
  m.attr("nearest_token_state_bytes") = sizeof(TokenFound);
  m.def("attack_rows", [&table](const PyLatentOp& op, const std::vector<uintptr_t>& in, const std::vector<uintptr_t>& out,
                                const std::vector<std::pair<uintptr_t, int64_t>>& each,
                                const std::tuple<uintptr_t, int64_t, int64_t>& times, const std::vector<double>& numbers, int threads) {
    LatentArgs a = latent_args(op, in, out, each, times, numbers);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->rows(a);
  });
  m.def("guided_mse",
        [&table](const std::vector<uintptr_t>& inputs, const PyTokenRows& shape, double eta, bool squares, uintptr_t sums, int threads) {
          GuidedMseArgs a = mse_args(inputs, shape, eta, squares);
          a.sums = attack_memory<double>(sums);
          a.threads = threads;
          py::gil_scoped_release unlocked;
          table->mse(a);
        });
  m.def("guided_mse_backward", [&table](const std::vector<uintptr_t>& inputs, const PyTokenRows& shape, double eta, bool squares,
                                        uintptr_t grad, uintptr_t out, int threads) {
    GuidedMseArgs a = mse_args(inputs, shape, eta, squares);
    a.grad = attack_memory<double>(grad);
    a.out = attack_memory<void>(out);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->mse_backward(a);
  });
  m.def("splice_embed", [&table](const PySplice& shape, uintptr_t index, uintptr_t embeds, uintptr_t adv, uintptr_t out, int threads) {
    SpliceArgs a = splice_args(shape, index);
    a.embeds = attack_memory<void>(embeds);
    a.adv = attack_memory<void>(adv);
    a.out = attack_memory<void>(out);
    a.threads = threads;
    py::gil_scoped_release unlocked;
    table->splice(a);
  });
  m.def("splice_embed_backward",
        [&table](const PySplice& shape, uintptr_t index, uintptr_t grad, uintptr_t embeds, uintptr_t adv, int threads) {
          SpliceArgs a = splice_args(shape, index);
          a.grad = attack_memory<void>(grad);
          a.grad_embeds = attack_memory<void>(embeds);
          a.grad_adv = attack_memory<void>(adv);
          a.threads = threads;
          py::gil_scoped_release unlocked;
          table->splice_backward(a);
        });
}

}  // namespace tenfold
