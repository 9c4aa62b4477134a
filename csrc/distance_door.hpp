// The CPU door of the distance kernels, included by cpu_module.cpp.
#pragma once

#include "args.hpp"
#include "distance/distance_api.hpp"

namespace tenfold {

// (addresses, numbers of rows, d, dtype)
using PyShards = std::tuple<std::vector<uintptr_t>, std::vector<int64_t>, int64_t, int>;

// A matrix that points into vectors of its own.
struct ShardsOf {
  std::vector<const void*> data;
  std::vector<int64_t> first;
  RowShards x;

  explicit ShardsOf(const PyShards& from) {
    const auto& [addresses, counts, d, dtype] = from;
    require_length("shards", counts.size(), addresses.size());
    if (addresses.empty() || d < 1) throw std::invalid_argument("shards: expected at least one, and one column");
    int64_t rows = 0;
    for (size_t i = 0; i < addresses.size(); ++i) {
      if (counts[i] < 0) throw std::invalid_argument("shards: expected numbers of rows >= 0");
      if (counts[i] == 0 && addresses.size() > 1) continue;
      data.push_back(reinterpret_cast<const void*>(addresses[i]));
      first.push_back(rows);
      rows += counts[i];
    }
    if (data.empty()) {  // all of them are empty
      data.push_back(nullptr);
      first.push_back(0);
    }
    first.push_back(rows);
    x = {data.data(), first.data(), static_cast<int64_t>(data.size()), rows, d, dtype};
  }
};

template <class T>
T* distance_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void bind_distance(pybind11::module_& m, const DistanceKernels* const& table, const KCenterKernels* const& centers) {
  m.def("first_bad_row", [&table](const PyShards& shards, int threads) {
    const ShardsOf x(shards);
    pybind11::gil_scoped_release unlocked;
    return table->first_bad_row(x.x, threads);
  });
  m.def("row_mean", [&table](const PyShards& shards, bool cosine, uintptr_t out, int threads) {
    const ShardsOf x(shards);
    pybind11::gil_scoped_release unlocked;
    table->mean(x.x, cosine, distance_pointer<double>(out), threads);
  });
  m.def("farthest_from", [&table](const PyShards& shards, uintptr_t point, bool cosine, int threads) {
    const ShardsOf x(shards);
    pybind11::gil_scoped_release unlocked;
    return table->farthest_from(x.x, distance_pointer<const double>(point), cosine, threads);
  });
  m.def("nn_assign", [&table](const PyShards& shards, uintptr_t rows, int64_t n, uintptr_t targets, int64_t count, int k, bool cosine,
                              bool reduced, uintptr_t index, uintptr_t nearest, int threads) {
    if (k < 1) throw std::invalid_argument("k: expected at least 1");
    const ShardsOf x(shards);
    const AssignArgs args = {x.x,
                             distance_pointer<const int64_t>(rows),
                             n,
                             distance_pointer<const float>(targets),
                             count,
                             k,
                             cosine,
                             reduced,
                             distance_pointer<int32_t>(index),
                             distance_pointer<float>(nearest),
                             threads};
    pybind11::gil_scoped_release unlocked;
    return table->assign(args);
  });
  m.def("kmeans_pass", [&table](const PyShards& shards, uintptr_t targets, int64_t count, uintptr_t labels, uintptr_t distances,
                                uintptr_t sums, uintptr_t counts, int threads) {
    const ShardsOf x(shards);
    const LloydArgs args = {x.x,
                            distance_pointer<const float>(targets),
                            count,
                            distance_pointer<int32_t>(labels),
                            distance_pointer<float>(distances),
                            distance_pointer<double>(sums),
                            distance_pointer<int64_t>(counts),
                            threads};
    pybind11::gil_scoped_release unlocked;
    table->lloyd(args);
  });
  m.def("cover", [&table](const PyShards& shards, const std::vector<int64_t>& candidates, uintptr_t distance, bool cosine, uintptr_t out,
                          int threads) {
    const ShardsOf x(shards);
    const CoverArgs args = {x.x,
                            candidates.data(),
                            static_cast<int64_t>(candidates.size()),
                            distance_pointer<const float>(distance),
                            cosine,
                            distance_pointer<float>(out),
                            threads};
    pybind11::gil_scoped_release unlocked;
    table->cover(args);
  });
  m.def("kcenter",
        [&centers](const PyShards& shards, int64_t k, const std::vector<int64_t>& start, int64_t first, bool cosine, int lookahead,
                   bool prune, uintptr_t picked, uintptr_t radius, uintptr_t distance, uintptr_t owner, int threads) {
          if (lookahead < 1) throw std::invalid_argument("lookahead: expected at least 1");
          const ShardsOf x(shards);
          if (k < 0 || k + static_cast<int64_t>(start.size()) > x.x.rows)
            throw std::invalid_argument("k: expected at most the rows there are");
          const KCenterArgs args = {x.x,
                                    k,
                                    start.data(),
                                    static_cast<int64_t>(start.size()),
                                    first,
                                    cosine,
                                    lookahead,
                                    prune,
                                    distance_pointer<int64_t>(picked),
                                    distance_pointer<float>(radius),
                                    distance_pointer<float>(distance),
                                    distance_pointer<int32_t>(owner),
                                    threads};
          pybind11::gil_scoped_release unlocked;
          return centers->kcenter(args);
        });
}

}  // namespace tenfold
