// Lanes of float or double, sums over them in a fixed order, and rows of a view brought into them.
#pragma once

#include "power_api.hpp"

#include "../core/simd.hpp"

#include <utility>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // lanes wider than a register are passed between inlined functions only
#endif

namespace TF_NS {

using namespace tenfold;

// The same number of lanes on every instruction set, in as many registers as it takes: sums then run in one order, and all give the same
// bits.
constexpr int64_t kWide = 16;

template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(4 * kWide)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(8 * kWide), aligned(64)));
};
template <class T>
using Lanes = typename Register<T>::type;

inline int64_t padded(int64_t n) { return (n + kWide - 1) / kWide * kWide; }

// Rooms are aligned to 64 bytes, and rows in them are whole registers.
template <class T>
TF_HD Lanes<T> at(const T* p) {
  return *reinterpret_cast<const Lanes<T>*>(p);
}
template <class T>
TF_HD void put(T* p, Lanes<T> v) {
  *reinterpret_cast<Lanes<T>*>(p) = v;
}
// Lane j beside lane j ^ half.
template <int half, class L, int... j>
TF_HD L across(L v, std::integer_sequence<int, j...>) {
  return __builtin_shufflevector(v, v, (j ^ half)...);
}
template <int half, class L>
TF_HD L across(L v) {
  return across<half>(v, std::make_integer_sequence<int, static_cast<int>(kWide)>{});
}
// The sum and the largest of all lanes, halves first, in every lane.
template <int half, class L>
TF_HD L folded(L v) {
  v = v + across<half>(v);
  if constexpr (half > 1) v = folded<half / 2>(v);
  return v;
}
template <int half, class L>
TF_HD L highest(L v) {
  const L other = across<half>(v);
  v = v > other ? v : other;
  if constexpr (half > 1) v = highest<half / 2>(v);
  return v;
}
template <class T>
TF_HD T total(Lanes<T> v) {
  return folded<static_cast<int>(kWide) / 2>(v)[0];
}
template <class T>
TF_HD T largest(Lanes<T> v) {
  return highest<static_cast<int>(kWide) / 2>(v)[0];
}

// Along a row by one thread, a register at a time: the W of power_scalar.hpp.
struct Alone {
  using V = Lanes<double>;
  static constexpr int64_t kStep = kWide, kRanks = 1;
  TF_HD static V get(const double* p) { return at(p); }
  TF_HD static void put(double* p, V v) { TF_NS::put(p, v); }
  TF_HD static int64_t begin() { return 0; }
  TF_HD static double total(V v) { return TF_NS::total<double>(v); }
  TF_HD static int64_t padded(int64_t n) { return TF_NS::padded(n); }
  TF_HD static int64_t rank() { return 0; }
  TF_HD static void sync() {}
};

template <class T>
T value_at(const PowerView& view, int64_t row, int64_t user) {
  return static_cast<const T*>(view.data)[row * view.row + user * view.user];
}

// Real values of one row and user.
template <class T, class To>
void load_real(const PowerView& view, int64_t row, int64_t user, int64_t n, To* out) {
  const T* const from = static_cast<const T*>(view.data) + row * view.row + user * view.user;
  if (view.carrier == 1) {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<To>(from[k]);
  } else {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<To>(from[k * view.carrier]);
  }
}

// Every other lane of a followed by b, from lane `first` on, and lanes of a and b in turn, of the lower or upper half.
template <int first, class L, int... j>
TF_HD L every_other(L a, L b, std::integer_sequence<int, j...>) {
  return __builtin_shufflevector(a, b, (first + 2 * j)...);
}
template <int first, class L, int... j>
TF_HD L in_turn(L a, L b, std::integer_sequence<int, j...>) {
  return __builtin_shufflevector(a, b, (first + j / 2 + j % 2 * static_cast<int>(kWide))...);
}
using LaneOrder = std::make_integer_sequence<int, static_cast<int>(kWide)>;

// Real and imaginary parts of one row and user.
template <class T, class To>
void load_complex(const PowerView& view, int64_t row, int64_t user, int64_t n, To* __restrict re, To* __restrict im) {
  using L = Lanes<T>;
  const T* const __restrict from = static_cast<const T*>(view.data) + 2 * (row * view.row + user * view.user);
  int64_t k = 0;
  if (view.carrier == 1) {
    for (; k + kWide <= n; k += kWide) {
      L a, b;
      __builtin_memcpy(&a, from + 2 * k, sizeof(L));
      __builtin_memcpy(&b, from + 2 * k + kWide, sizeof(L));
      put(re + k, __builtin_convertvector(every_other<0>(a, b, LaneOrder()), Lanes<To>));
      put(im + k, __builtin_convertvector(every_other<1>(a, b, LaneOrder()), Lanes<To>));
    }
  }
  for (; k < n; ++k) {
    re[k] = static_cast<To>(from[2 * k * view.carrier]);
    im[k] = static_cast<To>(from[2 * k * view.carrier + 1]);
  }
}

// out[k] = scale * factor[k] * conj(g) s, of rows in rooms. In lanes: GCC 12 makes scalar code of this form fused whatever -ffp-contract.
template <class T, class From>
void store_turned(const From* __restrict factor, From scale, const From* __restrict gr, const From* __restrict gi,
                  const From* __restrict sr, const From* __restrict si, int64_t n, T* __restrict out) {
  using L = Lanes<From>;
  for (int64_t k = 0; k < n; k += kWide) {
    const L by = scale * at(factor + k);
    const auto re = __builtin_convertvector(by * (at(gr + k) * at(sr + k) + at(gi + k) * at(si + k)), Lanes<T>);
    const auto im = __builtin_convertvector(by * (at(gr + k) * at(si + k) - at(gi + k) * at(sr + k)), Lanes<T>);
    const Lanes<T> both[2] = {in_turn<0>(re, im, LaneOrder()), in_turn<static_cast<int>(kWide) / 2>(re, im, LaneOrder())};
    const int64_t left = n - k;
    if (left >= kWide) {
      __builtin_memcpy(out + 2 * k, both, sizeof both);
    } else {
      __builtin_memcpy(out + 2 * k, both, 2 * static_cast<size_t>(left) * sizeof(T));
    }
  }
}

template <class T>
void fill(T* p, int64_t n, T value) {
  for (int64_t k = 0; k < n; ++k) p[k] = value;
}

}  // namespace TF_NS
