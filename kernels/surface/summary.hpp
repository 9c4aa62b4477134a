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

inline double total_weight(const Room<Record>& records) {
  double sum = 0.0;
  for (const Record& r : records) sum += r.weight;
  return sum;
}

inline double distance_sum(const Room<Record>& records) {
  double sum = 0.0;
  for (const Record& r : records) sum += std::sqrt(r.square) * r.weight;
  return sum;
}

inline double weight_within(const Room<Record>& records, double tolerance) {
  double sum = 0.0;
  for (const Record& r : records) {
    if (std::sqrt(r.square) <= tolerance) sum += r.weight;
  }
  return sum;
}

// The first distance at which the cumulative weight reaches q percent of the whole. A share within 1e-12 of it has reached it: areas that
// are equal sum to equal shares, whatever their order.
inline double weighted_percentile(const Room<Record>& records, double q) {
  if (records.size() == 0) return INFINITY;
  const double goal = q / 100.0 * total_weight(records) * (1 - 1e-12);
  double sum = 0.0;
  for (const Record& r : records) {
    sum += r.weight;
    if (sum >= goal) return std::sqrt(r.square);
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
