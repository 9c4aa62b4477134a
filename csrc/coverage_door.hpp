// The CPU door of the coverage kernels, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "coverage/coverage_api.hpp"

namespace tenfold {

template <class T>
T* cover_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// ("points", x, n, d, dtype, kind, gamma, shift, order, bound), ("matrix", values, n, rows, dtype) or ("lists", indptr, indices, values, n,
// rows)
inline CoverSource cover_source(const pybind11::tuple& t) {
  CoverSource s = {};
  const auto at = [&](size_t i) { return t[i].cast<int64_t>(); };
  const auto address = [&](size_t i) { return t[i].cast<uintptr_t>(); };
  const auto form = t[0].cast<std::string>();
  if (form == "points") {
    s.form = kFromPoints;
    s.x = cover_pointer<const void>(address(1));
    s.candidates = s.rows = at(2);
    s.d = at(3);
    s.dtype = static_cast<int>(at(4));
    s.kind = static_cast<int>(at(5));
    if (s.kind < 0 || s.kind >= kCoverKinds) throw std::invalid_argument("kind: expected one of the coverage kernels'");
    s.gamma = t[6].cast<float>();
    s.shift = cover_pointer<const float>(address(7));
    s.order = cover_pointer<const int64_t>(address(8));
    s.bound = t[9].cast<double>();
  } else if (form == "matrix") {
    s.form = kFromMatrix;
    s.matrix = cover_pointer<const void>(address(1));
    s.candidates = at(2);
    s.rows = at(3);
    s.dtype = static_cast<int>(at(4));
  } else {
    s.form = kFromLists;
    s.indptr = cover_pointer<const int64_t>(address(1));
    s.indices = cover_pointer<const int64_t>(address(2));
    s.values = cover_pointer<const float>(address(3));
    s.candidates = at(4);
    s.rows = at(5);
  }
  return s;
}

// mass, slope, square, second, slack of CoverMoments
using PyMoments = std::tuple<double, uintptr_t, uintptr_t, uintptr_t, double>;

inline void bind_coverage(pybind11::module_& m, const CoverKernels* const& table) {
  // Returns (picks made, objective, gains computed).
  m.def("cover_greedy", [&table](const pybind11::tuple& source, int64_t k, int optimizer, uintptr_t words, int64_t sample,
                                 const std::vector<int64_t>& initial, uintptr_t weights, uintptr_t costs, double budget, uintptr_t first,
                                 const PyMoments& moments, uintptr_t indices, uintptr_t gains, uintptr_t owner, int threads) {
    double objective = 0.0;
    int64_t made = 0, evaluations = 0;
    const GreedyArgs args = {
        cover_source(source),
        k,
        optimizer,
        cover_pointer<const int64_t>(words),
        sample,
        initial.data(),
        static_cast<int64_t>(initial.size()),
        cover_pointer<const double>(weights),
        cover_pointer<const double>(costs),
        budget,
        cover_pointer<const double>(first),
        {std::get<0>(moments), cover_pointer<const double>(std::get<1>(moments)), cover_pointer<const double>(std::get<2>(moments)),
         cover_pointer<const double>(std::get<3>(moments)), std::get<4>(moments)},
        cover_pointer<int64_t>(indices),
        cover_pointer<double>(gains),
        cover_pointer<int64_t>(owner),
        &objective,
        &made,
        &evaluations,
        threads};
    pybind11::gil_scoped_release unlocked;
    table->greedy(args);
    return std::make_tuple(made, objective, evaluations);
  });
  m.def("cover_walk", [&table](const pybind11::tuple& source, int walk, int64_t k, double parameter, uintptr_t start,
                               const std::vector<int64_t>& initial, uintptr_t indices, uintptr_t gains, int threads) {
    const WalkArgs args = {cover_source(source),
                           walk,
                           k,
                           parameter,
                           cover_pointer<const double>(start),
                           initial.data(),
                           static_cast<int64_t>(initial.size()),
                           cover_pointer<int64_t>(indices),
                           cover_pointer<double>(gains),
                           threads};
    pybind11::gil_scoped_release unlocked;
    table->walk(args);
  });
  m.def("cover_values", [&table](const pybind11::tuple& source, uintptr_t which, int64_t count, uintptr_t out, int threads) {
    const CoverSource s = cover_source(source);
    pybind11::gil_scoped_release unlocked;
    table->values(s, cover_pointer<const int64_t>(which), count, cover_pointer<float>(out), threads);
  });
  m.def("cover_sums", [&table](const pybind11::tuple& source, uintptr_t out, uintptr_t own, int threads) {
    const CoverSource s = cover_source(source);
    pybind11::gil_scoped_release unlocked;
    table->sums(s, cover_pointer<double>(out), cover_pointer<float>(own), threads);
  });
  m.def("cover_largest", [&table](const pybind11::tuple& source, int threads) {
    const CoverSource s = cover_source(source);
    pybind11::gil_scoped_release unlocked;
    return table->largest(s, threads);
  });
}

}  // namespace tenfold
