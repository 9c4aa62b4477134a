// From Python arguments to the plain structures of kernels/*/..._api.hpp. Python has checked devices, dtypes, shapes and aliasing already
// (python/tenfold/ops); what is checked here is only what would otherwise read memory that is not there.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "zo/zo_api.hpp"

namespace tenfold {

// (address, numel, sizes, strides); sizes and strides are empty for a contiguous tensor.
using PyView = std::tuple<uintptr_t, int64_t, std::vector<int64_t>, std::vector<int64_t>>;
// (seed, query, coef, dist)
using PyTerm = std::tuple<uint64_t, uint32_t, double, uint32_t>;

// Views that point into the Python-side vectors, which must outlive them.
inline std::vector<View> views(const std::vector<PyView>& from) {
  std::vector<View> out;
  out.reserve(from.size());
  for (const auto& [address, numel, sizes, strides] : from) {
    if (sizes.size() != strides.size() || sizes.size() > 64) {
      throw std::invalid_argument("view: expected sizes and strides of one length, at most 64");
    }
    out.push_back({reinterpret_cast<void*>(address), numel, static_cast<int32_t>(sizes.size()), sizes.data(), strides.data()});
  }
  return out;
}

// The stream of each tensor, or, for shards, pairs of stream and the index of the first element in it.
using PyStreams = std::variant<std::vector<uint32_t>, std::vector<std::pair<uint32_t, int64_t>>>;

inline std::vector<uint32_t> stream_numbers(const PyStreams& from) {
  if (const auto* numbers = std::get_if<0>(&from)) return *numbers;
  std::vector<uint32_t> out;
  for (const auto& [stream, first] : std::get<1>(from)) out.push_back(stream);
  return out;
}

// Views of tensors that start in their streams where `streams` says.
inline std::vector<View> views(const std::vector<PyView>& from, const PyStreams& streams) {
  std::vector<View> out = views(from);
  if (const auto* pairs = std::get_if<1>(&streams)) {
    if (pairs->size() != out.size()) throw std::invalid_argument("streams: expected one for each tensor");
    for (size_t i = 0; i < out.size(); ++i) {
      if ((*pairs)[i].second < 0) throw std::invalid_argument("streams: expected first elements >= 0");
      out[i].first = (*pairs)[i].second;
    }
  }
  return out;
}

inline std::vector<Term> terms(const std::vector<PyTerm>& from) {
  std::vector<Term> out;
  out.reserve(from.size());
  for (const auto& [seed, query, coef, dist] : from) out.push_back({seed, coef, query, dist});
  return out;
}

// (kind, seed, query, values, addresses of bits)
using PyMask = std::tuple<int, uint64_t, uint32_t, std::vector<double>, std::vector<uintptr_t>>;

template <class T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<T*> out;
  out.reserve(addresses.size());
  for (const uintptr_t address : addresses) out.push_back(reinterpret_cast<T*>(address));
  return out;
}

inline void require_length(const char* name, size_t got, size_t expected) {
  if (got != expected) {
    throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(expected) + " entries, got " + std::to_string(got));
  }
}

// A mask over `count` tensors. `bits` holds what the result points to, next to `from`.
inline MaskArgs mask_args(const PyMask& from, size_t count, std::vector<const void*>& bits) {
  const auto& [kind, seed, query, values, addresses] = from;
  if (kind < kNoMask || kind > kBitMask) throw std::invalid_argument("mask: expected kind 0 to 3, got " + std::to_string(kind));
  if (kind == kRandomMask || kind == kMagnitudeMask) require_length("mask values", values.size(), count);
  if (kind == kBitMask) require_length("mask bits", addresses.size(), count);
  bits = pointers<const void>(addresses);
  MaskArgs out;
  out.kind = kind;
  out.seed = seed;
  out.query = query;
  out.values = values.data();
  out.bits = bits.data();
  return out;
}

}  // namespace tenfold
