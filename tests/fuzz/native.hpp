// What the native targets share: numbers out of the fuzzer's bytes, in memory of exactly their size, and a comparison of instruction sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() {  // behind the end pseudo-random ones, so that a few bytes give whole arrays
    if (at_ < end_) {
      state_ = state_ * 0x9E3779B97F4A7C15u + *at_;
      return *at_++;
    }
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint8_t>(state_ >> 56);
  }
  bool flag() { return byte() & 1; }
  int64_t size(int64_t low, int64_t high) {
    const int64_t wide = byte() | static_cast<int64_t>(byte()) << 8;
    return low + wide % (high - low + 1);
  }
  uint64_t word() {
    uint64_t out = 0;
    for (int i = 0; i < 8; ++i) out = out << 8 | byte();
    return out;
  }
  // Mostly of ordinary size; unless `tame`, now and then what floating point has besides.
  float number() {
    const uint8_t kind = byte();
    if (kind < 128 || tame) return static_cast<float>(static_cast<int8_t>(byte())) / 16.0f;
    if (kind < 230) return (static_cast<float>(byte()) - 127.5f) * 0.01f + static_cast<float>(byte()) * 1e-5f;
    constexpr float kOdd[] = {0.0f, -0.0f, 1e-41f, 1.17549435e-38f, 3e38f, -3e38f, 65504.0f, 1e-8f, INFINITY, -INFINITY, NAN, 1e20f};
    return kOdd[byte() % 12];
  }
  template <class T>
  std::vector<T> numbers(int64_t n, bool positive = false) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& x : out) x = static_cast<T>(positive ? std::fabs(number()) : number());
    return out;
  }
  template <class T>
  std::vector<T> integers(int64_t n, int64_t low, int64_t high) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& x : out) x = static_cast<T>(low + byte() % (high - low + 1));
    return out;
  }
  // Of float32, float64, bfloat16 or float16 (DType of dtype.hpp).
  std::vector<unsigned char> typed(int64_t n, int dtype, bool positive = false) {
    std::vector<unsigned char> out(static_cast<size_t>(n * width(dtype)));
    for (int64_t i = 0; i < n; ++i) {
      const float x = positive ? std::fabs(number()) : number();
      const double wide = x;
      uint32_t bits = 0;
      std::memcpy(&bits, &x, 4);
      const uint16_t narrow = dtype == 2 ? static_cast<uint16_t>(bits >> 16) : half(x, bits);
      if (dtype == 0) std::memcpy(&out[i * 4], &x, 4);
      if (dtype == 1) std::memcpy(&out[i * 8], &wide, 8);
      if (dtype >= 2) std::memcpy(&out[i * 2], &narrow, 2);
    }
    return out;
  }
  static int64_t width(int dtype) { return dtype == 0 ? 4 : dtype == 1 ? 8 : 2; }

  bool tame = false;

 private:
  static uint16_t half(float x, uint32_t bits) {  // by truncation; too large: infinity
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    const uint32_t size = bits & 0x7FFFFFFFu;
    if (std::isnan(x)) return 0x7E00u;
    if (size >= 0x47800000u) return sign | 0x7C00u;
    return static_cast<uint16_t>(sign | (size < 0x38800000u ? 0u : (size >> 13) - 0x1C000u));
  }

  const uint8_t* at_;
  const uint8_t* end_;
  uint64_t state_ = 1;
};

// What a kernel has written, by name; any NaN is the same as any other.
class Found {
 public:
  template <class T>
  void add(const char* name, const std::vector<T>& values) {
    std::string bytes;
    for (T x : values) {
      if constexpr (std::is_floating_point_v<T>)
        if (x != x) x = std::numeric_limits<T>::quiet_NaN();
      bytes.append(reinterpret_cast<const char*>(&x), sizeof(T));
    }
    names_.push_back(name), values_.push_back(bytes);
  }
  void add(const char* name, const std::vector<unsigned char>& values, int dtype) {
    if (dtype == 0) add(name, as<float>(values));
    if (dtype == 1) add(name, as<double>(values));
    if (dtype < 2) return;
    auto halves = as<uint16_t>(values);
    const unsigned infinite = dtype == 2 ? 0x7F80u : 0x7C00u;
    for (uint16_t& x : halves)
      if ((x & 0x7FFFu) > infinite) x = 0x7FFFu;
    add(name, halves);
  }
  // Values that may differ by `share` of 1 + their size; NaN and infinities are as they are.
  template <class T>
  void near(const char* name, const std::vector<T>& values, double share) {
    near_.push_back({name, std::vector<double>(values.begin(), values.end()), share});
  }
  void require_same(const Found& other, const char* what) const {
    for (size_t i = 0; i < names_.size(); ++i)
      if (values_[i] != other.values_[i]) fail(what, names_[i].c_str(), "differs between instruction sets");
    for (size_t i = 0; i < near_.size(); ++i)
      for (size_t j = 0; j < near_[i].values.size(); ++j) {
        const double a = near_[i].values[j], b = other.near_[i].values[j],
                     most = near_[i].share * (1 + std::fmax(std::fabs(a), std::fabs(b)));
        if (a == b || (a != a && b != b) || (std::isfinite(a) && std::isfinite(b) && std::fabs(a - b) <= most)) continue;
        std::fprintf(stderr, "%zu: %.9g, %.9g\n", j, a, b);
        fail(what, near_[i].name, "differs more between instruction sets than rounding explains");
      }
  }
  [[noreturn]] static void fail(const char* what, const char* name, const char* why) {
    std::fprintf(stderr, "%s: %s %s\n", what, name, why);
    std::abort();
  }

 private:
  template <class T>
  static std::vector<T> as(const std::vector<unsigned char>& bytes) {
    std::vector<T> out(bytes.size() / sizeof(T));
    if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
    return out;
  }
  struct Near {
    const char* name;
    std::vector<double> values;
    double share;
  };
  std::vector<std::string> names_, values_;
  std::vector<Near> near_;
};

// Where values of some sizes lie, in elements: one behind the other, or with axes in any order and gaps between. With `repeat` an axis may
// have stride 0; with `unit` the last one has stride 1.
struct Layout {
  std::vector<int64_t> sizes, strides;
  int64_t count = 1, reach = 1;  // elements; and from the first to behind the last
  bool plain;

  Layout(Bytes& in, const std::vector<int64_t>& of, bool repeat = false, bool unit = false) : sizes(of), strides(of.size()) {
    const int64_t axes = static_cast<int64_t>(of.size());
    std::vector<int64_t> order;
    for (int64_t axis = axes; axis-- > 0;) order.push_back(axis), count *= of[axis];
    plain = in.flag() || count == 0;
    for (int64_t i = unit; !plain && i < axes; ++i) std::swap(order[i], order[i + in.byte() % (axes - i)]);
    int64_t next = !plain && !unit && in.byte() % 4 == 0 ? 2 : 1;
    for (int64_t axis : order) {
      strides[axis] = next;
      next *= of[axis];
      if (!plain && in.byte() % 4 == 0) next += 1 + in.byte() % 3;
    }
    if (repeat && !plain && in.byte() % 4 == 0 && axes > unit) strides[in.byte() % (axes - unit)] = 0;
    for (int64_t axis = 0; axis < axes; ++axis) reach += (of[axis] - 1) * strides[axis];
    if (count == 0) reach = 0;
  }
};

// work(table) -> Found, on the baseline and, where the machine has it, on AVX2; `equal`: they write the same bits.
template <class Table, class Work>
void on_each(const char* what, const Table& baseline, const Table& avx2, bool equal, const Work& work) {
  const Found first = work(baseline);
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
  const Found second = work(avx2);
  if (equal) first.require_same(second, what);
}

inline void require(bool holds, const char* what, const char* why) {
  if (!holds) Found::fail(what, "", why);
}

// The tables of a family, TF_TABLES(Power, power).
#define TF_TABLES(Type, name)                         \
  namespace tf_baseline {                             \
  extern const tenfold::Type##Kernels name##_kernels; \
  }                                                   \
  namespace tf_avx2 {                                 \
  extern const tenfold::Type##Kernels name##_kernels; \
  }
#define TF_EACH(name) tf_baseline::name##_kernels, tf_avx2::name##_kernels
