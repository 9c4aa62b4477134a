// From distances and weights to the numbers of a report. `records` are sorted by distance.
#pragma once

#include "search.hpp"

namespace TF_NS {

inline void sort_records(Room<Record>& records) {
  std::sort(records.begin(), records.end(), [](const Record& x, const Record& y) {
    if (x.square != y.square) return x.square < y.square;
    return x.weight < y.weight;
  });
}

// Sum of value(record), block by block: rounding errors grow with the length of a block and the number of blocks, not with their product.
constexpr int64_t kSumBlock = 256;

template <class Value>
inline double sum_of(const Room<Record>& records, const Value& value) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < records.size(); begin += kSumBlock) {
    const int64_t end = std::min(records.size(), begin + kSumBlock);
    double part = 0.0;
    for (int64_t i = begin; i < end; ++i) part += value(records[i]);
    sum += part;
  }
  return sum;
}

inline double total_weight(const Room<Record>& records) {
  return sum_of(records, [](const Record& r) { return r.weight; });
}

inline double distance_sum(const Room<Record>& records) {
  return sum_of(records, [](const Record& r) { return std::sqrt(r.square) * r.weight; });
}

inline double weight_within(const Room<Record>& records, double tolerance) {
  return sum_of(records, [tolerance](const Record& r) { return std::sqrt(r.square) <= tolerance ? r.weight : 0.0; });
}

// The first distance at which the cumulative weight reaches q percent of the whole. A share within 1e-12 of it has reached it: areas that
// are equal sum to equal shares, whatever their order.
inline double weighted_percentile(const Room<Record>& records, double q) {
  if (records.size() == 0) return INFINITY;
  const double goal = q / 100.0 * total_weight(records) * (1 - 1e-12);
  double sum = 0.0, part = 0.0;
  for (int64_t i = 0; i < records.size(); ++i) {
    if (i % kSumBlock == 0) {
      sum += part;
      part = 0.0;
    }
    part += records[i].weight;
    if (sum + part >= goal) return std::sqrt(records[i].square);
  }
  return std::sqrt(records[records.size() - 1].square);
}

// Linear interpolation between order statistics, as NumPy's and PyTorch's quantiles.
inline double linear_percentile(const Room<Record>& records, double q) {
  int64_t n = 0;
  for (const Record& r : records) n += r.count;
  if (n == 0) return INFINITY;
  const double position = q / 100.0 * static_cast<double>(n - 1);
  const double low = std::floor(position);
  double below = 0.0, above = 0.0;
  int64_t seen = 0;
  for (const Record& r : records) {
    const int64_t end = seen + r.count;
    const auto holds = [&](double index) { return static_cast<double>(seen) <= index && index < static_cast<double>(end); };
    if (holds(low)) below = std::sqrt(r.square);
    if (holds(std::ceil(position))) above = std::sqrt(r.square);
    seen = end;
  }
  return below == above ? below : below + (above - below) * (position - low);
}

inline double percentile(const Room<Record>& records, double q, bool edge) {
  return edge ? linear_percentile(records, q) : weighted_percentile(records, q);
}

}  // namespace TF_NS
